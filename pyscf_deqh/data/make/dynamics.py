"""Engines of molecular dynamics: from positions and velocities now to those some steps later.

Units are those of the files: angstrom, angstrom/fs, fs, kelvin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pyscf import dft, gto, md
from pyscf.data import elements, nist

from ...errors import ConfigError
from ...graph.basis import check_all_electron

# Positions (N, 3) in angstrom and velocities (N, 3) in angstrom/fs.
State = tuple[np.ndarray, np.ndarray]

_FS = 1e-15 * nist.HARTREE2J / nist.HBAR  # a femtosecond in atomic units
# Inverse of the time in which the thermostat changes a velocity. Energies forget their past twice
# as fast: the default equilibration is twenty such times, an interval one.
_FRICTION = 0.02  # 1/fs


@dataclass(frozen=True)
class Engine:
    """Forces and integrator.

    Args:
        interval: time between kept frames, fs.
        timestep: of the integrator, fs.
        equilibration: time that goes by before the interval of the first kept frame, fs.
    """

    name: ClassVar[str]
    interval: float
    timestep: float
    equilibration: float

    def advance(
        self,
        numbers: np.ndarray,
        state: State,
        steps: int,
        temperature: float,
        rng: np.random.Generator,
        charge: int = 0,
    ) -> State:
        """The state after so many steps: a function of the arguments alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class XTB(Engine):
    """Forces of GFN2-xTB (Bannwarth et al. 2019) from tblite, and ASE's Langevin thermostat.

    Raises:
        ConfigError: ASE or tblite is not installed.
    """

    name: ClassVar[str] = "xtb"
    interval: float = 25.0
    timestep: float = 0.5
    equilibration: float = 500.0

    def __post_init__(self) -> None:
        try:
            import ase  # noqa: F401
            import tblite.ase  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "engine xtb needs ase and tblite: pip install 'pyscf_deqh[md]'"
            ) from error

    def advance(
        self,
        numbers: np.ndarray,
        state: State,
        steps: int,
        temperature: float,
        rng: np.random.Generator,
        charge: int = 0,
    ) -> State:
        from ase import Atoms, units
        from ase.md.langevin import Langevin
        from tblite.ase import TBLite

        positions, velocities = state
        calculator = TBLite(charge=charge, verbosity=0)
        atoms = Atoms(numbers, positions, masses=isotope_masses(numbers), calculator=calculator)
        atoms.set_velocities(velocities / units.fs)
        # The centre of mass takes part in the dynamics: where it is held fixed, its share of the
        # kinetic energy goes to the other degrees of freedom, half as much again for water.
        Langevin(
            atoms, self.timestep * units.fs, temperature_K=temperature,
            friction=_FRICTION / units.fs, fixcm=False, rng=rng,
        ).run(steps)  # fmt: skip
        return atoms.get_positions(), atoms.get_velocities() * units.fs


@dataclass(frozen=True)
class DFT(Engine):
    """Kohn-Sham forces and velocity Verlet at constant energy, both from PySCF.

    The defaults are the protocol of QH9-dynamic (Yu et al., NeurIPS 2023): every tenth of 1000
    steps of 0.12 fs.
    """

    name: ClassVar[str] = "dft"
    interval: float = 1.2
    timestep: float = 0.12
    equilibration: float = 0.0
    xc: str = "b3lyp"
    basis: str = "def2-svp"

    def advance(
        self,
        numbers: np.ndarray,
        state: State,
        steps: int,
        temperature: float,
        rng: np.random.Generator,
        charge: int = 0,
    ) -> State:
        positions, velocities = state
        atom = list(zip(numbers.tolist(), positions.tolist(), strict=True))
        check_all_electron(numbers, self.basis)
        mol = gto.M(atom=atom, basis=self.basis, charge=charge, unit="angstrom", verbose=0)
        run = md.NVE(
            dft.RKS(mol, xc=self.xc),
            dt=self.timestep * _FS,
            veloc=velocities / (nist.BOHR * _FS),
            steps=steps + 1,  # PySCF counts the start, where it computes the forces only
        ).run()
        return run.mol.atom_coords(unit="angstrom"), run.veloc * (nist.BOHR * _FS)


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (XTB, DFT)}


def isotope_masses(numbers: np.ndarray) -> np.ndarray:
    """Masses (N,) of the most common isotopes, in unified atomic mass units."""
    return np.array([elements.COMMON_ISOTOPE_MASSES[z] for z in numbers])


def centred(numbers: np.ndarray, state: State) -> State:
    """The state with its centre of mass at the origin, from where a thermostat lets it drift."""
    positions, velocities = state
    masses = isotope_masses(numbers)
    return positions - masses @ positions / masses.sum(), velocities


def thermal_velocities(
    numbers: np.ndarray, temperature: float, rng: np.random.Generator
) -> np.ndarray:
    """Velocities (N, 3) in angstrom/fs from the Maxwell-Boltzmann distribution."""
    kt = temperature * nist.BOLTZMANN / nist.HARTREE2J
    sigma = np.sqrt(kt / (isotope_masses(numbers) * nist.AMU2AU))
    return rng.standard_normal((len(numbers), 3)) * sigma[:, None] * (nist.BOHR * _FS)
