"""``python -m pyscf_deqh.benchmark steps``: optimizations and dynamics, with the guess and without.

``optimize`` optimizes molecules with geomeTRIC, ``dynamics`` runs molecular dynamics at constant
energy with the same velocities at the start. Both go through PySCF's own drivers; the seconds of
the SCFs are counted apart from those of gradients and drivers. Rows are written after every
molecule; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import lib
from tqdm import tqdm

from ..data.geometry import Geometry, read_geometries
from ..errors import ConfigError, exit_status
from ..files import write_json
from ..plugin import deqh_guess
from .acceleration import WATER
from .environment import environment
from .report import markdown_table
from .scf_runs import Method
from .sets import BUNDLED, in_random_order

KINDS = ("optimize", "dynamics")
_FEMTOSECOND = 41.341374575751  # atomic units of time
_RUNS = {"minao": False, "deqh": True}


class _Counted:
    """The scanner of a method, whose SCFs are timed and counted.

    Attributes:
        scanner: energies and gradients.
        builds: full Fock matrices of each SCF.
        seconds: of all SCFs.
    """

    def __init__(self, mol: Any, method: Method, guess: bool):
        mf = method.scf(mol)
        if guess:
            deqh_guess(mf, method.model, method.device)
        self.scanner = mf.nuc_grad_method().as_scanner()
        self.builds: list[int] = []
        self.seconds = 0.0
        base = self.scanner.base
        kernel = base.kernel

        def timed(*args: Any, **kwargs: Any) -> float:
            started = time.perf_counter()
            try:
                return kernel(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started
                self.builds.append(base.cycles + 1 + bool(base.converged and base.conv_check))

        base.kernel = timed

    def row(self, seconds: float, **results: Any) -> dict[str, Any]:
        return {"seconds": seconds, "scf_seconds": self.seconds, "builds": self.builds} | results


def optimize(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """One geometry optimization by geomeTRIC, with its default thresholds."""
    from pyscf.geomopt import geometric_solver

    counted = _Counted(mol, method, guess)
    started = time.perf_counter()
    # geomeTRIC prints pages.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        converged, last = geometric_solver.kernel(
            counted.scanner, assert_convergence=False, maxsteps=steps
        )
    seconds = time.perf_counter() - started
    return counted.row(
        seconds, converged=bool(converged), energy=float(counted.scanner.base.e_tot),
        positions=last.atom_coords().tolist(),
    )  # fmt: skip


def dynamics(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """Molecular dynamics at constant energy: steps of 0.5 fs, 300 K at the start."""
    from pyscf import md

    counted = _Counted(mol, method, guess)
    rng = np.random.default_rng(0)
    velocities = md.distributions.MaxwellBoltzmannVelocity(mol, 300.0, rng=rng)
    driver = md.NVE(counted.scanner, dt=0.5 * _FEMTOSECOND, steps=steps, veloc=velocities)
    driver.verbose, driver.stdout = 0, io.StringIO()  # it prints every frame
    energies: list[float] = []
    driver.callback = lambda envs: energies.append(float(envs["current_frame"].etot))
    started = time.perf_counter()
    driver.run()
    seconds = time.perf_counter() - started
    return counted.row(
        seconds, converged=True, energy=energies[-1], energies=energies,
        positions=driver.mol.atom_coords().tolist(),
    )  # fmt: skip


def _name(geometry: Geometry) -> str:
    """Its own, or that of its place in the file or folder."""
    return geometry.name if geometry.info else f"{geometry.name} {geometry.place}"


def run_molecule(
    geometry: Geometry, method: Method, kind: str, steps: int, first: str = "minao"
) -> dict[str, Any]:
    """One row: the same run with PySCF's own starts and with the guess."""
    run: Callable[..., dict[str, Any]] = {"optimize": optimize, "dynamics": dynamics}[kind]
    row: dict[str, Any] = {"name": _name(geometry), "nao": int(method.molecule(geometry).nao)}
    for name in sorted(_RUNS, key=lambda name: name != first):
        mol = method.molecule(geometry)
        with lib.temporary_env(mol, verbose=0):
            row[name] = run(mol, method, _RUNS[name], steps)
    return row


def _ratio(rows: Sequence[dict[str, Any]], key: str) -> str:
    values = np.array([row["deqh"][key] / row["minao"][key] for row in rows])
    return f"{values.mean():.3f} ± {values.std():.3f}"


def _displacement(row: dict[str, Any]) -> float:
    """Largest difference of two distances between atoms, in angstrom."""
    last = [np.array(row[name]["positions"]) for name in _RUNS]
    distances = [np.linalg.norm(p[:, None] - p, axis=-1) for p in last]
    return float(abs(distances[0] - distances[1]).max()) * lib.param.BOHR


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Each molecule, and the means of all."""
    cells = []
    for row in rows:
        plain, deqh = row["minao"], row["deqh"]
        cells.append([
            row["name"], f"{row['nao']}", f"{len(plain['builds'])}", f"{len(deqh['builds'])}",
            f"{np.mean(plain['builds']):.1f}", f"{np.mean(deqh['builds']):.1f}",
            _ratio([row], "seconds").split()[0], _ratio([row], "scf_seconds").split()[0],
            f"{1e6 * (deqh['energy'] - plain['energy']):.2f}", f"{_displacement(row):.4f}",
        ])  # fmt: skip
    if rows:
        means = [np.mean([np.mean(r[name]["builds"]) for r in rows]) for name in _RUNS]
        cells.append([
            f"mean of {len(rows)}", "", "", "", *(f"{mean:.1f}" for mean in means),
            _ratio(rows, "seconds"), _ratio(rows, "scf_seconds"), "", "",
        ])  # fmt: skip
    columns = ["molecule", "orbitals", "points, minao", "points, DEQH", "builds a point, minao",
               "builds a point, DEQH", "wall time", "SCF time", "energy, 1e-6 hartree",
               "distances, angstrom"]  # fmt: skip
    return "\n".join(markdown_table(columns, cells))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark steps",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--molecules", type=Path, default=BUNDLED,
                        help="xyz/extxyz file, or folder of them")  # fmt: skip
    parser.add_argument("--n", type=int, help="so many of them, in random order")
    parser.add_argument("--steps", type=int, default=100, help="limit of an optimization, or "
                        "length of a trajectory")  # fmt: skip
    parser.add_argument("--xc", default=Method.xc)
    parser.add_argument("--basis", default=Method.basis)
    parser.add_argument("--json", type=Path, metavar="OUT", required=True,
                        help="write all rows here, and go on after those in it")  # fmt: skip
    return parser


def _read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        rows: list[dict[str, Any]] = content["rows"]
        found = content["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no rows of this command: {error!r}") from error
    if found != settings:
        raise ConfigError(f"{path} was made with {found}: name another file")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    method = Method(args.xc, args.basis)
    settings = {"kind": args.kind, "xc": args.xc, "basis": args.basis, "steps": args.steps}

    def run() -> int:
        rows = _read(args.json, settings)
        geometries = in_random_order(read_geometries(args.molecules))[: args.n]
        done = {row["name"] for row in rows}
        todo = [g for g in geometries if _name(g) not in done]
        if todo:
            # The first calls of a process load the model and the integral library.
            run_molecule(WATER, method, args.kind, 2)
        for k, geometry in enumerate(tqdm(todo, desc=args.kind, unit="mol")):
            first = tuple(_RUNS)[k % 2]
            rows.append(run_molecule(geometry, method, args.kind, args.steps, first))
            content = {"environment": environment(), "settings": settings, "rows": rows}
            write_json(args.json, content)
        print(table(rows))
        return 0

    return exit_status(run, "interrupted; the same command goes on")
