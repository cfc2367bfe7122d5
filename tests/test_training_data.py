"""The list of geometries for training: whole, and without molecules of tests."""

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_mol

from pyscf_deqh import predict_hamiltonian
from pyscf_deqh.benchmark.sets import FOLDER
from pyscf_deqh.data.make.label import LabelSettings, label
from pyscf_deqh.data.make.recipe import read_recipes
from pyscf_deqh.data.splits import split_of
from pyscf_deqh.data.xyz import Geometry, parse_comment
from pyscf_deqh.train.__main__ import main as train

LISTS = Path(__file__).parents[1] / "models" / "training-data"


@pytest.fixture(scope="module")
def chosen():
    return read_recipes(LISTS / "geometries.smi")


def test_rows_have_ids_of_their_own_and_a_split(chosen):
    assert len({recipe.whole_number("id") for recipe in chosen}) == len(chosen)
    # Databases and stores know a row's molecule by qm9_id, or else its id.
    splits = Counter(split_of(recipe.molecule) for recipe in chosen)
    assert set(splits) == {"train", "valid"}
    assert 0.05 < splits["valid"] / len(chosen) < 0.15
    assert all(0 <= float(recipe.info["temperature"]) <= 500 for recipe in chosen)


def test_tests_are_of_the_test_split_alone(chosen):
    tests = read_recipes(LISTS / "test.smi")
    assert {split_of(recipe.molecule) for recipe in tests} == {"test"}
    ids = {recipe.whole_number("id") for recipe in [*tests, *chosen]}
    assert len(ids) == len(tests) + len(chosen)  # of one store


def test_the_commands_make_a_model_in_a_short_form(tmp_path, quick_workers):
    """`make data` and `make model`, of three molecules and two steps."""
    geometries = [
        Geometry(np.array(numbers), np.array(positions, float), {"id": str(i)})
        for i, numbers, positions in (
            (1, [1, 17], [[0, 0, 0], [0, 0, 1.3]]),
            (2, [8, 1, 1], [[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]]),
            (3, [1, 9], [[0, 0, 0], [0, 0, 0.92]]),
        )
    ]
    labels, run, model = tmp_path / "a.store", tmp_path / "run", tmp_path / "model"
    settings = LabelSettings(density_fit=True, conv_tol=1e-8)
    found = label(geometries, labels, settings, workers=0, progress=False, steps=4)
    assert found == (3, {})
    options = {
        "config": LISTS / "so2net.yaml", "data.databases": f"['{labels}']",
        "data.cache": tmp_path / "cache", "run.folder": run, "run.max_epochs": 1,
        "run.batches_per_epoch": 2, "run.validate_every": 1,
    }  # fmt: skip
    assert train([f"--{name}={value}" for name, value in options.items()]) == 0
    assert train(["export", str(run), str(model), "--half"]) == 0
    bromide = make_mol([("H", (0, 0, 0)), ("Br", (0, 0, 1.41))])
    prediction = predict_hamiltonian(bromide, model)
    assert prediction.iterations == 1


def test_the_next_model_knows_the_elements_of_its_data(chosen):
    chem = pytest.importorskip("rdkit.Chem")
    config = yaml.safe_load((LISTS / "so2net.yaml").read_text())
    atoms = (a for r in chosen for a in chem.MolFromSmiles(r.smiles).GetAtoms())
    assert {1} | {atom.GetAtomicNum() for atom in atoms} == set(config["data"]["elements"])


@pytest.fixture(scope="module")
def choose():
    pytest.importorskip("rdkit")
    spec = importlib.util.spec_from_file_location("choose", LISTS / "choose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("known", "form"),
    [
        ("CCCC(CCC)C(=O)[O-]", "CCCC(CCC)C(=O)O"),
        ("O=S(=O)([O-])c1ccc2ccccc2c1", "O=S(=O)(O)c1ccc2ccccc2c1"),
        ("[NH3+]CCS(=O)(=O)[O-]", "NCCS(=O)(=O)O"),
        ("O=C(O)c1ccccc1C(=O)O", "O=C(O)c1ccccc1C(=O)[O-]"),
        ("O=C([O-])CC(O)(CC(=O)[O-])C(=O)O", "O=C(O)CC(O)(CC(=O)O)C(=O)O"),
        ("c1cc[cH-]c1", "C1=CCC=C1"),
        ("OC1=NN=C(O)C=C1", "O=c1ccc(=O)[nH][nH]1"),
        ("C[C@H](N)O", "C[C@@H](N)O"),
    ],
)
def test_other_forms_of_a_molecule_are_known(choose, known, form):
    assert choose.Forms([known]).have(form)
    assert choose.Forms([form]).have(known)


@pytest.mark.parametrize(
    ("known", "other"), [("CC=CCO", "C=CCCO"), ("CCO", "COC"), ("c1ccccc1", "C1CCCCC1")]
)
def test_other_molecules_are_not(choose, known, other):
    assert not choose.Forms([known]).have(other)


@pytest.mark.slow
def test_no_molecule_is_for_test_in_another_form(choose, chosen):
    lists = [*read_recipes(LISTS / "molecules.smi"), *read_recipes(LISTS / "qm9.smi")]
    tests = [r.smiles for r in lists if split_of(r.molecule) == "test"]
    forms = choose.Forms([*tests, *choose.benchmark_molecules()])
    assert not [recipe.smiles for recipe in chosen if forms.have(recipe.smiles)]
    trained = choose.Forms(recipe.smiles for recipe in chosen)
    tests = read_recipes(LISTS / "test.smi")
    assert not [recipe.smiles for recipe in tests if trained.have(recipe.smiles)]


def test_no_molecule_is_for_test_anywhere(chosen):
    chem = pytest.importorskip("rdkit.Chem")

    def flat(smiles):
        return chem.MolToSmiles(chem.MolFromSmiles(smiles), isomericSmiles=False)

    lists = [*read_recipes(LISTS / "molecules.smi"), *read_recipes(LISTS / "qm9.smi")]
    by_split = {"train": set(), "valid": set(), "test": set()}
    for recipe in lists:
        by_split[split_of(recipe.molecule)].add(flat(recipe.smiles))
    for path in [*sorted(FOLDER.glob("*.smi")), *sorted(FOLDER.glob("*_test.xyz"))]:
        for line in path.read_text().splitlines():
            if path.suffix == ".smi" and line.strip() and not line.startswith("#"):
                by_split["test"].add(flat(line.split()[0]))
            elif smiles := parse_comment(line).get("smiles"):
                by_split["test"].add(flat(smiles))
    for recipe in chosen:
        name = flat(recipe.smiles)
        assert name not in by_split["test"], recipe.smiles
        if split_of(recipe.molecule) == "train":
            assert name not in by_split["valid"], recipe.smiles
