"""``python -m pyscf_deqh.screen FILE --out results.parquet``: SCFs of many molecules.

They start from this guess. One row for each: energy, orbital energies, dipole moment, charges, and
what it cost. Rows are kept as they come: the same command goes on where it stopped, with the
molecules that the output does not hold. ``--scheduler`` runs on a cluster. ``--single-build`` makes
one Fock matrix of each molecule instead of an SCF.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyscf
from pyscf.data.elements import ELEMENTS
from tqdm import tqdm

from .benchmark.scf_runs import Method
from .checkpoint import DEFAULT_MODEL, list_models, resolve_model, weights_hash
from .data.geometry import Geometry, read_geometries
from .data.make.label import row_ids
from .errors import DatasetError, exit_status
from .plugin import deqh_guess
from .pyscf_api import full_builds
from .report import Report
from .single_build import single_build
from .table import RowTable
from .tasks import Failure, add_options, outcomes

COLUMNS = {
    "id": "int64",
    "name": "string",
    "geometry": "string",
    "formula": "string",
    "charge": "int32",
    "spin": "int32",
    "orbitals": "int32",
    "converged": "bool",
    "energy": "double",
    "energy_error": "double",
    "spin_square": "double",
    "homo": "double",
    "lumo": "double",
    "gap": "double",
    "dipole": "doubles",
    "charges": "doubles",
    "cycles": "int32",
    "full_builds": "int32",
    "seconds": "double",
    "start": "string",
    "notes": "string",
    "error": "string",
}
"""Name and type of each column: energies in hartree, ``dipole`` (3,) in debye, Mulliken's
``charges`` (N,); ``geometry`` is a hash of elements and positions; ``start`` where the guess began,
``notes`` what it did differently, ``error`` why there is no result. With one Fock matrix instead of
an SCF ``energy_error`` is what the energy may be off, and ``converged`` is empty."""


def fingerprint(geometry: Geometry) -> str:
    """A hash of elements and positions, to a millionth of an angstrom, charge and spin."""
    positions = (1e6 * geometry.positions).round().astype(np.int64) + 0
    state = [geometry.info.get(key) for key in ("charge", "spin", "ghosts")]
    content = (
        geometry.numbers.astype(np.int64).tobytes() + positions.tobytes() + repr(state).encode()
    )
    return hashlib.sha256(content).hexdigest()[:16]


def one_molecule(geometry: Geometry, method: Method, single: bool = False) -> dict[str, Any]:
    """A row but for ``id``, ``name`` and ``geometry``.

    An SCF that does not converge has a row like any other, with ``converged`` false.

    Args:
        geometry: the molecule.
        method: of its SCF.
        single: make one Fock matrix of it, see :func:`pyscf_deqh.single_build`.
    """
    mol = method.molecule(geometry)
    mf = method.scf(mol)
    options: dict[str, Any] = {
        "model": method.model, "device": method.device, "on_unsupported": "minao",
        "max_cycles": method.max_cycles,
    }  # fmt: skip
    started = time.perf_counter()
    found = single_build(mf, **options) if single else None
    if not single:
        deqh_guess(mf, accelerate=method.accelerate, **options).kernel()
    seconds = time.perf_counter() - started
    occupied = mf.mo_occ > 0
    homo = float(mf.mo_energy[occupied].max())
    lumo = float(mf.mo_energy[~occupied].min()) if not occupied.all() else None
    # One electron is solved for without a guess.
    report = mf.deqh_report or Report("PySCF's")
    remarks = [*report.notes, *([f"minao: {report.fallback}"] if report.fallback else [])]
    return {
        "formula": _formula(geometry),
        "charge": mol.charge,
        "spin": mol.spin,
        "orbitals": int(mol.nao),
        "converged": None if single else bool(mf.converged),
        "energy": float(mf.e_tot),
        "energy_error": found.error if found else None,
        "spin_square": float(mf.spin_square()[0]),
        "homo": homo,
        "lumo": lumo,
        "gap": None if lumo is None else lumo - homo,
        "dipole": mf.dip_moment(unit="Debye", verbose=0).tolist(),
        "charges": mf.mulliken_pop(verbose=0)[1].tolist(),
        "cycles": 0 if single else int(mf.cycles),
        "full_builds": 1 if single else full_builds(mf),
        "seconds": seconds,
        "start": "minao" if report.fallback else report.start,
        "notes": "; ".join(remarks),
        "error": None,
    }


def _formula(geometry: Geometry) -> str:
    """In Hill's order."""
    n_real = len(geometry.numbers) - (geometry.whole_number("ghosts") or 0)
    symbols = [ELEMENTS[z] for z in geometry.numbers[:n_real]]
    counts = {symbol: symbols.count(symbol) for symbol in sorted(set(symbols))}
    first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
    order = [*first, *(symbol for symbol in counts if symbol not in first)]
    return "".join(f"{symbol}{counts[symbol] if counts[symbol] > 1 else ''}" for symbol in order)


def _settings(method: Method, single: bool) -> dict[str, Any]:
    """What all rows of a file have to be made with."""
    further = ("conv_tol", "conv_tol_grad", "max_cycles", "accelerate")
    chosen = {key: getattr(method, key) for key in further}
    return {
        **method.details,
        **{key: value for key, value in chosen.items() if value != getattr(Method, key)},
        "weights": weights_hash(method.model),
        "pyscf": pyscf.__version__,
        "single_build": single,
    }


def screen(
    geometries: Sequence[Geometry],
    out: str | Path,
    method: Method | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
    progress: bool = True,
    single: bool = False,
) -> dict[str, int]:
    """Write a row for each molecule that ``out`` does not hold yet.

    Args:
        geometries: molecules; charge, spin and ghosts stand in their comment lines.
        out: ``.parquet`` file; made if absent, else extended.
        method: of the SCFs; must be that of an existing ``out``.
        workers, scheduler: where to compute, see :func:`pyscf_deqh.tasks.outcomes`.
        retry_failed: compute the molecules again that have no result.
        progress: show a progress bar.
        single: make one Fock matrix of each, see :func:`pyscf_deqh.single_build`.

    Returns:
        How many rows this call wrote, ``written``, and how many of all rows in ``out`` have no
        result, ``failed``, or one that is not converged, ``not_converged``.

    Raises:
        ConfigError: ``out`` is another kind of file, or no such scheduler.
        DatasetError: ``out`` was made with other settings or of other molecules.
        OutputError: another process writes to ``out``, or it cannot be written.
        CheckpointError: no such model.
    """
    method = method or Method()
    folder = resolve_model(method.model)
    if str(method.model) not in list_models():
        method = replace(method, model=folder)  # workers may be in other folders
    by_id = dict(zip(row_ids(geometries), geometries, strict=True))
    prints = {row_id: fingerprint(geometry) for row_id, geometry in by_id.items()}
    with RowTable(Path(out), COLUMNS, _settings(method, single)) as table:
        present = table.column("geometry")
        for row_id in present.keys() & prints.keys():
            if present[row_id] != prints[row_id]:
                raise DatasetError(
                    f"{out} holds another geometry with id {row_id}: give each an id=… of its own "
                    "in its comment line, or write to another file"
                )
        failed = table.column("error")
        done = {i for i in present if not (retry_failed and failed[i])}
        tasks = deque((i, (g, method, single)) for i, g in by_id.items() if i not in done)
        bar = tqdm(total=len(by_id), initial=len(by_id) - len(tasks), desc="screening",
                   unit="mol", disable=not progress)  # fmt: skip
        written = 0
        with bar:
            for row_id, result in outcomes(one_molecule, tasks, workers, scheduler):
                row = {"error": result.reason} if isinstance(result, Failure) else result
                table.add(
                    {"id": row_id, "name": by_id[row_id].name, "geometry": prints[row_id]} | row
                )
                if row["error"]:
                    bar.write(f"{by_id[row_id].name}: {row['error']}")
                written += 1
                bar.update()
        return {
            "written": written,
            "failed": sum(1 for error in table.column("error").values() if error),
            "not_converged": sum(1 for ok in table.column("converged").values() if ok is False),
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.screen",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("geometries", type=Path,
                        help="xyz/extxyz file (also .gz), folder of them, or labels; charge=…, "
                        "spin=… (unpaired electrons) and id=… in the comment lines")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.parquet",
                        help="file to make or to extend")  # fmt: skip
    parser.add_argument("--xc", default=Method.xc, help="functional, or hf")
    parser.add_argument("--basis", default=Method.basis)
    parser.add_argument("--solvent", choices=("PCM", "SMD"), help="water")
    parser.add_argument("--density-fit", action="store_true",
                        help="SCFs with PySCF's density_fit()")  # fmt: skip
    parser.add_argument("--unrestricted", action="store_true",
                        help="singlets too have orbitals of either spin")  # fmt: skip
    parser.add_argument("--single-build", action="store_true",
                        help="one Fock matrix instead of an SCF; says what the energy may be "
                        "off")  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda …")
    parser.add_argument("--retry-failed", action="store_true",
                        help="once more those that have no result")  # fmt: skip
    add_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    def run() -> int:
        method = Method(
            args.xc,
            args.basis,
            args.model,
            args.device,
            density_fit=args.density_fit,
            solvent=args.solvent,
            unrestricted=args.unrestricted,
        )
        found = screen(
            read_geometries(args.geometries),
            args.out,
            method,
            args.workers,
            args.scheduler,
            args.retry_failed,
            single=args.single_build,
        )
        print(f"{args.out}: {found['written']} molecules now; of all in it "
              f"{found['not_converged']} not converged, {found['failed']} without a result "
              "(column error)")  # fmt: skip
        return 1 if found["failed"] else 0

    return exit_status(run, "interrupted; run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
