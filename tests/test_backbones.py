"""Symmetries that every backbone has to keep, and the registry that knows them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import FORMAMIDE, WATER

from pyscf_deqh import testing
from pyscf_deqh.errors import ConfigError
from pyscf_deqh.nn import backbones, phisnet, qhnet, schnorb, so2net

SO2NET = {"natural_channels": 6, "pseudo_channels": 3, "injection_layers": 1, "filter_layers": 1,
          "invariants": 12, "radial_functions": 8}  # fmt: skip
QHNET = {"layers": 4, "channels": 8, "bottleneck_channels": 4, "radial_functions": 8, "heads": 2,
         "head_channels": (4, 2, 1)}  # fmt: skip
DEEPH = {"atom_features": 8, "pair_features": 32}
SCHNORB = {"features": 12, "factors": 12, "directions": 3, "gaussians": 8}
PHISNET = {"channels": 6, "radial_functions": 8, "modules": 2}
MODELS = {
    "so2net": ("so2net", SO2NET),
    "so2net-without-reference": ("so2net", SO2NET | {"reference": "none"}),
    "deqhnet": ("qhnet", QHNET),
    "deqhnet-without-overlap": ("qhnet", QHNET | {"overlap": False}),
    "qhnet": ("qhnet", QHNET | {"overlap": False, "self_consistent": False}),
    "qhnet-with-overlap": ("qhnet", QHNET | {"self_consistent": False}),
    "phisnet": ("phisnet", PHISNET),
    "phisnet-with-reference": ("phisnet", PHISNET | {"reference": "sad"}),
    "deeph": ("deeph", DEEPH),
    "deeph-with-reference": ("deeph", DEEPH | {"reference": "sad"}),
    "phisnet-self-consistent": ("phisnet", PHISNET | {"self_consistent": True}),
    "schnorb": ("schnorb", SCHNORB),
    "schnorb-with-reference": ("schnorb", SCHNORB | {"reference": "sad"}),
}


def untrained(name, options):
    """A network in which nothing is zero because it is at first."""
    model = testing.untrained(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return untrained(*MODELS[request.param])


@pytest.mark.parametrize(
    "check",
    [check for check in testing.CHECKS if check is not testing.check_rotation],
    ids=lambda check: check.__name__,
)
def test_checks(model, check):
    check(model)


def test_rotations(model):
    if isinstance(model.backbone, schnorb.SchNOrb):
        pytest.skip("it learns rotations")
    # The diagonal reduction divides vectors that symmetry makes zero by 1e-3, and the layer norm
    # after it by another 3e-3.
    testing.check_rotation(model, 1e-7 if hasattr(model.backbone, "reduction") else 1e-10)


def test_reflection():
    """Products of pseudovectors and vectors mix in QHNet and PhiSNet, DeepH's frames have a hand.
    SO2Net knows parity."""
    testing.check_reflection(testing.untrained("so2net", **SO2NET), 1e-10)
    for name, options in (("qhnet", QHNET), ("phisnet", PHISNET), ("deeph", DEEPH)):
        with pytest.raises(AssertionError):
            testing.check_reflection(untrained(name, options))


def test_pairs_a_few_at_a_time_give_the_same(model, monkeypatch):
    together = testing.predicted(model, WATER, FORMAMIDE)
    for module in (so2net, qhnet, phisnet):
        monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 8)
    found = testing.predicted(model, WATER, FORMAMIDE)
    torch.testing.assert_close(found, together, atol=1e-9, rtol=0)


class Broken(so2net.SO2Net):
    """Breaks whatever symmetry a factor breaks that is its own for each matrix element."""

    kind = ""

    def hamiltonian(self, state, injected):
        h = super().hamiltonian(state, injected)
        n = h.shape[-1]
        if self.kind == "rotation":
            return h * torch.linspace(0.5, 1.5, n, dtype=h.dtype).outer(h.new_ones(n))
        return h + self.kind_of_error(h)

    def kind_of_error(self, h):
        return h.mean() if self.kind == "batches" else torch.ones_like(h).triu()


@pytest.mark.parametrize(
    ("kind", "check"),
    [("rotation", testing.check_rotation), ("hermitian", testing.check_hermitian),
     ("rotation", testing.check_translation_and_permutation),
     ("batches", testing.check_batches)],
)  # fmt: skip
def test_checks_find_what_is_broken(kind, check, monkeypatch):
    model = testing.untrained("so2net", **SO2NET)
    model.backbone.__class__ = Broken
    monkeypatch.setattr(Broken, "kind", kind)
    with pytest.raises(AssertionError):
        check(model)


EXAMPLE = Path(__file__).parents[1] / "examples" / "own_backbone.py"


@pytest.fixture(scope="module")
def strangers_package(tmp_path_factory):
    """The example as an installed package that names its backbone as an entry point."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "strange.py").write_text(EXAMPLE.read_text())
    metadata = folder / "strange-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[{backbones.GROUP}]\nscaled-blocks = strange:ScaledBlocks\n"
    )
    assert "scaled-blocks" not in backbones._REGISTERED
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "scaled-blocks"
        backbones._REGISTERED.pop("scaled-blocks", None)
        sys.modules.pop("strange", None)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_a_strangers_backbone(strangers_package, check):
    assert strangers_package in backbones.known_backbones()
    assert backbones.registered(strangers_package).network.__module__ == "strange"
    check(testing.untrained(strangers_package, width=8))


def test_names():
    assert {"qhnet", "so2net", "phisnet"} <= set(backbones.known_backbones())
    config = backbones.config_from("so2net", SO2NET)
    assert backbones.name_of(config) == "so2net"
    backbones.register("so2net", so2net.SO2NetConfig)(so2net.SO2Net)  # once more is no error
    with pytest.raises(ConfigError, match="is the backbone 'so2net' already"):
        backbones.register("so2net", so2net.SO2NetConfig)(qhnet.QHNet)
    with pytest.raises(ConfigError, match="'unknown' is not one of"):
        backbones.registered("unknown")
    with pytest.raises(ConfigError, match="belongs to no backbone"):
        backbones.name_of(object())
