"""Runs of many SCFs through PySCF's own drivers: optimizations, dynamics, scans, differences."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pyscf import gto, lib
from pyscf.data import radii

from ..errors import ConfigError
from ..plugin import deqh_guess
from ..pyscf_api import full_builds
from .scf_runs import Method, keeps_integrals_without_pytorch

FEMTOSECOND = 41.341374575751  # atomic units of time
TIME_STEP = 0.5  # of molecular dynamics, fs
_DISPLACEMENT = 1e-2  # of finite differences, bohr
# A relaxed scan: half a turn in so many points.
_SCAN_POINTS = 7
# Of the sum of covalent radii: atoms that are nearer are bonded, and by a single bond beyond the
# other.
_BONDED, _SINGLE = 1.3, 0.95


class _Counted:
    """The scanner of a method, whose SCFs are timed and counted.

    Attributes:
        scanner: energies and gradients.
        builds: full Fock matrices of each SCF.
        seconds: of all SCFs.
        failed: SCFs that did not converge.
    """

    def __init__(self, mol: Any, method: Method, guess: bool):
        mf = method.scf(mol)
        if guess:
            deqh_guess(mf, method.model, method.device)
        elif keeps_integrals_without_pytorch(mol, method):
            # Not mol.incore_anyway, which PySCF's dynamics take for their own.
            mf._is_mem_enough = lambda: True
        self.scanner = mf.nuc_grad_method().as_scanner()
        self.builds: list[int] = []
        self.seconds, self.failed = 0.0, 0
        base = self.scanner.base
        kernel = base.kernel

        def timed(*args: Any, **kwargs: Any) -> float:
            started = time.perf_counter()
            try:
                return kernel(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started
                self.builds.append(full_builds(base))
                self.failed += not base.converged

        base.kernel = timed

    def row(self, seconds: float, **results: Any) -> dict[str, Any]:
        counts = {"builds": self.builds, "scfs_not_converged": self.failed}
        return {"seconds": seconds, "scf_seconds": self.seconds, **counts, **results}


def optimize(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """One geometry optimization by geomeTRIC, with its default thresholds."""
    return _by_geometric(_Counted(mol, method, guess), steps)


def torsion(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """A relaxed scan by geomeTRIC: half a turn about a bond, in seven optimizations.

    Raises:
        ConfigError: there is no bond to turn.
    """
    atoms = rotatable(mol)
    angle = _dihedral(mol.atom_coords()[list(atoms)])
    numbers = " ".join(str(atom + 1) for atom in atoms)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(
            f"$scan\ndihedral {numbers} {angle:.4f} {angle + 180:.4f} {_SCAN_POINTS}\n"
        )
        counted, here = _Counted(mol, method, guess), Path.cwd()
        os.chdir(folder)  # where geomeTRIC writes the scan
        try:
            return _by_geometric(counted, steps, constraints=constraints.name)
        finally:
            os.chdir(here)


def _by_geometric(counted: _Counted, steps: int, **options: Any) -> dict[str, Any]:
    from pyscf.geomopt import geometric_solver

    started = time.perf_counter()
    # geomeTRIC prints pages.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        converged, last = geometric_solver.kernel(
            counted.scanner, assert_convergence=False, maxsteps=steps, **options
        )
    seconds = time.perf_counter() - started
    return counted.row(
        seconds, converged=bool(converged), energy=float(counted.scanner.base.e_tot),
        positions=last.atom_coords().tolist(),
    )  # fmt: skip


def _velocities(mol: Any) -> np.ndarray:
    from pyscf import md

    rng = np.random.default_rng(0)
    return md.distributions.MaxwellBoltzmannVelocity(mol, 300.0, rng=rng)


def _move(
    scanner: Any, velocities: np.ndarray, steps: int, watch: Callable[[dict], None] | None = None
) -> Any:
    """Molecular dynamics at constant energy, by PySCF's driver."""
    from pyscf import md

    driver = md.NVE(scanner, dt=TIME_STEP * FEMTOSECOND, steps=steps, veloc=velocities)
    driver.verbose, driver.stdout = 0, io.StringIO()  # it prints every frame
    driver.callback = watch
    return driver.run()


def dynamics(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """Molecular dynamics at constant energy, 300 K at the start."""
    counted = _Counted(mol, method, guess)
    energies: list[float] = []
    started = time.perf_counter()
    driver = _move(
        counted.scanner, _velocities(mol), steps,
        lambda envs: energies.append(float(envs["current_frame"].etot)),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    return counted.row(
        seconds, converged=True, energy=energies[-1], energies=energies,
        positions=driver.mol.atom_coords().tolist(),
    )  # fmt: skip


def reversal(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """Molecular dynamics forward, and back with the velocities turned: how far the atoms end from
    where they began, which exact forces would bring them back to."""
    counted, start = _Counted(mol, method, guess), mol.atom_coords()
    started = time.perf_counter()
    driver = _move(counted.scanner, _velocities(mol), steps)
    driver = _move(counted.scanner, -driver.veloc, steps)
    seconds = time.perf_counter() - started
    last = driver.mol.atom_coords()
    return counted.row(
        seconds, converged=True, energy=float(driver.epot), positions=last.tolist(),
        measures={"deviation, angstrom": float(abs(last - start).max()) * lib.param.BOHR},
    )  # fmt: skip


def replay(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """Errors of energies and forces at the frames of a trajectory, against SCFs that are converged
    to 1e-12 hartree from PySCF's own starts."""
    exact = method.scf(mol).set(conv_tol=1e-12).nuc_grad_method().as_scanner()
    frames: list[tuple[np.ndarray, float, np.ndarray]] = []

    def watch(envs: dict) -> None:
        frame = envs["current_frame"]
        frames.append((frame.coord.copy(), float(frame.epot), envs["scanner"].de.copy()))

    _move(exact, _velocities(mol), steps, watch)
    counted = _Counted(mol, method, guess)
    errors: list[tuple[float, float]] = []
    started = time.perf_counter()
    for positions, energy, gradient in frames:
        found, force = counted.scanner(mol.set_geom_(positions, unit="Bohr", inplace=False))
        errors.append((found - energy, float(np.sqrt(np.mean((force - gradient) ** 2)))))
    seconds = time.perf_counter() - started
    energies, forces = np.sqrt(np.mean(np.square(errors), axis=0))
    by_frame = [energy for energy, _ in errors]
    return counted.row(
        seconds, converged=True, energy=float(found), positions=frames[-1][0].tolist(),
        energy_errors=by_frame,
        measures={"error of energies, hartree": float(energies),
                  "error of forces, hartree/bohr": float(forces)},
    )  # fmt: skip


def hessian(mol: Any, method: Method, guess: bool, steps: int) -> dict[str, Any]:
    """Second derivatives by central differences of gradients, and harmonic frequencies (1/cm,
    imaginary ones negative)."""
    from pyscf.hessian import thermo
    from pyscf.tools import finite_diff

    counted = _Counted(mol, method, guess)
    started = time.perf_counter()
    matrix = finite_diff.kernel(counted.scanner, displacement=_DISPLACEMENT)
    seconds = time.perf_counter() - started
    found = np.asarray(thermo.harmonic_analysis(mol, matrix)["freq_wavenumber"])
    frequencies = found.real - found.imag
    return counted.row(
        seconds, converged=True, energy=float(counted.scanner.base.e_tot),
        frequencies=frequencies.tolist(), positions=mol.atom_coords().tolist(),
    )  # fmt: skip


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "optimize": optimize, "torsion": torsion, "hessian": hessian, "dynamics": dynamics,
    "replay": replay, "reversal": reversal,
}  # fmt: skip


def rotatable(mol: Any) -> tuple[int, int, int, int]:
    """Four atoms whose dihedral turns the first single bond between heavy atoms that is in no ring
    and has another heavy atom at either end.

    Raises:
        ConfigError: there is none.
    """
    numbers = np.array([gto.charge(mol.atom_symbol(atom)) for atom in range(mol.natm)])
    positions = mol.atom_coords()
    reach = radii.COVALENT[numbers][:, None] + radii.COVALENT[numbers]
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    bonded = (distances < _BONDED * reach) & ~np.eye(len(numbers), dtype=bool)
    heavy = numbers > 1
    for j, k in np.argwhere(np.triu(bonded & (distances > _SINGLE * reach))):
        left = [i for i in np.flatnonzero(bonded[j] & heavy) if i != k]
        right = [m for m in np.flatnonzero(bonded[k] & heavy) if m != j]
        if heavy[j] and heavy[k] and left and right and k not in _reached(bonded, j, k):
            return int(left[0]), int(j), int(k), int(right[0])
    raise ConfigError("no bond of the molecule can be turned")


def _reached(bonded: np.ndarray, start: int, avoided: int) -> set[int]:
    """Atoms that bonds lead to, but for the bond between both."""
    found, todo = {start}, [start]
    while todo:
        atom = todo.pop()
        for other in map(int, np.flatnonzero(bonded[atom])):
            if other not in found and (atom, other) != (start, avoided):
                found.add(other)
                todo.append(other)
    return found


def _dihedral(positions: np.ndarray) -> float:
    """Of four points, in degrees."""
    first, axis, last = np.diff(positions, axis=0)
    left, right = np.cross(first, axis), np.cross(axis, last)
    sine = np.linalg.norm(axis) * (first @ right)
    return float(np.degrees(np.arctan2(sine, left @ right)))
