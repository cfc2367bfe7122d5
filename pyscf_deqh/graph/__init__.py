"""Molecules as networks see them: layout of the orbitals, building, batches, on-site overlaps."""
