"""One system of part ``growth`` in a process of its own, whose peak memory is the system's."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...checkpoint import load_model
from ...data.geometry import Geometry
from ...fock.fitted import FittedFock
from ...fock.orbitals import solve_roothaan
from ...fock.reference import sad_reference
from ...fock.system import System
from ...graph.batch import MolecularGraph, collate
from ...nn.density import density_matrix
from ...process import use_threads
from .geometries import polyethylene, water_cluster
from .samples import molecule

SYSTEMS = ("chain", "cluster")


def system(kind: str, n_atoms: int) -> Geometry:
    """The largest chain or cluster of at most that many atoms, with one unit at least."""
    if kind == "chain":
        return polyethylene(max((n_atoms - 2) // 3, 1))
    return water_cluster(max(n_atoms // 3, 1))


def peak_bytes() -> int:
    """Largest memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    out = function()
    return time.perf_counter() - started, out


def reference_cost(geometry: Geometry) -> dict[str, Any]:
    """Seconds of the reference Hamiltonian, and the memory that it adds."""
    mol = molecule(geometry)
    known = System(mol)
    assert known.atomic_density is not None  # made before the clock starts
    before = peak_bytes()
    seconds, _ = _seconds(lambda: sad_reference(known, FittedFock(mol)))
    return {"nao": int(mol.nao), "reference_seconds": seconds,
            "reference_bytes": peak_bytes() - before}  # fmt: skip


def network_cost(geometry: Geometry, model: str) -> dict[str, Any]:
    """Seconds and memory of the eigenproblem, of the features, and of the network.

    The kinetic-energy matrix stands in for the reference: of the same shape and range, and cheap.
    The network makes all its iterations whatever the residual.
    """
    mol = molecule(geometry)
    eigen_seconds, graph = _stand_in(mol)
    network, spec = load_model(model)
    iterations = spec.solver.forward_max_iterations
    network.configure(replace(spec.solver, forward_tolerance=1e-30))
    cutoff = spec.backbone.cutoff_bohr
    # Kernels are chosen, and threads started, by the first call.
    with torch.no_grad():
        network(collate([_stand_in(molecule(system("cluster", 1)))[1]], spec.template, cutoff))
    before = peak_bytes()
    feature_seconds, batch = _seconds(lambda: collate([graph], spec.template, cutoff))
    features = peak_bytes()
    with torch.no_grad():
        seconds, _ = _seconds(lambda: network(batch))
        after = peak_bytes()
        density_seconds, _ = _seconds(
            lambda: density_matrix(batch.reference, batch.basis_vectors, batch.n_occupied)
        )
    return {
        "n_atoms": mol.natm,
        "nao": int(mol.nao),
        "pairs": batch.edge_index.shape[1],
        "eigenproblem_seconds": eigen_seconds,
        "features_seconds": feature_seconds,
        "network_seconds": seconds,
        "density_seconds": density_seconds,
        # The density of the start, the reference, is an input.
        "layers_seconds": seconds - (iterations - 1) * density_seconds,
        "features_bytes": features - before,
        "network_bytes": after - before,
        "peak_bytes": after,
    }


def _stand_in(mol: Any) -> tuple[float, MolecularGraph]:
    """Seconds of the eigenproblem, and a graph with the kinetic energy as its reference."""
    overlap, fock = mol.intor_symmetric("int1e_ovlp"), mol.intor_symmetric("int1e_kin")
    seconds, (_, orbitals) = _seconds(lambda: solve_roothaan(fock, overlap))
    return seconds, MolecularGraph(
        numbers=np.array([mol.atom_charge(i) for i in range(mol.natm)], dtype=np.int32),
        positions=mol.atom_coords(), n_occupied=mol.nelectron // 2, overlap=overlap,
        reference=fock, atomic_density=np.zeros_like(fock), basis_vectors=orbitals,
    )  # fmt: skip


def main(argv: list[str]) -> None:
    """Arguments: what to measure, kind of system, atoms, model, threads. Prints one JSON object."""
    what, kind, n_atoms, model, threads = argv
    use_threads(int(threads))
    geometry = system(kind, int(n_atoms))
    found = reference_cost(geometry) if what == "reference" else network_cost(geometry, model)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
