"""Whether fewer Fock matrices are worth what they cost: seconds, by estimate.

The seconds of a full Fock matrix follow from orbitals, electrons, grid points and the kind of
integrals. From the DEQH guess an SCF needs at least six of them less than from minao, and the
fitted matrices in their place take as long as one and a half of them and a fixed time. Where that
fixed time, or that of loading PyTorch, is more than is saved, an SCF is better left alone.

The rates are those of two cores of an AMD EPYC processor; ``python -m pyscf_deqh.benchmark rates``
measures them anew and writes them into the user's cache folder. gpu4pyscf's are of an H200; on
slower GPUs both sides take longer.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyscf import gto

from ..engine import HOST, engine_of
from ..pyscf_api import attribute, functional_kind, has_exchange, holds_integrals, numint_of

if TYPE_CHECKING:
    from pyscf.scf import hf

_SAVED, OWN = 6.0, 1.5  # full Fock matrices, see above
_POINTS = 3000  # of the grid, for each atom, at level 0; PySCF's default is 3
_KINDS = {"LDA": 0.8, "GGA": 1.0, "MGGA": 2.5}  # in sizes of a GGA's


@dataclass(frozen=True)
class Rates:
    """Seconds of a machine.

    Attributes:
        in_core: of J and K from integrals in memory, for each n^4 of n orbitals.
        direct: of J and K from integrals made each time, for each n^3.
        fitted: of J and K from PySCF's fitted integrals, for each n^3 and electron.
        grid: of a GGA, for each grid point and orbital.
        matrix: of what else there is in an SCF cycle.
        fixed: of a guess and corrected cycles, whatever the size.
        imports: of loading PyTorch.
    """

    in_core: float = 3.3e-10
    direct: float = 5.5e-7
    fitted: float = 5e-9
    grid: float = 5e-8
    matrix: float = 5e-3
    fixed: float = 0.25
    imports: float = 1.9


# On a GPU, which small molecules do not fill: seconds of a matrix, and of its J and K for each
# orbital, more where there are f functions, or, fitted, for each pair of orbitals, when the grid
# (for each orbital and atom) is most of it; of a guess and corrected cycles, of loading PyTorch;
# and the full Fock matrices saved.
_GPU_MATRIX, _GPU_FITTED, _GPU_GRID = 0.045, 1e-7, 4.4e-6
_GPU_DIRECT, _GPU_DIRECT_WITH_F = 8e-4, 2.4e-3
_GPU_GUESS, _GPU_IMPORTS, _GPU_SAVED = 0.85, 4.0, 9.0


def rates_file() -> Path:
    """Where the rates of this machine are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyscf_deqh" / "rates.json"


@functools.lru_cache(maxsize=1)
def rates() -> Rates:
    """Those that were measured on this machine; the default ones before."""
    try:
        measured = Rates(**json.loads(rates_file().read_text()))
        valid = all(isinstance(x, (int, float)) and x >= 0 for x in vars(measured).values())
    except (OSError, RuntimeError, ValueError, TypeError):
        return Rates()
    return measured if valid else Rates()


def seconds_of_matrix(mf: hf.SCF, machine: Rates | None = None) -> float:
    """Of one full Fock matrix of an SCF object; by default on this machine."""
    if engine_of(mf) is not HOST:
        n = mf.mol.nao
        if attribute(mf, "with_df"):
            return _GPU_MATRIX + _GPU_FITTED * n**2 + _GPU_GRID * mf.mol.natm * n
        with_f = mf.mol._bas[:, gto.ANG_OF].max() >= 3
        return _GPU_MATRIX + (_GPU_DIRECT_WITH_F if with_f else _GPU_DIRECT) * n
    machine, n = machine or rates(), mf.mol.nao
    numint = numint_of(mf)
    kind = "HF" if numint is None else functional_kind(numint, mf.xc)
    seconds = machine.matrix
    if kind != "HF":
        if mf.grids.weights is None:
            points = _POINTS * mf.mol.natm * (getattr(mf.grids, "level", 3) + 1)
        else:
            points = len(mf.grids.weights)
        seconds += machine.grid * _KINDS.get(kind, 1.0) * points * n
    if attribute(mf, "with_df"):
        seconds += machine.fitted * n**3 * (mf.mol.nelectron if has_exchange(mf) else 1)
    elif holds_integrals(mf):
        seconds += machine.in_core * n**4
    else:
        seconds += machine.direct * n**3
    return seconds


class _Forgone:
    """Seconds that this process could have saved, had it loaded PyTorch."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def exceed(self, limit: float, saving: float) -> bool:
        """Whether they and another saving do; if not, it is forgone as well."""
        with self._lock:
            if self.seconds + saving >= limit:
                return True
            self.seconds += saving
            return False


_forgone = _Forgone()


def too_cheap(mf: Any, again: bool = False) -> str | None:
    """Why an SCF is better left alone; None where it is worth a guess.

    PyTorch is loaded once as much was forgone as that takes: at most twice is lost (the ski rental
    problem; Karlin et al., Algorithmica 3, 79, 1988).

    Args:
        mf: PySCF's SCF object.
        again: the SCF's guess has asked before.
    """
    seconds = seconds_of_matrix(mf)
    if engine_of(mf) is HOST:
        imports, saving = rates().imports, (_SAVED - OWN) * seconds - rates().fixed
    else:
        imports, saving = _GPU_IMPORTS, _GPU_SAVED * seconds - _GPU_GUESS
    about = f"a full Fock matrix takes some {1e3 * seconds:.0f} ms"
    if saving <= 0:
        return f"{about}: nothing to save"
    if "torch" not in sys.modules:
        enough = saving >= imports if again else _forgone.exceed(imports, saving)
        if not enough:
            return f"{about}: loading PyTorch would take longer than was to save so far"
    return None
