"""An SCF whose corrected cycles have failed: it may not end worse than without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# PySCF's check after convergence is a step without DIIS. It may triple the threshold, and where
# corrected cycles do not contract it can leave ten times the gradient and more.
_BEFORE_THE_CHECK, _CYCLES_BEFORE_IT = 0.3, 2
# What PySCF's DIIS has to leave of the gradient, and in how many cycles: as many as it combines, or
# more from a far start, where it takes its time, but no more than this part of all.
_GETS_ON, _PATIENCE, _PATIENCE_WHEN_FAR, _PART_WHEN_FAR = 0.5, 8, 16, 3
# Cycles that an SCF from its beginning takes at least: with fewer there is no way back.
LEAST_LEFT = 10


@dataclass
class Strictly:
    """PySCF's ``mf.check_convergence`` where corrected cycles have failed.

    Attributes:
        cycles: so often PySCF's own criterion has to hold, if the stricter one does not.
    """

    cycles: int = _CYCLES_BEFORE_IT

    def __call__(self, envs: dict[str, Any]) -> bool:
        """Whether the SCF with these variables has converged."""
        change = abs(envs["e_tot"] - envs["last_hf_e"])
        if change >= envs["conv_tol"] or envs["norm_gorb"] >= envs["conv_tol_grad"]:
            return False
        if "cycle" not in envs:  # newton(), of an object whose SCF did not converge
            vars(envs["mf"]).pop("check_convergence", None)
            return True
        self.cycles -= 1
        strictly = envs["norm_gorb"] < _BEFORE_THE_CHECK * envs["conv_tol_grad"]
        last = envs["cycle"] + 1 >= envs["mf"].max_cycle
        if strictly or last or not self.cycles:
            vars(envs["mf"]).pop("check_convergence", None)
        return strictly or last or not self.cycles


def patience_when_far(max_cycle: int) -> int:
    """Of a :class:`WayBack`, in an SCF of at most so many cycles that began far from a solution."""
    return max(_PATIENCE, min(_PATIENCE_WHEN_FAR, max_cycle // _PART_WHEN_FAR))


@dataclass
class WayBack:
    """Says when to begin the SCF anew, because PySCF's DIIS goes nowhere from where it is.

    Attributes:
        norm: of the orbital gradient, of a density and its Fock matrix.
        least: what it was at last when it fell, hartree.
        patience: in so many cycles it has to leave half of it.
        cycles: since then.
    """

    norm: Callable[[Any, Any], float]
    least: float
    patience: int = _PATIENCE
    cycles: int = 0

    def is_due(self, d: Any, f: Any) -> bool:
        """Whether the time has come.

        Args:
            d: density matrix of the present cycle.
            f: its Fock matrix, hartree.
        """
        gradient = self.norm(d, f)
        self.cycles += 1
        if gradient < _GETS_ON * self.least:
            self.least, self.cycles = gradient, 0
        return self.cycles >= self.patience
