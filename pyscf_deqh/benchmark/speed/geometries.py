"""Molecules of any length, built from bond lengths and angles: chains and clusters."""

from __future__ import annotations

import itertools
import math

import numpy as np

from ...data.geometry import Geometry

# Angstrom; all angles of a chain are tetrahedral.
CC_BOND, CH_BOND = 1.54, 1.09
OH_BOND, HOH_ANGLE = 0.9572, math.radians(104.52)
# Distance of oxygen atoms on a cubic lattice, from the density of liquid water.
WATER_SPACING = 3.104


def polyethylene(n_carbons: int) -> Geometry:
    """The all-trans alkane C_n H_(2n + 2)."""
    # Half of the tetrahedral angle: its sine and cosine.
    sine, cosine = math.sqrt(2 / 3), math.sqrt(1 / 3)
    carbons, hydrogens = [], []
    for k in range(n_carbons):
        side = 1 if k % 2 == 0 else -1
        carbon = np.array([k * CC_BOND * sine, side * CC_BOND * cosine / 2, 0.0])
        carbons.append(carbon)
        directions = [[0.0, side * cosine, sine], [0.0, side * cosine, -sine]]
        # Hydrogen where the chain would go on.
        directions += [[-sine, -side * cosine, 0.0]] if k == 0 else []
        directions += [[sine, -side * cosine, 0.0]] if k == n_carbons - 1 else []
        hydrogens += [carbon + CH_BOND * np.array(direction) for direction in directions]
    numbers = np.array([6] * len(carbons) + [1] * len(hydrogens), dtype=np.int32)
    name = f"C{n_carbons}H{2 * n_carbons + 2}"
    return Geometry(numbers, np.array(carbons + hydrogens), {"name": name})


def water_cluster(n_molecules: int) -> Geometry:
    """Water molecules on the lattice sites next to a cube's centre, dipoles alternating."""
    side = math.ceil(n_molecules ** (1 / 3) - 1e-9)
    sites = np.array(list(itertools.product(range(side), repeat=3)))
    distance = np.linalg.norm(sites - (side - 1) / 2, axis=1)
    positions = []
    for site in sites[np.argsort(distance, kind="stable")[:n_molecules]]:
        up = 1 if site.sum() % 2 == 0 else -1
        oxygen = WATER_SPACING * site
        x, y = OH_BOND * math.sin(HOH_ANGLE / 2), up * OH_BOND * math.cos(HOH_ANGLE / 2)
        positions += list(oxygen + np.array([[0.0, 0.0, 0.0], [x, y, 0.0], [-x, y, 0.0]]))
    numbers = np.array([8, 1, 1] * n_molecules, dtype=np.int32)
    return Geometry(numbers, np.array(positions), {"name": f"(H2O){n_molecules}"})
