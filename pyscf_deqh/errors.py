"""Exceptions that the package raises for input it cannot work with."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
    "geometric": "geomopt",
    "torch_geometric": "pyg",
    "gpu4pyscf": "gpu",
    "cupy": "gpu",
    "distributed": "cluster",
    "dask_jobqueue": "cluster",
    "pyarrow": "screen",
}

# In RuntimeErrors without a class of their own: PyTorch's on a CPU, gpu4pyscf's large arrays.
_NO_MEMORY = ("DefaultCPUAllocator", "cudaErrorMemoryAllocation")


def missing_extra(error: ModuleNotFoundError) -> str:
    """What to tell a user who lacks an optional package; any other missing module is raised."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        raise error
    return f"{package} is not installed: pip install 'pyscf_deqh[{_EXTRAS[package]}]'"


class DEQHError(Exception):
    """Base class of all errors of this package."""


class UnsupportedMoleculeError(DEQHError, ValueError):
    """The molecule or the SCF's class lies outside what the guess can describe (element, basis,
    cell, geometry, spinors, a functional of another package …)."""


class NotEnoughMemoryError(DEQHError, MemoryError):
    """What the guess would hold does not fit into the memory that the SCF allows or the machine
    has."""


class NumericalError(DEQHError, ArithmeticError):
    """Linear algebra failed, or a result holds NaN or the wrong number of electrons."""


class CheckpointError(DEQHError):
    """A checkpoint is missing, incomplete, altered, or of an unknown format."""


class DatasetError(DEQHError, ValueError):
    """A geometry file or database cannot be read, or its content contradicts itself."""


class ConfigError(DEQHError, ValueError):
    """A configuration value is unknown or out of range."""


class OutputError(DEQHError, OSError):
    """A file cannot be written: the disk is full, it is not allowed, or another process writes to
    it. What was there before is kept."""


def exit_status(command: Callable[[], int], interrupted: str) -> int:
    """What a command returns to the shell; errors and interrupts are said on standard error.

    Args:
        command: does the work, and returns its own status.
        interrupted: what to say of an interrupt.
    """
    try:
        try:
            return command()
        except ModuleNotFoundError as error:
            print(f"error: {missing_extra(error)}", file=sys.stderr)
    except DEQHError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except Exception:  # a bug: 1, as Python has it, says that the command has come to its end
        traceback.print_exc()
    return 2


@contextmanager
def own_errors() -> Iterator[None]:
    """Failures of libraries as exceptions of this package.

    Raises:
        NumericalError: linear algebra failed.
        NotEnoughMemoryError: NumPy or PyTorch, on whatever device, got no memory.
    """
    import numpy as np

    try:
        yield
    except DEQHError:
        raise
    except np.linalg.LinAlgError as error:
        raise NumericalError(str(error)) from error
    except MemoryError as error:
        raise NotEnoughMemoryError(str(error) or "no memory left") from error
    except RuntimeError as error:
        # PyTorch has subclasses for linear algebra and the memory of GPUs; of that of a CPU it
        # says so in a plain RuntimeError.
        kind = type(error).__name__
        if kind == "_LinAlgError":
            raise NumericalError(str(error)) from error
        if kind == "OutOfMemoryError" or any(word in str(error) for word in _NO_MEMORY):
            raise NotEnoughMemoryError(str(error)) from error
        raise
