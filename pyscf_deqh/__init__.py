"""DEQHNet for PySCF: start SCF calculations from a Hamiltonian that a network solved for.

Importing the package makes ``mf.init_guess = 'deqh'`` known to every molecular SCF class of PySCF.
PyTorch is imported only once a model is used.
"""

from .checkpoint import list_models, load_model
from .errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    DEQHError,
    NotEnoughMemoryError,
    NumericalError,
    OutputError,
    UnsupportedMoleculeError,
)
from .fock.diis import CorrectedCycle, corrected_diis
from .plugin import deqh_guess, init_guess_by_deqh, register
from .predict import predict_hamiltonian, predict_hamiltonians
from .report import Report, Scan
from .single_build import SingleBuild, single_build

__version__ = "0.2.0.dev0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorrectedCycle",
    "DEQHError",
    "DatasetError",
    "NotEnoughMemoryError",
    "NumericalError",
    "OutputError",
    "Report",
    "Scan",
    "SingleBuild",
    "UnsupportedMoleculeError",
    "corrected_diis",
    "deqh_guess",
    "init_guess_by_deqh",
    "list_models",
    "load_model",
    "predict_hamiltonian",
    "predict_hamiltonians",
    "single_build",
]

register()
