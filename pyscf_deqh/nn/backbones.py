"""The backbones that configurations and checkpoints can name, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.layout import OrbitalTemplate

if TYPE_CHECKING:
    from .qhnet import QHNetConfig
    from .so2net import SO2NetConfig

    BackboneConfig = SO2NetConfig | QHNetConfig

# Modules of this package, with the name of the network; its configuration is NAMEConfig.
BACKBONES = {"so2net": "SO2Net", "qhnet": "QHNet"}


def check_kind(kind: str) -> None:
    """Make sure that there is a backbone of this name.

    Raises:
        ConfigError: there is none.
    """
    if kind not in BACKBONES:
        raise ConfigError(f"backbone {kind!r} is not one of {', '.join(BACKBONES)}")


def _module(kind: str):
    check_kind(kind)
    return import_module(f".{kind}", __package__)


def config_from(kind: str, options: dict[str, Any]) -> BackboneConfig:
    """The configuration of a backbone from its name and options.

    Raises:
        ConfigError: no backbone of that name.
    """
    return getattr(_module(kind), f"{BACKBONES[kind]}Config")(**options)


def kind_of(config: BackboneConfig) -> str:
    """The name of a configuration's backbone."""
    return type(config).__module__.rpartition(".")[2]


def build_backbone(
    template: OrbitalTemplate, config: BackboneConfig, onsite_overlaps: Tensor | None = None
) -> nn.Module:
    """An untrained backbone.

    Args:
        template: layout of the blocks.
        config: its kind and hyperparameters.
        onsite_overlaps: of :func:`pyscf_deqh.graph.onsite.onsite_overlaps`, for backbones with a
            diagonal reduction; not needed if a state dict is loaded afterwards.
    """
    kind = kind_of(config)
    network = getattr(_module(kind), BACKBONES[kind])
    if kind == "qhnet":
        return network(template, config, onsite_overlaps)
    return network(template, config)
