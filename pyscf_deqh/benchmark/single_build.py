"""``python -m pyscf_deqh.benchmark single-build``: energies of one Fock matrix against SCFs.

Each molecule's energy by :func:`pyscf_deqh.single_build` is compared with that of an SCF by
:func:`pyscf_deqh.deqh_guess`, converged further than by PySCF's default; its seconds with those of
that SCF to the default.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.geometry import Geometry
from ..plugin import deqh_guess
from ..process import trim_memory
from ..single_build import single_build
from .acceleration import warm_up
from .per_molecule import left_out, run_command
from .ratios import spread
from .report import markdown_table
from .sets import SUITE, SuiteSet

_TIGHT = {"conv_tol": 1e-12, "conv_tol_grad": 1e-6}  # hartree
_SETS = ("qm9", "larger", "fragments", "ions", "heavy", "radicals", "cation", "pcm", "smd", "hf")
_COLUMNS = ("molecules", "n", "error per atom / micro-Eh", "largest error / micro-Eh",
            "error bar / micro-Eh", "within it", "error of the density's own energy / micro-Eh",
            "seconds / SCF's")  # fmt: skip


def one_molecule(
    geometry: Geometry, entry: SuiteSet, model: str | Path, device: str
) -> dict[str, Any]:
    """The row of a molecule of a set: energies in hartree.

    Raises:
        DEQHError: there is no guess for it.
    """
    method = entry.method(model, device)
    warm_up(replace(method, charge=0, spin=None), "minao")
    mol = method.molecule(geometry)
    trim_memory()
    started = time.perf_counter()
    found = single_build(method.scf(mol), model=model, device=device)
    seconds = time.perf_counter() - started
    trim_memory()
    started = time.perf_counter()
    mf = deqh_guess(method.scf(mol), model=model, device=device).run()
    scf_seconds = time.perf_counter() - started
    converged = bool(mf.converged)
    mf.set(**_TIGHT).kernel(dm0=mf.make_rdm1())
    return {
        "n_atoms": int(mol.natm),
        "energy": float(mf.e_tot),
        "converged": converged and bool(mf.converged),
        "error": found.energy - float(mf.e_tot),
        "error_bar": found.error,
        "upper": found.upper - float(mf.e_tot),
        "seconds": seconds,
        "scf_seconds": scf_seconds,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the molecules of each set, in Markdown; those that failed, and
    SCFs that did not converge, are left out and listed below."""
    cells = []
    for name, entry in SUITE.items():
        found = [r for r in rows if r["set"] == name and r.get("converged")]
        if not found:
            continue
        errors = [1e6 * abs(r["error"]) for r in found]
        cells.append([
            entry.title,
            str(len(found)),
            spread([e / r["n_atoms"] for e, r in zip(errors, found, strict=True)]),
            f"{max(errors):.2g}",
            spread([1e6 * r["error_bar"] for r in found]),
            str(sum(abs(r["error"]) <= r["error_bar"] for r in found)),
            spread([1e6 * r["upper"] for r in found]),
            spread([r["seconds"] / r["scf_seconds"] for r in found]),
        ])  # fmt: skip
    failed = [(r, r.get("reason", "SCF not converged")) for r in rows if not r.get("converged")]
    return "\n".join([*markdown_table(_COLUMNS, cells), *left_out(failed)])


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(argv, "single-build", __doc__, one_molecule, table, _SETS, 10, "n_atoms")
