"""Exceptions that the package raises for input it cannot work with."""

# Packages of optional extras, by the name they are imported with.
_EXTRAS = {
    "lightning": "train",
    "jsonargparse": "train",
    "yaml": "train",
    "tensorboard": "train",
    "matplotlib": "plot",
    "ase": "md",
    "tblite": "md",
    "rdkit": "embed",
}


def missing_extra(error: ModuleNotFoundError) -> str:
    """What to tell a user who lacks an optional package; any other missing module is raised."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        raise error
    return f"{package} is not installed: pip install 'pyscf_deqh[{_EXTRAS[package]}]'"


class DEQHError(Exception):
    """Base class of all errors of this package."""


class UnsupportedMoleculeError(DEQHError, ValueError):
    """The molecule lies outside what the model can describe (element, basis, cell, geometry …)."""


class CheckpointError(DEQHError):
    """A checkpoint is missing, incomplete, altered, or of an unknown format."""


class DatasetError(DEQHError, ValueError):
    """A geometry file or database cannot be read, or its content contradicts itself."""


class ConfigError(DEQHError, ValueError):
    """A configuration value is unknown or out of range."""
