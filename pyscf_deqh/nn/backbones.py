"""The backbones that configurations and checkpoints can name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..ao import OrbitalTemplate
from ..errors import ConfigError
from .qhnet import QHNet, QHNetConfig
from .so2net import SO2Net, SO2NetConfig

BackboneConfig = SO2NetConfig | QHNetConfig
BACKBONES: dict[str, type[BackboneConfig]] = {"so2net": SO2NetConfig, "qhnet": QHNetConfig}


def config_from(kind: str, options: dict[str, Any]) -> BackboneConfig:
    """The configuration of a backbone from its name and options.

    Raises:
        ConfigError: no backbone of that name.
    """
    if kind not in BACKBONES:
        raise ConfigError(f"backbone {kind!r} is not one of {', '.join(BACKBONES)}")
    return BACKBONES[kind](**options)


def kind_of(config: BackboneConfig) -> str:
    """The name of a configuration's backbone."""
    return next(kind for kind, cls in BACKBONES.items() if isinstance(config, cls))


def build_backbone(
    template: OrbitalTemplate, config: BackboneConfig, onsite_overlaps: torch.Tensor | None = None
) -> nn.Module:
    """An untrained backbone.

    Args:
        template: layout of the blocks.
        config: its kind and hyperparameters.
        onsite_overlaps: of :func:`pyscf_deqh.onsite.onsite_overlaps`, for backbones with a diagonal
            reduction; not needed if a state dict is loaded afterwards.
    """
    if isinstance(config, QHNetConfig):
        return QHNet(template, config, onsite_overlaps)
    return SO2Net(template, config)
