"""Equivariant networks and the deep-equilibrium framework. Nothing here imports PySCF."""
