"""All experiments in the smallest size, and the parts whose numbers can be checked."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol, small_qhnet
from pyscf import dft, scf

from pyscf_deqh.checkpoint import DEFAULT_MODEL, load_model
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.formats.store import LabelStore
from pyscf_deqh.data.make.convert import convert
from pyscf_deqh.data.make.label import label
from pyscf_deqh.data.record import Record
from pyscf_deqh.data.splits import split_ids
from pyscf_deqh.errors import ConfigError
from pyscf_deqh.experiments import bases, fig6, published, solver, trainings
from pyscf_deqh.experiments.__main__ import NAMES, OTHERS, main
from pyscf_deqh.experiments.cache import ResultCache
from pyscf_deqh.experiments.datasets import Dataset, find_datasets
from pyscf_deqh.experiments.fig4a import is_recorded
from pyscf_deqh.experiments.fig4b import IDENTITY, MINAO, SCF
from pyscf_deqh.experiments.held_out import data_for_testing
from pyscf_deqh.experiments.iteration import count_iterations, iterates, relative_changes
from pyscf_deqh.experiments.options import Options
from pyscf_deqh.experiments.report import spread, with_spread
from pyscf_deqh.experiments.samples import SPLIT_SIZES
from pyscf_deqh.experiments.sizes import size_of
from pyscf_deqh.files import only_writer
from pyscf_deqh.graph.basis import shells_of, template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.qhnet import QHNet
from pyscf_deqh.starts.atoms import AtomsStart


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, quick_workers):
    """The folder of a smoke run of everything."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyscf_deqh.experiments.samples.label", partial(label, workers=0))
        patch.setattr("pyscf_deqh.benchmark.acceleration.warm_up", lambda *args: None)  # no times
        patch.setattr(dft.gen_grid.Grids, "level", 1)
        assert main(["all", "--out", str(folder)]) == 0
        for name in ("rivals", "losses"):
            assert main([name, "--datasets", "water", "--out", str(folder)]) == 0
        for name in ("bases", "solver", "progress"):
            assert main([name, "--out", str(folder)]) == 0
    return folder


def results(folder, name):
    return json.loads((folder / f"{name}.json").read_text())["results"]


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_files(smoke, name):
    content = json.loads((smoke / f"{name}.json").read_text())
    assert content["settings"]["size"] == "smoke"
    assert content["settings"]["seeds"] == [0]
    assert {"pyscf", "torch", "cores", "machine", "pyscf_deqh"} <= set(content["environment"])
    text = (smoke / f"{name}.md").read_text()
    assert text.startswith("# ")
    assert "nan" not in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(columns) == 1
    assert (smoke / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    curves = name in ("table1", "table2", "fig5", "rivals", "losses", "solver")
    assert (smoke / f"{name}-curves.png").is_file() == curves


def test_tables_of_errors(smoke):
    """Every number is there; molecules without data are listed, with the paper's figures."""
    text = (smoke / "table1.md").read_text()
    for molecule, models in published.TABLE1.items():
        for values in models.values():
            assert all(f"{value:.2f}" in text for value in values)
        assert (f"| {molecule} | QHNet | no data |" in text) == (molecule != "water")
    run = results(smoke, "table1")["water"]["deqhnet"]["runs"]["0"]
    assert run["steps"] == size_of("smoke").steps
    assert all(len(v) == SPLIT_SIZES[2] for v in run["test_errors"].values())
    for row in results(smoke, "table2")["in-house"].values():
        low, high = sorted([row["mae_diagonal"]["mean"], row["mae_nondiagonal"]["mean"]])
        assert low < row["mae"]["mean"] < high
        assert row["mae"]["std"] is None
    assert "| in-house | DEQHNet |" in (smoke / "table2.md").read_text()


def test_learning_curves(smoke):
    """What the training's log says of its validations; the last one is of its last step."""
    run = results(smoke, "table1")["water"]["deqhnet"]["runs"]["0"]
    assert run["curve"]["step"] == [size_of("smoke").steps]
    (log,) = smoke.glob("trainings/water-deqhnet-seed0/run/csv/*/metrics.csv")
    assert str(run["curve"]["mae"][0]) in log.read_text()


def test_learning_curves_of_resumed_runs(tmp_path):
    """A run that was cut off behind its last checkpoint has some steps twice."""
    header = "step,train/loss,valid/mae,valid/mae_occupied_energies,valid/cosine_similarity\n"
    for version, rows in ((9, "9,1,,,\n9,,4,5,0.5\n19,,3,4,0.6\n"), (10, "19,,2,4,0.7\n")):
        folder = tmp_path / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(header + rows)
    assert trainings.learning_curve(tmp_path) == {
        "step": [10, 20], "mae": [4, 2], "mae_occupied_energies": [5, 4],
        "cosine_similarity": [0.5, 0.7],
    }  # fmt: skip


def test_networks_are_followed_while_they_learn(smoke):
    """At the step in the midst, and at the end, where it is the network of the table."""
    found = results(smoke, "progress")
    assert list(found) == ["3", "6"]
    assert found["3"]["mae"] != found["6"]["mae"]
    table = results(smoke, "table2")["in-house"]["deqhnet"]["mae"]["mean"]
    assert found["6"]["mae"]["mean"] == pytest.approx(table, rel=1e-6)
    for entry in found.values():
        (row,) = entry["scf"]["rows"]
        assert row["deqh"]["corrected"] == row["deqh"]["fitted_gradients"] == []


def test_acceleration(smoke):
    (content,) = results(smoke, "table3").values()
    for row in content["rows"]:
        # As in the paper, the network alone: no cycles in the guess or in the SCF after it.
        assert row["deqh"]["fitted_gradients"] == row["deqh"]["corrected"] == []
        for ratios in row["ratios"].values():
            assert ratios["optimal_ratio"] < ratios["achieved_ratio"] < 1.0
    mean = np.mean([row["ratios"]["1e"]["full_builds_ratio"] for row in content["rows"]])
    assert f" {mean:.3f} ± " in (smoke / "table3.md").read_text()


def test_models_of_other_splits_are_tested_on_their_own(smoke, tmp_path):
    """Bundled molecules are for test by the split by molecule alone."""
    training = smoke / "trainings"
    water = next(training.glob("water-deqhnet-seed0*/model"))
    assert load_model(water)[1].split_rule == "md17"
    options = Options(size_of("full"), tmp_path, models=(str(water),))
    with pytest.raises(ConfigError, match=r"split rule md17.*--data"):
        data_for_testing(str(water), options)
    with_data = replace(options, data=(smoke / "samples",), split_sizes=SPLIT_SIZES)
    dataset = data_for_testing(str(water), with_data)
    assert (dataset.name, dataset.split_rule) == ("water", "md17")
    assert data_for_testing(DEFAULT_MODEL, with_data) is None
    with pytest.raises(ConfigError, match="split rule md17 with sizes"):
        data_for_testing(str(water), replace(with_data, split_sizes=(4, 2)))
    ethanol = next((smoke / "samples").glob("*ethanol*"), None)
    if ethanol is not None:
        with pytest.raises(ConfigError, match="name its labelled files"):
            data_for_testing(str(water), replace(with_data, data=(ethanol,)))


def test_iterations_during_training(smoke):
    found = results(smoke, "fig4a")
    counts = found["iterations"]["0"]
    assert list(counts) == ["0", "1", "2", "5", "6"]
    for row in counts.values():
        loose, tight = row["0.001"], row["1e-05"]
        assert all(1 <= k <= m <= 40 for k, m in zip(loose, tight, strict=True))
    assert found["pyscf_cycles"][0] > 5


def test_error_per_iteration(smoke):
    """The SCF converges; DEQHNet comes to the same matrix from both starts."""
    for curve in results(smoke, "fig4b")["curves"]:
        assert curve[SCF][-1] < 1e-6 < curve[SCF][0]
        assert curve[MINAO][0] == curve[SCF][0] < curve[IDENTITY][0]
        gaps = np.abs(np.subtract(curve[IDENTITY], curve[MINAO]))
        assert gaps[-1] < gaps[0]


def test_ablation_shares_trainings(smoke):
    found = results(smoke, "fig5")
    variants = ["qhnet", "qhnet+s", "deqhnet-s", "deqhnet"]
    assert list(found["water"]) == variants
    for model in ("qhnet", "deqhnet"):
        assert found["water"][model] == results(smoke, "table1")["water"][model]
    sizes = [found["water"][v]["parameters"] for v in variants]
    assert sizes[0] < sizes[1] == sizes[2] < sizes[3]


def test_rivals_have_the_same_budget(smoke):
    found = results(smoke, "rivals")["water"]
    assert found["deqhnet"] == results(smoke, "table1")["water"]["deqhnet"]
    assert {run["steps"]["mean"] for run in found.values()} == {size_of("smoke").steps}
    assert found["phisnet"]["iterations"]["mean"] == 1
    assert found["deq-phisnet"]["iterations"]["mean"] > 1
    assert found["phisnet"]["parameters"] < found["deq-phisnet"]["parameters"]


def test_losses_of_self_consistency_stand_beside_deqhnet(smoke):
    found = results(smoke, "losses")["water"]
    assert list(found) == ["qhnet", "qhnet-amortized", "qhnet-commutator", "deqhnet"]
    assert found["qhnet"] == results(smoke, "table1")["water"]["qhnet"]
    parameters = {name: run["parameters"] for name, run in found.items()}
    assert parameters["qhnet"] == parameters["qhnet-amortized"] == parameters["qhnet-commutator"]
    errors = [found[name]["mae"]["mean"] for name in ("qhnet", "qhnet-amortized")]
    assert errors[0] != errors[1]


def test_steps_of_a_solver(smoke):
    """The gradient of superposed atoms is PySCF's of the reference's orbitals, up to fits."""
    found = results(smoke, "solver")
    assert found["once"]["iterations"]["mean"] == 1 < found["implicit"]["iterations"]["mean"]
    assert len({run["parameters"] for name, run in found.items() if name != "atoms"}) == 1
    assert all(run["gradient"]["mean"] > 0 for run in found.values())
    others = [found[name]["mae"]["mean"] for name in ("depth", "solution", "next", "commutator")]
    assert len(set(others)) == 4
    file = smoke / "samples-steps" / "molecules.store"
    dataset = Dataset("in-house", (file,), "qm9-id")
    assert dataset.elements == [1, 6, 7, 8, 9]
    chloride = smoke / "chloride.store"
    with LabelStore(chloride, writable=True) as store:
        mol = make_mol([("H", (0, 0, 0)), ("Cl", (0, 0, 1.3))])
        matrix = mol.intor("int1e_kin")
        store.add(Record(1, mol.atom_charges(), mol.atom_coords(unit="Ang"), matrix))
    assert Dataset("in-house", (file, chloride), "qm9-id").elements == [1, 6, 7, 8, 9, 17]
    options = Options(size_of("small"), smoke, data=(chloride,))
    with pytest.raises(ConfigError, match="has 0 steps of each SCF, and 4 are needed"):
        solver.run(options)
    (geometry,) = dataset.geometries("test", 1)
    (gradient,) = solver.start_gradients(AtomsStart(), [geometry], "b3lyp")
    mol = make_mol(geometry.atom())
    mf = dft.RKS(mol, xc="b3lyp")
    reference = dft.RKS(mol, xc="pbe").get_fock(dm=mf.get_init_guess(key="minao"))
    _, c = mf.eig(reference, mf.get_ovlp())
    n = mol.nelectron // 2
    fock = mf.get_fock(dm=2 * c[:, :n] @ c[:, :n].T)
    expected = 2 * np.linalg.norm(c[:, n:].T @ fock @ c[:, :n]) / n**0.5
    assert gradient == pytest.approx(expected, rel=0.02)


def test_trainings_start_from_a_models_weights(smoke, tmp_path, monkeypatch):
    """All ways from the same ones; what was trained from others is not taken for it."""
    dataset = Dataset("in-house", (smoke / "samples-steps" / "molecules.store",), "qm9-id")
    training = trainings.Training("depth", dataset, 0)
    folder = trainings.Training("once", dataset, 0).folder(Options(size_of("smoke"), smoke))
    options = Options(size_of("smoke"), tmp_path, init=str(folder / "model"))
    monkeypatch.setattr(
        trainings, "train", lambda config, resume, init, callbacks: pytest.fail(str(init))
    )
    with pytest.raises(pytest.fail.Exception, match=str(folder / "model")):
        trainings.run_training(training, options)
    assert training.settings(options) != training.settings(replace(options, init=None))


def test_two_basis_sets(smoke):
    found = results(smoke, "bases")
    assert found.pop("least_without_overlap") > 1e-3
    for trained in found.values():
        assert list(trained) == ["def2-svp", "6-31g*", "def2-svp and 6-31g*"]
        assert list(trained["6-31g*"]) == ["6-31g*", "steps"]
        assert list(trained["def2-svp and 6-31g*"]) == ["def2-svp", "6-31g*", "steps"]


def test_the_least_error_of_one_matrix_for_two_basis_sets(smoke):
    """By hand: PySCF's orbitals of the same names, p of hydrogen and the rest."""
    folder = smoke / "samples-bases"
    one, other = (
        Dataset("water", (folder / f"water{k}.db",), "md17", SPLIT_SIZES, (basis,))
        for k, basis in (("", "def2-svp"), ("1", "6-31g*"))
    )
    with open_labels(one.databases[0]) as a, open_labels(other.databases[0]) as b:
        ids = split_ids(a, "test", "md17", SPLIT_SIZES)
        pairs = [(a[i].hamiltonian, b[i].hamiltonian) for i in ids]
    large, small = (make_mol(WATER, basis=basis).ao_labels() for basis in ("def2-svp", "6-31g*"))
    shared = [k for k, name in enumerate(large) if "H 2p" not in name]
    assert [large[k] for k in shared] == small
    total = sum(np.abs(x[np.ix_(shared, shared)] - y).sum() for x, y in pairs)
    assert bases._least(one, other, 0) == pytest.approx(total / len(pairs) / (24**2 + 18**2))


def test_the_overlap_says_the_element_and_the_basis_set_alone():
    """On-site blocks of S are the same for all atoms of an element, wherever they are."""
    blocks = {}
    for basis in ("def2-svp", "6-31g*"):
        template = template_of("def2-svp", (1, 6, 7, 8))
        molecules = [make_mol(atoms, basis=basis) for atoms in (WATER, FORMAMIDE)]
        graphs = [replace(build_graph(m, "none"), shells=shells_of(m)) for m in molecules]
        batch = collate(graphs, template, 15.0, torch.float64)
        found = batch.onsite_blocks(batch.overlap)[..., 0]
        for element in range(4):
            same = found[batch.element == element]
            torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-12, rtol=0)
        blocks[basis] = found[0]  # of oxygen
    assert (blocks["def2-svp"] - blocks["6-31g*"]).abs().max() > 0.01


def test_a_basis_set_changes_no_recipe_and_no_other_experiment(smoke):
    size = size_of("full")
    assert size.recipe("water-6-31gs") == size.recipe("water-both") == size.recipe("water")
    assert size.recipe("stable-id") == size.recipe("in-house") == size.qh9
    data = (smoke / "samples-bases", smoke / "samples" / "molecules.db")
    options = Options(size_of("smoke"), smoke, data=data, split_sizes=SPLIT_SIZES)
    assert list(options.found) == ["water", "water-6-31gs", "in-house"]
    assert list(options.need()) == ["water", "in-house"]
    assert [d.name for d in bases._pair(options)] == ["water", "water-6-31gs"]
    only = replace(options, datasets=("water",))
    assert list(only.found) == ["water", "water-6-31gs"]
    with pytest.raises(ConfigError, match="--data has in-house"):
        bases._pair(replace(options, datasets=("in-house",)))


def test_networks_of_the_ablation_have_as_many_parameters(smoke):
    water = find_datasets((smoke / "samples" / "water.db",), split_sizes=SPLIT_SIZES)["water"]
    template = template_of("def2-svp", water.elements)

    def parameters(variant):
        config = trainings.Training(variant, water, 0).config(Options(size_of("small"), smoke))
        return sum(p.numel() for p in QHNet(template, config.qhnet).parameters())

    most = parameters("deqhnet")
    for variant in ("qhnet", "qhnet+s", "deqhnet-s", "qhnet-amortized", "qhnet-commutator"):
        assert 0.97 < parameters(variant) / most <= 1


def test_noise_is_of_first_order(smoke):
    (water,) = results(smoke, "fig6")["molecules"]
    assert water["slope"] == pytest.approx(1.0, abs=0.02)
    for orbitals in ("occupied", "all"):
        ratio = water["ratio"][orbitals]
        assert ratio["mean"] == pytest.approx(ratio["first_order"], rel=0.05)
        assert ratio["min"] < ratio["mean"] < ratio["max"]


def test_a_second_run_computes_nothing(smoke, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "again"
    shutil.copytree(smoke, folder)
    for name in ("train", "evaluate"):
        monkeypatch.setattr(trainings, name, None)
    assert main(["fig5", "--out", str(folder)]) == 0
    assert results(folder, "fig5") == results(smoke, "fig5")
    assert main(["fig5", "--out", str(folder), "--steps", "7"]) == 2
    assert "other settings (run)" in capsys.readouterr().err


def test_first_order_ratio_of_noise():
    """The shift of a level is c^T N c: its mean absolute value by direct sampling."""
    mol = make_mol(WATER)
    orbitals = scf.RHF(mol).run().mo_coeff[:, :5]
    rng = np.random.default_rng(0)
    noise = [fig6.hermitian_noise(mol.nao, 1e-3, rng) for _ in range(4000)]
    assert np.std(noise) == pytest.approx(1e-3, rel=0.01)
    shifts = np.einsum("pi,dpq,qi->di", orbitals, noise, orbitals)
    sampled = np.abs(shifts).mean() / np.abs(noise).mean()
    assert fig6.first_order_ratio(orbitals) == pytest.approx(sampled, rel=0.02)


def test_published_numbers_agree_with_each_other():
    for models in published.TABLE2.values():
        for diagonal, rest, mean, _, _ in models.values():
            assert rest < mean < diagonal
    assert published.error_pairs()["dynamic-mol"]["qhnet"] == (173.92, 9719.58)
    assert published.error_pairs()["uracil"]["deqhnet"] == (15.07, 107.49)


def test_iterations_are_those_of_the_solver(template):
    """The same fixed point and, for a single molecule, the same number of iterations."""
    network = small_qhnet(template, forward_max_iterations=60, forward_tolerance=1e-9)
    with torch.no_grad():
        for parameter in network.backbone.hamiltonian_blocks.parameters():
            parameter.mul_(0.3)  # a weak H stream, so that f contracts
    graphs = [build_graph(make_mol(atoms), "none") for atoms in (WATER, FORMAMIDE)]
    batch = collate(graphs, template, network.backbone.cutoff, torch.float64)
    with torch.no_grad():
        changes = relative_changes(network, batch, 60, 1e-9)
        steps = count_iterations(changes, 1e-9, 60)
        assert count_iterations(changes, 0.0, 60) == [60, 60]
        for graph, expected in zip(graphs, steps, strict=True):
            single = collate([graph], template, network.backbone.cutoff, torch.float64)
            solution = network(single)
            assert int(solution.iterations[0]) == expected < 60
            found = iterates(network, single, network.initial_hamiltonian(single))
            *_, last = (h for h, _ in zip(found, range(expected + 1), strict=False))
            torch.testing.assert_close(last, solution.hamiltonian, rtol=0, atol=1e-7)


def test_recorded_steps():
    assert [k for k in range(300) if is_recorded(k)] == [0, 1, 2, 5, 10, 20, 50, 100, 200]


def test_spread():
    assert spread([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "n": 2}
    assert with_spread(spread([1.0, 3.0]), 10.0) == "20.0 ± 14.1"
    assert with_spread(spread([1.0]), 1.0, 2) == "1.00"


def test_results_are_kept_and_other_settings_refused(tmp_path):
    path = tmp_path / "a.json"
    assert ResultCache(path, {"x": 1})("key", lambda: [1.5]) == [1.5]
    assert ResultCache(path, {"x": 1})("key", lambda: None) == [1.5]
    with pytest.raises(ConfigError, match="other settings"):
        ResultCache(path, {"x": 2})


def test_data_are_recognised(smoke, tmp_path):
    shutil.copy(smoke / "samples" / "water.db", tmp_path / "schnorb_hamiltonian_malonaldehyde.db")
    for name in ("QH9Stable.db", "mine_0.db", "mine_1.db"):
        shutil.copy(smoke / "samples" / "molecules.db", tmp_path / name)
    found = find_datasets([tmp_path, smoke / "samples" / "water.db"], (6, 3))
    assert set(found) == {"malondialdehyde", "water", "stable-id", "stable-ood", "in-house"}
    assert found["water"].split_sizes == (6, 3)
    assert found["water"].xc == "pbe"
    assert found["stable-ood"].split_rule == "qh9-stable-ood"
    assert [p.name for p in found["in-house"].databases] == ["mine_0.db", "mine_1.db"]
    assert len(found["in-house"].geometries("test", 4)) == 4
    with pytest.raises(ConfigError, match="both water"):
        find_datasets([smoke / "samples", smoke / "samples" / "water.db"], ())
    with pytest.raises(ConfigError, match="no file or folder"):
        find_datasets([tmp_path / "none"], ())
    with (
        only_writer(tmp_path / "mine_0.db"),
        pytest.raises(ConfigError, match=r"mine_0\.db is being written to"),
    ):
        find_datasets([tmp_path], ())
    assert set(find_datasets([tmp_path], ())) == set(found) - {"water"}
    convert(tmp_path / "QH9Stable.db", tmp_path / "qh9.store", progress=False)
    with pytest.raises(ConfigError, match=r"was made of QH9Stable\.db"):
        find_datasets([tmp_path / "qh9.store"], ())


def test_missing_data(tmp_path, capsys):
    assert main(["table1", "--size", "small", "--out", str(tmp_path)]) == 2
    assert "name labelled files" in capsys.readouterr().err
    options = Options(size_of("small"), tmp_path, datasets=("uracil",))
    with pytest.raises(ConfigError, match="no data for uracil"):
        options.need()
