"""``python -m pyscf_deqh.benchmark starts``: how near to the solution a model's Hamiltonian is.

In fitted matrices of the SCF's functional, without an SCF: the norm of the orbital gradient of its
density, beside that of superposed atoms, and its errors against the solution that density-fitted
cycles come to from there. By set, and by element. Solvents are left out; in other basis sets than
the model's the network's figures are of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pyscf.data.elements import ELEMENTS
from pyscf.scf import hf

from ..data.geometry import Geometry
from ..errors import NumericalError, UnsupportedMoleculeError
from ..fock.orbitals import Orbitals
from ..fock.problem import Problem
from ..fock.refine import Refined, refine
from ..fock.shells import Kind
from ..metrics import hamiltonian_errors
from ..starts import Start, StartingPoint
from ..starts.atoms import AtomsStart
from ..starts.network import NetworkStart
from .per_molecule import left_out, run_command
from .ratios import spread
from .report import markdown_table
from .sets import SUITE, SuiteSet

_SETS = ("qm9", "md", "larger", "fragments", "ions")
# Of the gradient, hartree by the root of an electron pair: what is left of a start's, a hundredth,
# is left of its error. Single precision allows no much smaller one of large molecules.
_TOLERANCE, _MAX_BUILDS = 1e-4, 50
_COLUMNS = ("molecules", "n", "gradient / milli-Eh, network", "… superposed atoms", "ratio",
            "MAE of H / micro-Eh", "orbital rotation", "n without the network")  # fmt: skip


def start_gradient(start: Start, mf: hf.SCF) -> float:
    """Norm of the orbital gradient of a start's density, by the root of an electron pair, hartree.

    Raises as ``start`` does.
    """
    return _refined(start, mf, 1)[-1]


def _refined(
    start: Start, mf: hf.SCF, max_builds: int
) -> tuple[Problem, StartingPoint, Refined, float]:
    """What so many fitted Fock matrices lead to, in the start's basis set, and the gradient."""
    problem = start.place(Problem.of(mf, mf.mol))
    if problem.shells.kind is not Kind.CLOSED:
        raise UnsupportedMoleculeError("starts are compared for closed shells alone")
    point = start(problem)

    def build(orbitals: Orbitals) -> np.ndarray:
        return point.fitted(problem.core_hamiltonian, orbitals, problem.functional)[0]

    tolerance = _TOLERANCE * problem.gradient_scale
    refined = refine(
        build, problem.system.overlap, problem.shells, point.hamiltonian, max_builds, tolerance
    )
    return problem, point, refined, refined.gradients[0] / problem.gradient_scale


def one_molecule(
    geometry: Geometry, entry: SuiteSet, model: str | Path, device: str
) -> dict[str, Any]:
    """The row of a molecule: hartree; ``network`` is None where the model does not know it.

    Raises:
        DEQHError: there is no start for it, or it is no closed shell.
        NumericalError: its density-fitted cycles did not converge.
    """
    method = entry.method(model, device)
    mol = method.molecule(geometry)
    row: dict[str, Any] = {
        "elements": sorted({int(z) for z in geometry.numbers}),
        "charge": int(mol.charge),
        "atoms": start_gradient(AtomsStart(device), method.scf(mol)),
        "network": None,
    }
    try:
        network = NetworkStart(model, device)
        problem, point, refined, gradient = _refined(network, method.scf(mol), _MAX_BUILDS)
    except UnsupportedMoleculeError:
        return row
    if refined.gradients[-1] >= _TOLERANCE * problem.gradient_scale:
        raise NumericalError(f"no convergence in {_MAX_BUILDS} density-fitted cycles")
    errors = hamiltonian_errors(
        point.hamiltonian, refined.fock, problem.system.overlap, problem.mol.nelectron // 2,
        np.diff(problem.mol.aoslice_by_atom()[:, 2:]).ravel(),
    )  # fmt: skip
    return row | {"network": gradient, "iterations": point.iterations} | asdict(errors)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation of each set, of ions, and of all molecules with an element, in
    Markdown; those that failed are listed below."""
    good = [row for row in rows if "reason" not in row]
    groups = {entry.title: [r for r in good if r["set"] == name] for name, entry in SUITE.items()}
    groups["charged"] = [r for r in good if r["charge"]]
    for z in sorted({z for r in good for z in r["elements"]}):
        groups[f"with {ELEMENTS[z]}"] = [r for r in good if z in r["elements"]]
    lines = markdown_table(_COLUMNS, [_cells(title, g) for title, g in groups.items() if g])
    failed = [(r, r["reason"]) for r in rows if "reason" in r]
    return "\n".join([*lines, *left_out(failed)])


def _cells(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    known = [r for r in rows if r["network"] is not None]
    others = str(len(rows) - len(known))
    atoms = spread([1e3 * r["atoms"] for r in known or rows], ".1f", ".1f")
    if not known:
        return [title, "0", "-", atoms, "-", "-", "-", others]
    return [
        title,
        str(len(known)),
        spread([1e3 * r["network"] for r in known], ".2f", ".2f"),
        atoms,
        spread([r["network"] / r["atoms"] for r in known], ".3f", ".3f"),
        spread([1e6 * r["mae"] for r in known], ".0f", ".0f"),
        spread([r["orbital_rotation"] for r in known], ".4f", ".4f"),
        others,
    ]


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(argv, "starts", __doc__, one_molecule, table, _SETS, None, "elements")
