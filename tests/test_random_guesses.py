"""Random molecules, methods and settings: a density to start from, or an error that is documented.

``pytest -m slow tests/test_random_guesses.py`` looks at two thousand of them.
"""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyscf import dft, gto, scf
from pyscf.data import radii
from pyscf.data.elements import ELEMENTS

from pyscf_deqh import DEQHError, deqh_guess

KNOWN, OTHERS = ("H", "C", "N", "O", "F"), ("He", "Li", "B", "Si", "S", "Cl", "Ti", "Br", "I")
BASIS = ("def2-svp", "sto-3g", "6-31g", "cc-pvdz", "def2-tzvp", "6-31+g*")
METHODS = ("RHF", "UHF", "ROHF", "GHF", "RKS", "UKS", "ROKS")
XC = ("pbe", "b3lyp", "lda,vwn", "tpss", "camb3lyp")
# Of covalent radii, for neighbours; atoms closer than the first are refused or far from a molecule.
DISTANCES = st.floats(0.75, 2.5)
EXAMPLES = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@st.composite
def molecules(draw):
    """Up to five atoms, each near one that is there already, of any charge and spin."""
    elements = draw(st.lists(st.sampled_from(KNOWN * 2 + OTHERS), min_size=1, max_size=5))
    positions = [np.zeros(3)]
    for element in elements[1:]:
        near = draw(st.integers(0, len(positions) - 1))
        direction = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 3)))
        if np.linalg.norm(direction) < 0.1:
            direction = np.array([0.0, 0.0, 1.0])
        reach = sum(radii.COVALENT[gto.charge(e)] for e in (element, elements[near]))
        step = draw(DISTANCES) * reach * direction / np.linalg.norm(direction)
        positions.append(positions[near] + step)
    charge = draw(st.integers(-1, 2))
    electrons = sum(gto.charge(e) for e in elements) - charge
    spin = electrons % 2 + 2 * draw(st.sampled_from((0, 0, 0, 1, 2)))
    basis = draw(st.sampled_from(BASIS if set(elements) <= {*KNOWN, "Cl", "S"} else BASIS[:1]))
    ecp = {"I": "def2-svp"} if "I" in elements else {}
    if not 0 <= spin <= electrons or electrons == 0:
        return None
    return gto.M(
        atom=list(zip(elements, positions, strict=True)), unit="bohr", basis=basis, ecp=ecp,
        charge=charge, spin=spin, verbose=0, cart=draw(st.booleans()),
        symmetry=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def problems(draw):
    """An SCF object, and options of its guess."""
    mol = draw(molecules())
    if mol is None:
        return None
    name = draw(st.sampled_from(METHODS))
    if mol.spin and name in ("RHF", "RKS"):
        name = f"RO{name[1:]}"
    module = dft if name.endswith("KS") else scf
    mf = getattr(module, name)(mol)
    if module is dft:
        mf.xc = draw(st.sampled_from(XC))
    if draw(st.booleans()):
        mf = mf.density_fit()
    options = {
        "max_cycles": draw(st.sampled_from((0, 1, 24))),
        "accelerate": draw(st.booleans()),
        "start": draw(st.sampled_from(("auto", "auto", "network", "atoms"))),
    }
    return mf, options


def check(mf, dm):
    """As many electrons of either spin as there are, none or one in each direction; whether the
    density is a guess's."""
    mol, overlap = mf.mol, mf.mol.intor("int1e_ovlp")
    report = mf.deqh_report
    dm = np.asarray(dm)
    assert np.isfinite(dm).all()
    np.testing.assert_allclose(dm, np.conj(dm.swapaxes(-1, -2)), atol=1e-9)
    if report.start == "minao" or report.fallback:
        return False  # PySCF's own, which has the electrons of neutral atoms
    if dm.shape == (2 * mol.nao,) * 2:
        overlap = scipy.linalg.block_diag(overlap, overlap)
    densities, expected = (dm, mol.nelec) if dm.ndim == 3 else (dm[None], (mol.nelectron,))
    most = 2.0 if dm.shape == (mol.nao, mol.nao) else 1.0
    root = scipy.linalg.sqrtm(overlap).real
    # PySCF takes a molecule for symmetric, and its orbitals for orthogonal, that nearly is.
    tolerance = 1e-5 if mol.symmetry else 1e-8
    for density, electrons in zip(densities, expected, strict=True):
        assert abs(np.einsum("ij,ji->", density, overlap) - electrons) < tolerance
        occupations = np.linalg.eigvalsh(root @ density @ root)
        assert occupations.min() > -tolerance
        assert occupations.max() < most + tolerance
    return True


def make(problem):
    """Whether there is a guess."""
    if problem is None:
        return False
    mf, options = problem
    try:
        deqh_guess(mf, **options)
        dm = mf.get_init_guess(mf.mol, "deqh")
    except DEQHError:
        return False
    return check(mf, dm)


def many(n):
    """Guesses for so many problems, of which some at least are none of PySCF's densities."""
    made = []

    @settings(max_examples=n, **EXAMPLES)
    @given(problems())
    def each(problem):
        made.append(make(problem))

    each()
    assert sum(made) > n / 4


def test_a_guess_is_a_density_or_a_known_error():
    many(40)


@pytest.mark.slow
def test_two_thousand_guesses():
    many(2000)


@settings(max_examples=40, **EXAMPLES)
@given(
    st.sampled_from(ELEMENTS[1:10]),
    st.lists(st.sampled_from((0.0, 1e-3, 1e8, np.nan, np.inf, -1.5, 2.0)), min_size=3, max_size=3),
)
def test_impossible_places_of_atoms_are_known_errors(element, place):
    mol = gto.M(atom="O 0 0 0", basis="def2-svp", verbose=0, spin=None)
    mol.atom = [("O", (0, 0, 0)), (element, tuple(place))]
    try:
        mol.build(spin=None)
    except Exception:  # PySCF's own refusal
        return
    try:
        mf = deqh_guess(scf.HF(mol))
        dm = mf.get_init_guess(mol, "deqh")
    except DEQHError:
        return
    check(mf, dm)
