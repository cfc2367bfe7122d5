import numpy as np
import pytest
from conftest import FORMAMIDE, make_mol
from pyscf import gto

from pyscf_deqh import ConfigError, UnsupportedMoleculeError
from pyscf_deqh.graph.basis import check_basis, check_room, template_of
from pyscf_deqh.graph.layout import OrbitalTemplate


def test_template_of_def2_svp(template):
    assert template.counts == (3, 2, 1)
    assert template.size == 14
    assert template.shells[1] == (0, 0, 1)
    assert template.shells[8] == (0, 0, 0, 1, 1, 2)


@pytest.mark.parametrize("number", [1, 6])
def test_slots_follow_pyscf_labels(template, number):
    """PySCF's own AO labels say which m each function has."""
    order = {"": 0, "y": 0, "z": 1, "x": 2, "xy": 0, "yz": 1, "z^2": 2, "xz": 3, "x2-y2": 4}
    start = {"s": 0, "p": 3, "d": 9}
    first = {"s": 1, "p": 2, "d": 3}
    mol = gto.M(atom=[(number, (0, 0, 0))], basis="def2-svp", spin=number % 2, verbose=0)
    expected = []
    for _, _, shell, m in mol.ao_labels(fmt=None):
        n, l = int(shell[:-1]), shell[-1]
        width = {"s": 1, "p": 3, "d": 5}[l]
        expected.append(start[l] + (n - first[l]) * width + order[m])
    assert template.slots(number).tolist() == expected


def test_template_of_another_basis_needs_no_code():
    template = template_of("def2-tzvp", (1, 6))
    assert template.counts == (5, 3, 2, 1)
    assert OrbitalTemplate.from_config(template.to_config()) == template


def test_slots_of_another_basis_set(template):
    """6-31G* has no p functions at hydrogen; def2-TZVP has more than there is room for."""
    assert template.slots(1, (0, 0)).tolist() == template.slots(1).tolist()[:2]
    assert template.slots(8, (0, 0, 0, 1, 1, 2)).tolist() == template.slots(8).tolist()
    check_room(template, "6-31g*")
    for basis in ("def2-tzvp", "cc-pvtz"):
        with pytest.raises(ConfigError, match=f"{basis} does not fit .* more shells of angular"):
            check_room(template, basis)


def test_unknown_element(template):
    with pytest.raises(UnsupportedMoleculeError, match="atomic number 14"):
        template.slots(14)


def test_check_basis_accepts_the_right_basis(template):
    check_basis(make_mol(), "def2-svp", template.numbers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # The same shells as def2-SVP, other exponents: only a look at the functions tells.
        ({"basis": "cc-pvdz"}, "basis functions of"),
        ({"basis": "def2-tzvp"}, "basis functions of"),
        ({"cart": True}, "cart=True"),
        ({"basis": {"default": "def2-svp", "N": "cc-pvdz"}}, "basis functions of N"),
        ({"ecp": {"C": "crenbl"}}, "ECP"),
    ],
)
def test_check_basis_refuses_others(template, options, message):
    mol = make_mol(**options)
    with pytest.raises(UnsupportedMoleculeError, match=message):
        check_basis(mol, "def2-svp", template.numbers)


def test_check_basis_names_the_unknown_element(template):
    mol = gto.M(atom="Si 0 0 0; H 0 0 1.48; H 1.4 0 -.5; H -.7 1.2 -.5; H -.7 -1.2 -.5",
                basis="def2-svp", verbose=0)  # fmt: skip
    with pytest.raises(UnsupportedMoleculeError, match=r"atom 0 \(Si\); it knows H, C, N, O, F"):
        check_basis(mol, "def2-svp", template.numbers)


def test_basis_given_as_atoms_own_labels(template):
    atoms = [(s + str(i), r) for i, (s, r) in enumerate(FORMAMIDE)]
    check_basis(make_mol(atoms), "def2-svp", template.numbers)
    assert np.isclose(make_mol(atoms).nao, make_mol().nao)
