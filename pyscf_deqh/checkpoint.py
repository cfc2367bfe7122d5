"""Models on disk: folders of ``model.safetensors``, ``config.json`` and a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, ConfigError
from .files import replacing, writing
from .graph.layout import OrbitalTemplate
from .process import import_torch, single_precision

if TYPE_CHECKING:
    from .nn.deqh import DEQH, BackboneConfig, SolverSettings

DEFAULT_MODEL = "b3lyp-def2svp"
_FORMAT = 1
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a model around its weights, and what it was trained on.

    Attributes:
        split_rule, split_sizes: of the training, see :mod:`pyscf_deqh.data.splits`; None where it
            is not known.
        split_rows: numbers of rows of the files of labels of each name.
        other_bases: further basis sets of the labels, see
            :class:`~pyscf_deqh.train.config.DataConfig`.
    """

    basis: str
    template: OrbitalTemplate
    backbone: BackboneConfig
    solver: SolverSettings
    split_rule: str | None = None
    split_sizes: tuple[int, ...] = ()
    split_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    other_bases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return self.backbone.reference


def rows_by_name(found: Mapping[str, Any]) -> dict[str, list[int]]:
    """Numbers of rows of the files of each name, as a checkpoint or a model has them; one number
    each in those of before.

    Raises:
        TypeError, ValueError, AttributeError: it is something else.
    """
    return {
        str(name): [int(n)] if isinstance(n, int) else [int(i) for i in n]
        for name, n in found.items()
    }


def models_folder() -> Path:
    """Where the bundled models lie: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "models"


def list_models() -> list[str]:
    """Names of the bundled models.

    Example:

        >>> list_models()
        ['b3lyp-def2svp', 'b3lyp-def2svp-equilibrium']
    """
    folder = models_folder()
    return sorted(p.parent.name for p in folder.glob(f"*/{_CONFIG}")) if folder.is_dir() else []


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_model(model: DEQH, spec: ModelSpec, folder: str | Path, half: bool = False) -> None:
    """Write weights (with ``half`` in half precision) and configuration, which has their hash.

    Raises:
        OutputError: the folder cannot be written to; a model that was there is there still, unless
            the disk fails between its two files.
    """
    from safetensors.torch import save

    from .nn.backbones import name_of

    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    # Half precision rounds a learned weight by less than training leaves it undecided; shifts and
    # scales in hartree are no weights and keep single precision.
    learned = {name for name, _ in model.backbone.named_parameters()} if half else set()
    state = {
        name: (value.half() if name in learned else value).detach().cpu().contiguous()
        for name, value in model.backbone.state_dict().items()
    }
    weights = save(state)
    config = {
        "format": _FORMAT,
        "basis": spec.basis,
        "template": spec.template.to_config(),
        "backbone": {"kind": name_of(spec.backbone)} | spec.backbone.to_config(),
        "solver": spec.solver.to_config(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    if spec.split_rule is not None:
        config["split"] = {
            "rule": spec.split_rule, "sizes": list(spec.split_sizes), "rows": dict(spec.split_rows),
        }  # fmt: skip
    if spec.other_bases:
        config["other_bases"] = list(spec.other_bases)
    with replacing(folder / _CONFIG) as new_config, replacing(folder / _WEIGHTS) as new_weights:
        new_weights.write_bytes(weights)
        new_config.write_text(json.dumps(config, indent=2) + "\n")
        # An interrupt may not leave the configuration of other weights.
        (folder / _CONFIG).unlink(missing_ok=True)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {folder / _CONFIG}: {error}") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != _FORMAT:
        raise CheckpointError(f"{folder} has format {found!r}, this version reads {_FORMAT}")
    return config


def resolve_model(name: str | Path) -> Path:
    """Folder of a bundled model's name, or of a path.

    Raises:
        CheckpointError: neither a bundled model nor a folder with a model.
    """
    folder = models_folder() / str(name) if str(name) in list_models() else Path(name).absolute()
    if (folder / _CONFIG).is_file():
        return folder
    raise CheckpointError(
        f"no model {str(name)!r}; bundled: {', '.join(list_models()) or 'none'}. "
        "A folder made by 'python -m pyscf_deqh.train export' will do as well"
    )


def basis_of(model: str | Path) -> tuple[str, OrbitalTemplate]:
    """A model's basis set, and the elements and orbitals that it knows.

    Raises:
        CheckpointError: no such model, or a damaged one.
    """
    folder = resolve_model(model)
    config = _read_config(folder)
    try:
        return config["basis"], OrbitalTemplate.from_config(config["template"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot read the configuration in {folder}: {error}") from error


def weights_hash(model: str | Path) -> str:
    """SHA-256 of a model's weights, as its configuration has it.

    Raises:
        CheckpointError: no such model.
    """
    folder = resolve_model(model)
    found = _read_config(folder).get("sha256")
    if not isinstance(found, str):
        raise CheckpointError(f"{folder / _CONFIG} does not say which weights it is of")
    return found


def load_model(name: str | Path = DEFAULT_MODEL, device: str = "cpu") -> tuple[DEQH, ModelSpec]:
    """Load a bundled model by name, or any exported model by its folder.

    Args:
        name: of a bundled model, or an exported model's folder.
        device: PyTorch's name of it.

    Returns:
        The model in evaluation mode, float32, on ``device``; and its specification.

    Raises:
        CheckpointError: not found, of another format, truncated or altered.
        RuntimeError: of PyTorch's: no such device.
    """
    import_torch()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .nn.backbones import build_backbone, config_from
    from .nn.deqh import DEQH, SolverSettings

    folder = resolve_model(name)
    config = _read_config(folder)
    weights = folder / _WEIGHTS
    try:
        if _sha256(weights) != config["sha256"]:
            raise CheckpointError(
                f"{weights} is not the file that {_CONFIG} describes (truncated or altered); "
                "install the package again or export the model again"
            )
        backbone = dict(config["backbone"])
        kind = backbone.pop("kind")
        spec = ModelSpec(
            basis=config["basis"],
            template=OrbitalTemplate.from_config(config["template"]),
            backbone=config_from(kind, backbone),
            solver=SolverSettings(**config["solver"]),
            split_rule=config.get("split", {}).get("rule"),
            split_sizes=tuple(config.get("split", {}).get("sizes", ())),
            split_rows=rows_by_name(config.get("split", {}).get("rows", {})),
            other_bases=tuple(config.get("other_bases", ())),
        )
        with single_precision:
            model = DEQH(build_backbone(spec.template, spec.backbone), spec.solver)
        model.backbone.load_state_dict(load_file(weights))
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError,
            SafetensorError, ConfigError) as error:  # fmt: skip
        raise CheckpointError(f"cannot load the model in {folder}: {error}") from error
    return model.eval().requires_grad_(False).to(device), spec
