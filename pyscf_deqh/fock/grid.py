"""The coarse integration grid of the cheap SCF."""

GRID = (30, 110)  # radial shells, largest angular grid; pruned by PySCF's default scheme
