"""Functionals as the cheap SCF evaluates them: by PySCF, with what a user has changed in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..engine import HOST, Engine, engine_of
from ..errors import UnsupportedMoleculeError
from ..pyscf_api import attribute, functional_kind, numint_of

if TYPE_CHECKING:
    from pyscf.dft.numint import NumInt
    from pyscf.scf import hf

STAND_IN = "pbe"
"""Whose matrices change with the density nearly as those of functionals with exact exchange do."""

# What define_xc_, mf.omega, a choice of XCFun and settings leave on PySCF's object. Anything else
# is another package's, or a user's own integration.
_SET_BY_PYSCF = {
    "omega", "libxc", "verbose", "stdout", "max_memory",
    "eval_xc", "eval_xc1", "hybrid_coeff", "rsh_coeff", "nlc_coeff", "_xc_type",
}  # fmt: skip
# What gpu4pyscf keeps on its object.
_SET_BY_GPU4PYSCF = {
    "omega", "gdftopt", "pair_mask", "screen_index", "xcfuns", "grid_blksize", "non0ao_idx",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Functional:
    """An exchange-correlation functional, or Hartree-Fock's exchange.

    Attributes:
        name: in PySCF's notation, or ``hf``.
        numint: PySCF's object that evaluates it; that of an SCF has its user's settings.
    """

    name: str
    numint: NumInt

    @classmethod
    def of(cls, xc: str | Functional, engine: Engine = HOST) -> Functional:
        """A functional as an engine has it."""
        return xc if isinstance(xc, Functional) else cls(xc, engine.numint())

    @classmethod
    def of_scf(cls, mf: hf.SCF) -> Functional:
        """``mf``'s, with ``mf.omega`` and ``mf.define_xc_``.

        Raises:
            UnsupportedMoleculeError: another package evaluates it.
        """
        engine, name, own = engine_of(mf), attribute(mf, "xc", "hf"), numint_of(mf)
        # The guess has no two-component orbitals.
        if own is None or type(own).__name__ == "NumInt2C":
            found = cls.of(name, engine)
            found.numint.omega = getattr(own, "omega", None)
            return found
        known = _SET_BY_PYSCF if engine is HOST else _SET_BY_GPU4PYSCF
        foreign = sorted(vars(own).keys() - known)
        if type(own) is not type(engine.numint()) or foreign:
            kind = f"{type(own).__module__}.{type(own).__name__}"
            raise UnsupportedMoleculeError(
                f"the functional is evaluated by {kind}"
                f"{' with ' if foreign else ''}{', '.join(foreign)}, not by PySCF's own NumInt: "
                "the guess does not know it"
            )
        return cls(name, own)

    def same_as(self, other: Functional) -> bool:
        """Whether the other gives the same matrices."""
        return self.name == other.name and (self.numint is other.numint or self.kind == "HF")

    @cached_property
    def kind(self) -> str:
        """``HF``, ``LDA``, ``GGA`` or ``MGGA``."""
        return functional_kind(self.numint, self.name)

    @cached_property
    def exchange(self) -> dict[float, float]:
        """Share of exact exchange by range separation (1/bohr), which is 0 for the whole Coulomb
        operator and else stands for its long range; empty without exact exchange."""
        # PySCF asks the functional's name, whatever define_xc_ says of exchange.
        if not self.numint.libxc.is_hybrid_xc(self.name):
            return {}
        omega, long_range, hybrid = self.numint.rsh_and_hybrid_coeff(self.name)
        shares = {0.0: hybrid} | ({omega: long_range - hybrid} if omega else {})
        return {omega: share for omega, share in shares.items() if share}
