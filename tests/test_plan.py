"""Expected cost of labels, against sums that can be made by hand."""

import numpy as np
import pytest
from conftest import WATER
from test_data import hydrogen

from pyscf_deqh import ConfigError, DatasetError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.geometry import Geometry
from pyscf_deqh.data.make import plan as plan_module
from pyscf_deqh.data.make.label import LabelSettings, label
from pyscf_deqh.data.make.plan import plan, spread
from pyscf_deqh.graph.basis import n_orbitals

HF = LabelSettings(xc="hf", density_fit=True)


def waters(n):
    numbers, positions = np.array([8, 1, 1]), np.array([r for _, r in WATER])
    shifts = [np.array([4.0 * i, 0, 0]) for i in range(n)]
    return Geometry(np.tile(numbers, n), np.concatenate([positions + s for s in shifts]), {})


def test_orbitals_are_pyscfs():
    assert n_orbitals(waters(2).numbers, "def2-svp") == 48
    assert n_orbitals(waters(1).numbers, "def2-tzvp") == 43


def test_a_sample_has_the_smallest_and_the_largest():
    sizes = [50, 10, 40, 20, 30]
    assert spread(sizes, 3) == [1, 4, 0]
    assert spread(sizes, 9) == [1, 3, 4, 2, 0]


def test_a_power_law_is_added_up(monkeypatch):
    """Seconds of 2e-6 n^3 from three of ten molecules give those of all ten, without an error."""

    def pretend(geometry, *args):
        n = n_orbitals(geometry.numbers, "def2-svp")
        return 2e-6 * n**3, 40 * n**2

    monkeypatch.setattr(plan_module, "timed", pretend)
    molecules = [waters(n) for n in range(1, 11)]
    found = plan(molecules, HF, sample=3, workers=0)
    sizes = 24 * np.arange(1, 11)
    assert found.exponent == pytest.approx(3)
    assert found.core_hours[0] == pytest.approx(2e-6 * (sizes**3).sum() / 3600)
    assert found.core_hours[1] == pytest.approx(0, abs=1e-9)
    assert found.matrix_bytes == (8 * (sizes**2).sum(), 4 * (sizes * (sizes + 1) // 2).sum())
    assert found.graph_bytes == pytest.approx(40 * (sizes**2).sum(), abs=1)
    assert [n for n, _ in found.sample] == [24, 120, 240]


def test_disk_is_what_labels_and_graphs_take(tmp_path):
    molecules = [hydrogen(0.7 + 0.01 * i, id=str(i)) for i in range(4)]
    found = plan(molecules, HF, sample=3, workers=0)
    out = tmp_path / "a.db"
    label(molecules, out, HF, 0, progress=False)
    store = GraphStore(tmp_path, "sad", "def2-svp")
    dataset = HamiltonianDataset([out], "all", store, workers=1, progress=False)
    assert found.graph_bytes == pytest.approx(sum(size for _, size in dataset.sizes()), rel=0.02)
    assert found.matrix_bytes[0] == 4 * 8 * 100


def test_what_has_no_label_is_said(monkeypatch, capsys, tmp_path):
    lithium = Geometry(np.array([3]), np.zeros((1, 3)), {"name": "lithium"})
    with pytest.raises(DatasetError, match="2 molecules got a label: lithium: "):
        plan([hydrogen(), hydrogen(0.8), lithium], HF, sample=3, workers=0)
    with pytest.raises(ConfigError, match="at least 3"):
        plan([hydrogen()], HF, sample=2)
    lines = "".join(f"2\n\nH 0 0 0\nH 0 0 {0.7 + 0.1 * i}\n" for i in range(3))
    (tmp_path / "a.xyz").write_text(lines)
    command = ["plan", str(tmp_path / "a.xyz"), "--xc", "hf", "--workers", "0", "--cores", "1", "8"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 molecules\ncore seconds by orbitals: 10: " in printed
    assert "on 8 such cores: " in printed
