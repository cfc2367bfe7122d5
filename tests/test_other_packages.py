"""Objects of other packages are served right or refused by name, never half and never silently."""

import importlib
import re
import subprocess
import sys
from textwrap import dedent

import numpy as np
import pytest
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, scf
from pyscf.dft import numint

from pyscf_deqh import UnsupportedMoleculeError, deqh_guess
from pyscf_deqh.after_import import AfterImport
from pyscf_deqh.fock.functional import Functional

pytestmark = pytest.mark.usefixtures("coarse_grids")

# Stand-ins with the guesses of gpu4pyscf: its classes are none of PySCF's and hold the function
# that PySCF had when they were imported (1.8.1), or one of their own that takes any unknown key for
# minao (1.9.0). Without a GPU the rest is PySCF's.
GPU4PYSCF = {
    "1.8.1": """
        from pyscf.scf import hf as hf_cpu
        get_init_guess = hf_cpu.SCF.get_init_guess
    """,
    "1.9.0": """
        def get_init_guess(self, mol=None, key="minao", **kwargs):
            if not isinstance(key, str):
                return key
            logger.info(self, "Initial guess from %s", key)
            return self.init_guess_by_minao(mol)
    """,
}
STAND_IN = """
from pyscf import lib
from pyscf.lib import logger
from pyscf.scf import hf

class SCF(lib.StreamObject):
    _keys = {"mol", "init_guess"}
    def __init__(self, mol):
        self.mol, self.verbose, self.stdout = mol, mol.verbose, mol.stdout
        self.init_guess = "minao"
    def init_guess_by_minao(self, mol=None):
        return hf.init_guess_by_minao(self.mol if mol is None else mol)
"""
ROHF = """
from . import hf
class ROHF(hf.SCF):
    get_init_guess = hf.SCF.get_init_guess
"""
SCRIPT = """
import numpy as np
from pyscf import gto
from pyscf.scf import hf
{imports}
mol = gto.M(atom="O 0 0 .119; H 0 .763 -.477; H 0 -.763 -.477", basis="def2-svp", verbose=4)
for cls in (gpu4pyscf.scf.hf.SCF, gpu4pyscf.scf.rohf.ROHF):
    mf = cls(mol)
    mf.init_guess = "deqh"
    dm = mf.get_init_guess(mol, mf.init_guess)
    assert np.allclose(dm, hf.init_guess_by_minao(mol))
    assert "UnsupportedMoleculeError" in mf.deqh_report.fallback
    mf.check_sanity()
    assert np.allclose(mf.get_init_guess(mol, "minao"), dm)
try:
    mf.apply(pyscf_deqh.deqh_guess)
except pyscf_deqh.UnsupportedMoleculeError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("version", GPU4PYSCF)
@pytest.mark.parametrize("order", ["pyscf_deqh, gpu4pyscf.scf", "gpu4pyscf.scf, pyscf_deqh"])
def test_gpu4pyscf_by_name_says_that_it_is_minao(version, order, tmp_path):
    folder = tmp_path / "gpu4pyscf" / "scf"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("from . import hf, rohf\n")
    method = "".join(f"    {line}\n" for line in dedent(GPU4PYSCF[version]).splitlines())
    (folder / "hf.py").write_text(STAND_IN + method)
    (folder / "rohf.py").write_text(ROHF)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(imports=f"import {order}"))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = "No DEQH guess: UnsupportedMoleculeError: no guess for gpu4pyscf's objects: "
    assert (done.stdout + done.stderr).count(words) == 2
    assert "The minao guess is used instead." in done.stdout + done.stderr
    assert "refused: no guess for gpu4pyscf's objects: " in done.stdout
    assert "does not have attributes" not in done.stderr


def test_a_module_is_imported_whatever_becomes_of_the_call(tmp_path, monkeypatch):
    (tmp_path / "imported_later.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finder = AfterImport("imported_later", lambda module: module.no_such_name)
    finder.install()
    try:
        with pytest.warns(UserWarning, match="imported_later was left as it is"):
            import imported_later
        assert imported_later.value == 1
        seen = []
        finder.callback = seen.append
        importlib.reload(imported_later)
        assert seen == [imported_later]
    finally:
        sys.meta_path.remove(finder)
        sys.modules.pop("imported_later", None)


class NeuralNumInt(numint.NumInt):
    """As DeepMind's DM21 has it: a subclass with an integration of its own."""

    def nr_rks(self, *args, **kwargs):
        return super().nr_rks(*args, **kwargs)


class SkalaNumInt:
    """As Skala has it: nothing of PySCF's class."""

    def __init__(self):
        self._pyscf = numint.NumInt()
        self.libxc = self._pyscf.libxc

    def nr_rks(self, mol, grids, xc_code, dms, *args, **kwargs):
        return self._pyscf.nr_rks(mol, grids, "pbe", dms, *args, **kwargs)


def _of_the_user(ni):
    ni.nr_rks = ni.nr_rks
    return ni


FOREIGN = {
    "subclass": (NeuralNumInt, "test_other_packages.NeuralNumInt"),
    "another class": (SkalaNumInt, "test_other_packages.SkalaNumInt"),
    "a user's own integration": (lambda: _of_the_user(numint.NumInt()), "NumInt with nr_rks"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_functionals_that_others_evaluate_are_refused_by_name(case, tmp_path):
    make, name = FOREIGN[case]
    log = tmp_path / "log"
    mol = make_mol(WATER, verbose=3, output=str(log))
    mf = dft.RKS(mol, xc="lda,vwn")
    mf._numint = make()
    with pytest.raises(UnsupportedMoleculeError, match=name):
        mf.apply(deqh_guess)
    mf.init_guess = "deqh"
    np.testing.assert_allclose(
        mf.get_init_guess(key="deqh"), mf.get_init_guess(key="minao"), atol=1e-12
    )
    mol.stdout.flush()
    written = log.read_text()
    assert "No DEQH guess: UnsupportedMoleculeError: the functional is evaluated by " in written
    assert re.search(f"evaluated by .*{name}", written)


def test_what_pyscf_itself_leaves_on_its_object_is_served():
    def settings(mf):
        return Functional.of_scf(mf).numint is mf._numint

    mol = make_mol(WATER)
    plain, omega, defined = (dft.RKS(mol, xc="camb3lyp") for _ in range(3))
    omega.omega = 0.5
    defined.define_xc_("pbe", xctype="GGA")
    for mf in (plain, omega, defined, plain.density_fit(), plain.newton(), plain.PCM()):
        assert settings(mf)
    assert Functional.of_scf(dft.GKS(mol, xc="pbe")).name == "pbe"
    two_component = dft.GKS(mol, xc="camb3lyp")
    two_component.omega = 0.5
    assert Functional.of_scf(two_component).exchange == Functional.of_scf(omega).exchange


def test_exchange_is_what_pyscf_takes_of_it():
    """Of a defined functional none, where the name has none: PySCF asks the name."""
    mol = make_mol(FORMAMIDE)
    for name in ("pbe", "b3lyp"):
        mf = dft.RKS(mol, xc=name).define_xc_("pbe", xctype="GGA", hyb=0.25)
        expected = mf.kernel()
        mf.apply(deqh_guess)
        assert mf.kernel() == pytest.approx(expected, abs=1e-8)
        assert mf.cycles == 1


def test_a_subclass_with_a_potential_of_its_own_is_served():
    """The full Fock build holds it, as it holds a solvent."""

    class InAField(dft.rks.RKS):
        def get_veff(self, *args, **kwargs):
            veff = super().get_veff(*args, **kwargs)
            field = 0.02 * self.mol.intor_symmetric("int1e_r")[2]
            from pyscf import lib

            return lib.tag_array(veff + field, ecoul=veff.ecoul, exc=veff.exc, vj=veff.vj,
                                 vk=veff.vk)  # fmt: skip

    energies = {}
    for key in ("minao", "deqh"):
        mf = InAField(make_mol(WATER), xc="pbe")
        mf.init_guess = key
        energies[key] = mf.kernel()
        assert mf.converged
    assert energies["deqh"] == pytest.approx(energies["minao"], abs=1e-7)
    assert isinstance(mf, scf.hf.RHF)
