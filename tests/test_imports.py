"""What is imported when, each time in a fresh process."""

import subprocess
import sys

import pytest

GUESS = """
from pyscf import dft, gto
mol = gto.M(atom="O 0 0 .119; H 0 .763 -.477; H 0 -.763 -.477", basis="def2-svp", verbose=0)
from pyscf_deqh.fock import cost
cost.rates = lambda: cost.Rates(fixed=0, imports=0)
mf = dft.RKS(mol, xc="b3lyp")
mf.init_guess = "deqh"
mf.get_init_guess(key=mf.init_guess)
assert mf.deqh_report.model == "b3lyp-def2svp" and mf.deqh_report.fallback is None
"""


def modules_after(code):
    command = f"import sys, pyscf_deqh\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, text=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("", {"torch", "e3nn", "torchdeq", "torch_geometric", "lightning", "safetensors"}),
        (GUESS, {"e3nn", "torch_geometric", "lightning", "ase", "rdkit", "matplotlib", "yaml"}),
        ("from pyscf_deqh.data.geometry import read_geometries", {"torch"}),
    ],
    ids=["the package", "a guess by name", "geometries"],
)
def test_what_is_not_needed_is_not_imported(code, absent):
    assert not modules_after(code) & absent


def test_public_names_of_0_1_0():
    import pyscf_deqh

    names = {"CheckpointError", "ConfigError", "DEQHError", "DatasetError", "deqh_guess",
             "UnsupportedMoleculeError", "init_guess_by_deqh", "list_models", "load_model",
             "predict_hamiltonian"}  # fmt: skip
    assert names <= set(pyscf_deqh.__all__)
    assert all(hasattr(pyscf_deqh, name) for name in pyscf_deqh.__all__)
