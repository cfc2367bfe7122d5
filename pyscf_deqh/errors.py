"""Exceptions that the package raises for input it cannot work with."""


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
