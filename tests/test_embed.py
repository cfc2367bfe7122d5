"""Geometries from SMILES."""

import subprocess
import sys

import numpy as np
import pytest
from pyscf.data import elements

from pyscf_deqh import ConfigError, DatasetError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.make.embed import _check_bonds, embed, read_smiles
from pyscf_deqh.data.xyz import read_xyz

# Name: SMILES, formula, heavy-atom distances in angstrom from experiment.
MOLECULES = {
    "methyl fluoride": ("CF", "CFHHH", 1.38),
    "acetylene": ("C#C", "CCHH", 1.20),
    "formaldehyde": ("C=O", "CHHO", 1.21),
}
SMILES = {name: entry[0] for name, entry in MOLECULES.items()}


@pytest.fixture
def packages():
    for name in ("rdkit", "ase", "tblite"):
        pytest.importorskip(name)


def test_geometries_are_those_of_the_smiles(packages, tmp_path):
    out = tmp_path / "a.xyz"
    assert embed(SMILES, out, workers=0, progress=False) == (3, {})
    frames = list(read_xyz(out))
    assert [g.info["id"] for g in frames] == ["0", "1", "2"]
    for geometry in frames:
        smiles, formula, length = MOLECULES[geometry.info["name"]]
        assert geometry.info["smiles"] == smiles
        assert "".join(sorted(elements.ELEMENTS[z] for z in geometry.numbers)) == formula
        distance = np.linalg.norm(geometry.positions[0] - geometry.positions[1])
        assert distance == pytest.approx(length, abs=0.03)


def test_positions_are_a_minimum_of_gfn2_xtb(packages, tmp_path):
    from pyscf.data import nist
    from tblite.interface import Calculator

    out = tmp_path / "a.xyz"
    embed({"ethanol": "CCO"}, out, workers=0, progress=False)
    (geometry,) = read_xyz(out)
    calculator = Calculator("GFN2-xTB", geometry.numbers, geometry.positions / nist.BOHR)
    calculator.set("verbosity", 0)
    assert np.abs(calculator.singlepoint().get("gradient")).max() < 1e-3


def test_resuming_gives_the_same_file(packages, tmp_path):
    """After a kill in the middle of a molecule; what is there is not computed again."""
    whole, resumed = tmp_path / "a.xyz", tmp_path / "b.xyz"
    embed(SMILES, whole, workers=0, progress=False)
    embed(dict(list(SMILES.items())[:2]), resumed, workers=0, progress=False)
    with open(resumed, "r+b") as handle:
        handle.truncate(resumed.stat().st_size - 20)
    assert embed(SMILES, resumed, workers=0, progress=False) == (2, {})
    assert resumed.read_bytes() == whole.read_bytes()
    assert embed(SMILES, resumed, workers=0, progress=False) == (0, {})
    with pytest.raises(DatasetError, match="made with seed 0"):
        embed(SMILES, resumed, seed=1, workers=0, progress=False)
    with pytest.raises(DatasetError, match="acetylene is C#C there and CC now"):
        embed({"acetylene": "CC"}, resumed, workers=0, progress=False)
    assert resumed.read_bytes() == whole.read_bytes()


def test_two_workers_write_what_one_process_does(packages, quick_workers, tmp_path):
    """In another order: ids go by the list of molecules, which may grow at its end alone."""
    alone, together = tmp_path / "a.xyz", tmp_path / "b.xyz"
    embed(SMILES, alone, workers=0, progress=False)
    assert embed(SMILES, together, workers=2, progress=False) == (3, {})
    texts = [
        {g.info["id"]: (g.info, g.positions.tolist()) for g in read_xyz(path)}
        for path in (alone, together)
    ]
    assert texts[0] == texts[1]
    with pytest.raises(DatasetError, match="is number 0 there and 1 now: add molecules at the end"):
        embed({"methane": "C", **SMILES}, alone, workers=0, progress=False)


def test_failures_are_listed_and_the_rest_goes_on(packages, tmp_path, capsys):
    source, out = tmp_path / "a.smi", tmp_path / "a.xyz"
    source.write_text("# comment\nnonsense bad\n[CH3] radical\n\nC methane it is\n")
    assert main(["embed", str(source), "--out", str(out), "--workers", "0"]) == 1
    printed = capsys.readouterr().out
    assert "1 molecules written now, 2 failed" in printed
    assert "  bad: ValueError: nonsense is not a SMILES" in printed
    assert "  radical: ValueError: not a closed shell\n" in printed
    assert [g.info["name"] for g in read_xyz(out)] == ["methane it is"]


def test_ions(packages, tmp_path):
    out = tmp_path / "a.xyz"
    assert embed({"ammonium": "[NH4+]", "water": "O"}, out, workers=0, progress=False) == (2, {})
    ion, neutral = read_xyz(out)
    assert ion.whole_number("charge") == 1
    assert "charge" not in neutral.info
    lengths = np.linalg.norm(ion.positions[1:] - ion.positions[0], axis=1)
    np.testing.assert_allclose(lengths, 1.02, atol=0.02)  # experiment, in crystals 1.03


def test_changed_bonds_are_noticed(packages):
    from rdkit import Chem

    molecule = Chem.AddHs(Chem.MolFromSmiles("[H][H].[H][H]"))
    good = np.array([[0, 0, 0], [0.74, 0, 0], [0, 3, 0], [0.74, 3, 0]])
    _check_bonds(molecule, good)
    broken, made = good.copy(), good.copy()
    broken[0, 0] = -1.0
    made[2:, 1] = 0.6
    for positions in (broken, made):
        with pytest.raises(ValueError, match="bonds are not those of the SMILES"):
            _check_bonds(molecule, positions)


def test_smiles_files(tmp_path):
    path = tmp_path / "a.smi"
    path.write_text("# a comment\nC#N  hydrogen cyanide \n\nCC\n")
    assert read_smiles(path) == {"hydrogen cyanide": "C#N", "CC": "CC"}
    path.write_text("C a\nCC a\n")
    with pytest.raises(DatasetError, match="two molecules with the name a"):
        read_smiles(path)
    path.write_text("\n")
    with pytest.raises(DatasetError, match="no molecule"):
        read_smiles(path)
    with pytest.raises(DatasetError, match="cannot read"):
        read_smiles(tmp_path / "none.smi")


def test_bad_output(packages, tmp_path):
    with pytest.raises(ConfigError, match="plain"):
        embed(SMILES, tmp_path / "a.db", workers=0, progress=False)
    stranger = tmp_path / "a.xyz"
    stranger.write_text("1\nmine\nHe 0 0 0\n")
    with pytest.raises(DatasetError, match="not written by this command"):
        embed(SMILES, stranger, workers=0, progress=False)
    assert stranger.read_text() == "1\nmine\nHe 0 0 0\n"


def test_missing_package_is_named(tmp_path):
    (tmp_path / "a.smi").write_text("C methane\n")
    code = (
        "import sys; sys.modules['rdkit'] = None\n"
        "from pyscf_deqh.data.__main__ import main\n"
        "sys.exit(main(['embed', 'a.smi', '--out', 'a.xyz']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "rdkit is not installed: pip install 'pyscf_deqh[embed]'" in done.stderr
    assert not (tmp_path / "a.xyz").exists()
