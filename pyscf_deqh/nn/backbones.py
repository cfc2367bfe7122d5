"""The registry of backbones, by whose names configurations and checkpoints know them.

``@register("name", Config)`` adds a network, from any package (docs/add-a-backbone.md). Those of
this package are imported when they are needed, and so are those that an installed package names as
entry points of the group ``pyscf_deqh.backbones``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

import numpy as np
import torch

from ..errors import ConfigError
from ..graph.layout import OrbitalTemplate
from .deqh import Backbone, BackboneConfig

GROUP = "pyscf_deqh.backbones"
_OWN = ("so2net", "qhnet", "phisnet", "deeph", "schnorb")  # modules of this package

_Network = TypeVar("_Network", bound=type[Backbone])


@dataclass(frozen=True)
class Registered:
    """A backbone that is known by a name.

    Attributes:
        network: made of a template and a configuration, see :func:`build_backbone`.
        config: class of its configuration.
    """

    network: type[Backbone]
    config: type


_REGISTERED: dict[str, Registered] = {}


def register(name: str, config: type) -> Callable[[_Network], _Network]:
    """Make a backbone known by a name: a decorator of its class.

    Args:
        name: for configurations and checkpoints.
        config: class of its configuration, see
            :class:`~pyscf_deqh.nn.deqh.BackboneConfig`; of this backbone alone.

    Raises:
        ConfigError: the name is another backbone's.
    """

    def add(network: _Network) -> _Network:
        known = _REGISTERED.get(name)
        if known is not None and _place(known.network) != _place(network):
            raise ConfigError(f"{_place(known.network)} is the backbone {name!r} already")
        _REGISTERED[name] = Registered(network, config)
        return network

    return add


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def known_backbones() -> list[str]:
    """Names of all backbones."""
    others = (point.name for point in entry_points(group=GROUP))
    return sorted({*_OWN, *_REGISTERED, *others})


def registered(name: str) -> Registered:
    """The backbone of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _REGISTERED:
        if name in _OWN:
            import_module(f".{name}", __package__)
        for point in entry_points(group=GROUP, name=name):
            point.load()
    if name not in _REGISTERED:
        raise ConfigError(
            f"backbone {name!r} is not one of {', '.join(known_backbones())}; import the package "
            "that registers it first"
        )
    return _REGISTERED[name]


def config_from(name: str, options: dict[str, Any]) -> BackboneConfig:
    """The configuration of a backbone from its name and options.

    Raises:
        ConfigError: no backbone of that name.
    """
    config: BackboneConfig = registered(name).config(**options)
    return config


def name_of(config: BackboneConfig) -> str:
    """The name of a configuration's backbone.

    Raises:
        ConfigError: it is of none.
    """
    for name, known in _REGISTERED.items():
        if type(config) is known.config:
            return name
    raise ConfigError(f"{_place(type(config))} belongs to no backbone that is registered")


def build_backbone(
    template: OrbitalTemplate,
    config: BackboneConfig,
    onsite_overlaps: Callable[[], np.ndarray] | None = None,
) -> Backbone:
    """An untrained backbone.

    Args:
        template: layout of the blocks.
        config: its kind and hyperparameters.
        onsite_overlaps: makes those of :func:`pyscf_deqh.graph.onsite.onsite_overlaps`, asked for
            by backbones that want them; not needed if a state dict is loaded afterwards.
    """
    network = registered(name_of(config)).network
    make: Callable[..., Backbone] = network
    if network.wants_onsite_overlaps and onsite_overlaps is not None:
        return make(template, config, torch.from_numpy(onsite_overlaps()))
    return make(template, config)
