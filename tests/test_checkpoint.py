import copy
import json
import shutil

import pytest
import torch
from conftest import make_mol, small_model

from pyscf_deqh import CheckpointError, list_models, load_model, predict_hamiltonian
from pyscf_deqh.checkpoint import (
    DEFAULT_MODEL,
    ModelSpec,
    basis_of,
    models_folder,
    save_model,
    weights_hash,
)
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph


@pytest.fixture(params=[False, True], ids=["single", "half"])
def half(request):
    return request.param


@pytest.fixture
def exported(tmp_path, template, half):
    model = small_model(template).float()
    spec = ModelSpec("def2-svp", template, model.backbone.config, model.settings)
    save_model(model, spec, tmp_path / "small", half)
    return model, spec, tmp_path / "small"


def test_saved_models_come_back(exported, half):
    model, spec, folder = exported
    loaded, loaded_spec = load_model(folder)
    assert loaded_spec == spec
    parameters = dict(model.backbone.named_parameters())
    for (name, a), (other, b) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        rounded = half and name.removeprefix("backbone.") in parameters
        # Half precision has eleven significant bits; below 6e-8 it has none.
        torch.testing.assert_close(b, a, rtol=2**-11 if rounded else 0, atol=1e-7 if rounded else 0)
    assert not loaded.training
    assert predict_hamiltonian(make_mol(), folder).iterations > 0


def test_the_default_model_is_bundled_with_its_card():
    assert DEFAULT_MODEL in list_models()
    for name in list_models():
        folder = models_folder() / name
        assert (folder / "README.md").is_file()
        assert sum(f.stat().st_size for f in folder.iterdir()) < 25e6
        load_model(name)


@pytest.mark.parametrize("name", list_models())
def test_bundled_models_do_not_amplify_rounding(name):
    model, spec = load_model(name)
    graph = build_graph(make_mol(), spec.reference)
    solved = []
    for precision in (torch.float32, torch.float64):
        batch = collate([graph], spec.template, spec.backbone.cutoff_bohr, precision)
        with torch.no_grad():
            solution = copy.deepcopy(model).to(precision)(batch).hamiltonian
        solved.append((solution - batch.reference).double())
    torch.testing.assert_close(*solved, rtol=0, atol=2e-6)


def test_altered_weights(exported):
    *_, folder = exported
    weights = folder / "model.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[-1] ^= 1
    weights.write_bytes(blob)
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_model(folder)


def test_truncated_weights(exported):
    *_, folder = exported
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or altered"):
        load_model(folder)


def test_missing_weights(exported):
    *_, folder = exported
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot load"):
        load_model(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c | {"format": 99}, "format 99"),
        (lambda c: c | {"backbone": c["backbone"] | {"natural_channels": 7}}, "cannot load"),
        (lambda c: {k: v for k, v in c.items() if k != "basis"}, "cannot load"),
    ],
)
def test_contradicting_configuration(exported, edit, message):
    *_, folder = exported
    path = folder / "config.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_broken_configuration(exported):
    *_, folder = exported
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_model(folder)


def test_unknown_model(tmp_path):
    with pytest.raises(CheckpointError, match="no model 'nowhere'"):
        load_model("nowhere")
    shutil.rmtree(tmp_path)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"format": 1}', '{"format": 1, "template": {"x": 0}}'])
def test_configurations_of_another_form(exported, content):
    folder = exported[-1]
    (folder / "config.json").write_text(content)
    for read in (load_model, weights_hash, basis_of):
        with pytest.raises(CheckpointError):
            read(folder)
