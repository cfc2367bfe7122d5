"""Molecules of every kind that chemists run, each from PySCF's own start and from the guess."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from pyscf import dft, gto, scf
from pyscf.scf.addons import dynamic_occ, frac_occ

from pyscf_deqh import deqh_guess
from pyscf_deqh.fock import cost
from pyscf_deqh.pyscf_api import full_builds

pytestmark = pytest.mark.usefixtures("coarse_grids")

MIX = {"init_guess_breaksym": "mix"}
WATER = "O 0 0 0; H 0 -.757 .587; H 0 .757 .587"
BUTYNE = (
    "C 0 0 2.07195; C 0 0 .60997; C 0 0 -.60997; C 0 0 -2.07195; H 0 1.0207 2.46456;"
    "H -.88395 -.51035 2.46456; H .88395 -.51035 2.46456; H 0 1.0207 -2.46456;"
    "H .88395 -.51035 -2.46456; H -.88395 -.51035 -2.46456"
)
TRIMETHYLTIN = (
    "Sn 0 0 0; C 2.14 0 .3; C -1.07 1.853 .3; C -1.07 -1.853 .3; H 2.4 0 1.36; H 2.53 .89 -.2;"
    "H 2.53 -.89 -.2; H -1.2 2.08 1.36; H -2.04 1.75 -.2; H -.49 2.64 -.2; H -1.2 -2.08 1.36;"
    "H -.49 -2.64 -.2; H -2.04 -1.75 -.2"
)


@dataclass
class Molecule:
    """A molecule and how it is run.

    Attributes:
        builds: full Fock matrices from the guess, at most.
        start: where the guess begins; None where PySCF's own density is right.
        wrap: what is made of the SCF object before it has a guess.
        limit: energy in hartree of the highest state that PySCF's own start leads to, where chance
            decides on it.
        cheap: whether the cost rule leaves it alone; other small ones have a guess all the same.
        settings: attributes of the object; ``xc`` makes it a Kohn-Sham one.
        mol: charge, spin, basis set, ECPs.
    """

    atoms: str
    builds: int
    start: str | None = "network"
    kind: str = "KS"
    wrap: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    mol: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None
    cheap: bool = False

    def scf(self):
        mol = gto.M(atom=self.atoms, verbose=0, **{"basis": "def2-svp"} | self.mol)
        unrestricted = "U" if self.kind.startswith("U") else "R"
        if self.kind.endswith("HF"):
            mf = scf.UHF(mol) if self.kind == "UHF" else scf.hf.RHF(mol)
        else:
            mf = getattr(dft, f"{unrestricted}KS")(mol, xc=self.settings.get("xc", "b3lyp"))
        mf.set(**{name: x for name, x in self.settings.items() if name != "xc"})
        return self.wrap(mf) if self.wrap else mf


def in_water(mf):
    mf = mf.SMD()
    mf.with_solvent.solvent = "water"
    return mf


def hartree_fock(atoms, builds, kind="RHF", wrap=None, settings=None, cheap=False, **mol):
    start = None if kind == "UHF" or wrap or cheap else "network"
    basis = {"basis": "cc-pvdz"}
    return Molecule(atoms, builds, start, kind, wrap, settings or {}, basis | mol, None, cheap)


ECP = {"ecp": "def2-svp"}
BP86 = {"xc": "bp86"}
POPLE = {"basis": "6-311+g(3df,2p)"}
MOLECULES = {
    "H2 at 2 angstrom, broken symmetry": hartree_fock("H 0 0 0; H 0 0 2", 8, "UHF", settings=MIX),
    "H2 at 3 angstrom, broken symmetry": hartree_fock("H 0 0 0; H 0 0 3", 8, "UHF", settings=MIX),
    "H2 at 4 angstrom, broken symmetry": hartree_fock("H 0 0 0; H 0 0 4", 8, "UHF", settings=MIX),
    "O2, singlet": Molecule("O 0 0 0; O 0 0 1.21", 8, None, "UKS"),
    "N2, stretched": Molecule("N 0 0 0; N 0 0 2", 16, None, "UKS", settings=MIX, limit=-109.0359),
    "C2 dication, dynamic occupation": hartree_fock(
        "C 0 0 -.7; C 0 0 .7", 20, wrap=dynamic_occ, charge=2
    ),
    "N2 cation, fractional occupation": hartree_fock(
        "N 0 0 -.7; N 0 0 .7", 20, wrap=frac_occ, charge=1, spin=1
    ),
    "ethylene, UKS singlet": Molecule(
        "C 0 0 .665; C 0 0 -.665; H 0 .923 1.24; H 0 -.923 1.24; H 0 .923 -1.24; H 0 -.923 -1.24",
        5, None, "UKS",
    ),
    "2-butyne, Pople's basis, UKS": Molecule(BUTYNE, 6, None, "UKS", None, BP86, POPLE),
    "2-butyne, Pople's basis": Molecule(BUTYNE, 5, settings=BP86, mol=POPLE),
    "water in PCM": Molecule(WATER, 4, wrap=lambda mf: mf.PCM()),
    "water in SMD": Molecule(WATER, 4, wrap=in_water),
    "water in ddCOSMO": Molecule(WATER, 6, wrap=lambda mf: mf.ddCOSMO()),
    "glycine zwitterion in PCM": Molecule(
        "N -1.9 .1 0; C -.5 -.3 0; C .5 .85 0; O .1 2 0; O 1.7 .5 0; H -2.4 -.75 0;"
        "H -2.05 .65 .83; H -2.05 .65 -.83; H -.3 -.9 .88; H -.3 -.9 -.88",
        4, wrap=lambda mf: mf.PCM(),
    ),
    "water anion, diffuse functions": Molecule(
        WATER, 6, kind="UKS", mol={"basis": "aug-cc-pvdz", "charge": -1, "spin": 1}
    ),
    "water, large basis": Molecule(WATER, 5, mol={"basis": "aug-cc-pvqz"}),
    # It has many solutions, within a millihartree, that are no minima.
    "water, stretched": hartree_fock(
        "O 0 0 0; H 0 -2.757 2.587; H 0 2.757 2.587", 13, cheap=True
    ),
    "water beside a ghost": Molecule(
        f"{WATER}; ghost-O 0 0 -2.9; ghost-H 0 .76 -3.4; ghost-H 0 -.76 -3.4", 4, "atoms"
    ),
    "sodium chloride": Molecule("Na 0 0 0; Cl 0 0 2.4", 4, "atoms"),
    "bromobenzene": Molecule(
        "C 0 1.215 -1.76; C 0 1.207 -.37; C 0 0 .31; C 0 -1.207 -.37; C 0 -1.215 -1.76;"
        "C 0 0 -2.46; Br 0 0 2.21; H 0 2.15 -2.3; H 0 2.14 .18; H 0 -2.14 .18; H 0 -2.15 -2.3;"
        "H 0 0 -3.54",
        4, "atoms",
    ),
    "iodomethane": Molecule(
        "C 0 0 -1.8; I 0 0 .34; H 1.03 0 -2.14; H -.515 .892 -2.14; H -.515 -.892 -2.14",
        4, "atoms", mol=ECP,
    ),
    "titanium tetrachloride": Molecule(
        "Ti 0 0 0; Cl 1.25 1.25 1.25; Cl -1.25 -1.25 1.25; Cl 1.25 -1.25 -1.25;"
        "Cl -1.25 1.25 -1.25",
        4, "atoms",
    ),
    "iron pentacarbonyl": Molecule(
        "Fe 0 0 0; C 0 0 1.81; O 0 0 2.96; C 0 0 -1.81; O 0 0 -2.96; C 1.8 0 0; O 2.95 0 0;"
        "C -.9 1.559 0; O -1.475 2.555 0; C -.9 -1.559 0; O -1.475 -2.555 0",
        4, "atoms",
    ),
    "trimethyltin radical": Molecule(TRIMETHYLTIN, 5, "atoms", "UKS", mol={**ECP, "spin": 1}),
    "oxygen, restricted": hartree_fock("O 0 0 0; O 0 0 1.2", 8),
}  # fmt: skip
SLOW = {
    "2-butyne, Pople's basis, UKS", "2-butyne, Pople's basis", "glycine zwitterion in PCM",
    "water, large basis", "bromobenzene", "titanium tetrachloride", "iron pentacarbonyl",
    "trimethyltin radical",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MOLECULES],
)
def test_a_guess_ends_where_pyscf_does_or_lower_in_few_full_builds(name, monkeypatch):
    molecule = MOLECULES[name]
    if molecule.cheap:
        monkeypatch.setattr("pyscf_deqh.guess.too_cheap", cost.too_cheap)
    own, guessed = molecule.scf().run(), molecule.scf().apply(deqh_guess).run()
    assert own.converged
    assert guessed.converged
    limit = own.e_tot if molecule.limit is None else molecule.limit
    assert guessed.e_tot < limit + 2e-8
    report = guessed.deqh_report
    assert (None if report.fallback else report.start) == molecule.start, report
    assert full_builds(guessed) <= molecule.builds, full_builds(own)
