"""The DEQH framework: Hamiltonians as fixed points H* = f(H*; Z, R, S) (Wang et al., Sec. 4, A.7).

A backbone splits f into what does not depend on H (:meth:`Backbone.injection`, computed once per
molecule) and what does (:meth:`Backbone.filter`, once per iteration). What f reads of H is the
backbone's *state*: the whole matrix, or the on-site blocks alone for a backbone that sees H only
through the diagonal reduction. The fixed point is solved over the state; everything else of H is
computed once, from the solution (:meth:`Backbone.hamiltonian`). Both savings are exact.

A backbone whose f does not depend on H is a predictor, H = f(Z, R, S): there is nothing to solve.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.batch import BOHR, REFERENCES, GraphBatch
from ..graph.layout import OrbitalTemplate

SOLVERS = ("fixed_point_iter", "anderson", "broyden")
STARTS = ("identity", "reference")
# Rows of a state at once: no second matrix of thousands of orbitals for a sum of squares.
_ROWS = 256
# Regularization of Anderson's iteration, of squared states or gradients: torchdeq's own, 1e-4, is
# larger than a difference of two of them near the solution.
_ANDERSON = 1e-8
_ANDERSON_BEGINS = 2
_OWN_ANDERSON = "anderson of pyscf_deqh"
GRADIENTS = ("implicit", "random-depth")


class BackboneConfig(Protocol):
    """Hyperparameters of a backbone: a dataclass, whose fields a checkpoint keeps as JSON."""

    @property
    def reference(self) -> str:
        """``sad``: the network learns the difference to the Kohn-Sham matrix of superposed atomic
        densities; ``none``: it learns all of the Hamiltonian."""

    @property
    def cutoff_bohr(self) -> float:
        """Distance beyond which atoms are no pair of the graph, bohr."""

    def to_config(self) -> dict[str, Any]:
        """All fields, as numbers, texts, lists and dictionaries of them."""


class Hyperparameters:
    """What dataclasses of hyperparameters have in common, of networks with a cutoff in angstrom."""

    cutoff: float

    @property
    def cutoff_bohr(self) -> float:
        return self.cutoff / BOHR

    def to_config(self) -> dict[str, Any]:
        config: Any = self  # a dataclass
        return asdict(config)


def check_reference(reference: str) -> None:
    """Raise ConfigError where there is no such reference Hamiltonian."""
    if reference not in REFERENCES:
        raise ConfigError(f"reference: {reference!r} is not one of {', '.join(REFERENCES)}")


class Backbone(nn.Module, abc.ABC):
    """A network that is solved for its fixed point. B molecules, n orbitals.

    Args:
        template: elements, and the layout of their orbitals.
        config: hyperparameters.

    Attributes:
        wants_onsite_overlaps: whether it is made of a template, a configuration, and the on-site
            overlaps of :func:`pyscf_deqh.graph.onsite.onsite_overlaps`, which are left out if a
            state dict follows; else of the first two.
        state_is_hamiltonian: whether a state is a whole Hamiltonian, up to what does not depend on
            it, so that :meth:`hamiltonian` is no application of f.
        can_be_captured: whether a training step can be a CUDA graph: given a reference, none of its
            operations waits for the GPU or depends on what is in a tensor.
    """

    wants_onsite_overlaps: ClassVar[bool] = False
    state_is_hamiltonian: ClassVar[bool] = False
    can_be_captured: ClassVar[bool] = False

    def __init__(self, template: OrbitalTemplate, config: BackboneConfig):
        super().__init__()
        self.template, self.config = template, config

    @property
    def self_consistent(self) -> bool:
        """Whether f depends on H at all."""
        return True

    @property
    def cutoff(self) -> float:
        """Distance beyond which atoms are no pair of the graph, bohr."""
        return self.config.cutoff_bohr

    @abc.abstractmethod
    def injection(self, graph: GraphBatch) -> Any:
        """Everything that does not depend on H."""

    @abc.abstractmethod
    def state(self, hamiltonian: Tensor, injected: Any) -> Tensor:
        """What f reads of a Hamiltonian (B, n, n): a tensor (B, ...)."""

    @abc.abstractmethod
    def filter(self, state: Tensor, injected: Any) -> Tensor:
        """One application of f: the next state."""

    @abc.abstractmethod
    def hamiltonian(self, state: Tensor, injected: Any) -> Tensor:
        """The Hermitian matrices (B, n, n) that belong to a converged state.

        Either the state is the matrix, or this is one more application of f, of all its parts.
        """

    def standardize(self, batches: Iterable[GraphBatch]) -> None:
        """Set shifts and scales of inputs and outputs from labelled batches, before a training;
        nothing where a network has none."""

    def damp_state(self, factor: float) -> None:
        """Scale what f reads of the state beside its start, and leave f of the start as it is.

        For weights of a training that has applied f once: those that read the state learned
        nothing there, and a second application would begin with noise. Nothing where a network
        does not read the two apart.
        """


class Predictor(Backbone):
    """A backbone to which H is no input, and which injects nothing but the graph: H = f(Z, R)."""

    @property
    def self_consistent(self) -> bool:
        return False

    def injection(self, graph: GraphBatch) -> GraphBatch:
        return graph

    def state(self, hamiltonian: Tensor, injected: GraphBatch) -> Tensor:
        """Nothing: there is no fixed point."""
        return hamiltonian.new_zeros(len(hamiltonian), 1)

    def filter(self, state: Tensor, injected: GraphBatch) -> Tensor:
        return state


@dataclass(frozen=True)
class SolverSettings:
    """How the fixed point and its implicit gradient are solved.

    Attributes:
        forward: ``fixed_point_iter``, ``anderson`` or ``broyden``.
        forward_max_iterations: limit of the forward solver.
        forward_tolerance: stop once ||f(x) - x|| / ||f(x)|| of every molecule is below this.
        gradient: how training differentiates. ``implicit``: through the fixed point (Eq. 43-44);
            with two forward iterations or more.
            ``random-depth``: f is applied a random number of times, at most
            ``forward_max_iterations``, and only the last application is differentiated (and what
            reads a Hamiltonian off the state). Cheaper, and it teaches f to arrive at H* from
            everywhere on the way, the start included.
        backward, backward_max_iterations, backward_tolerance: solver of the implicit gradient.
        start: ``identity`` (the paper) or ``reference``, where the network has one. A Hamiltonian
            given to the call (PySCF's own guess, say) overrides it.
    """

    forward: str = "fixed_point_iter"
    forward_max_iterations: int = 8
    forward_tolerance: float = 1e-5
    gradient: str = "implicit"
    backward: str = "fixed_point_iter"
    backward_max_iterations: int = 3
    backward_tolerance: float = 1e-4
    start: str = "reference"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("forward", self.forward, SOLVERS),
            ("backward", self.backward, SOLVERS),
            ("start", self.start, STARTS),
            ("gradient", self.gradient, GRADIENTS),
        ):
            if value not in known:
                raise ConfigError(f"solver.{name}: {value!r} is not one of {', '.join(known)}")
        if self.forward_max_iterations < 1 or self.backward_max_iterations < 1:
            raise ConfigError("solver: at least one forward and one backward iteration")
        for name in ("forward", "backward"):
            limit = getattr(self, f"{name}_max_iterations")
            # Of torchdeq's loop the first two iterations are none.
            if getattr(self, name) == "anderson" and limit <= _ANDERSON_BEGINS:
                raise ConfigError(
                    f"solver.{name}_max_iterations: {limit}, but anderson's first "
                    f"{_ANDERSON_BEGINS} change nothing"
                )

    def to_config(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Solution:
    """A solved Hamiltonian (B, n, n) in hartree; iterations and relative residual (B,) of each."""

    hamiltonian: Tensor
    iterations: Tensor
    residual: Tensor


class DEQH(nn.Module):
    """Solves a backbone's fixed point with torchdeq."""

    def __init__(self, backbone: Backbone, settings: SolverSettings | None = None):
        super().__init__()
        self.backbone = backbone
        self.configure(settings or SolverSettings())

    def configure(self, settings: SolverSettings) -> None:
        """Change the solvers, for example for inference after training."""
        from torchdeq import get_deq
        from torchdeq.solver import anderson_solver, register_solver

        register_solver(_OWN_ANDERSON, partial(anderson_solver, lam=_ANDERSON))
        named = {"anderson": _OWN_ANDERSON}
        self.settings = settings
        self._deq = get_deq(
            f_solver=named.get(settings.forward, settings.forward),
            f_max_iter=settings.forward_max_iterations,
            f_tol=settings.forward_tolerance,
            f_stop_mode="rel",
            b_solver=named.get(settings.backward, settings.backward),
            b_max_iter=settings.backward_max_iterations,
            b_tol=settings.backward_tolerance,
            b_stop_mode="rel",
            ift=True,
        ).train(self.training)

    def initial_hamiltonian(self, graph: GraphBatch) -> Tensor:
        """H^0 (B, n, n): the reference, or the identity (to preserve Hermiticity, Sec. 4.2), which
        serves networks that have no reference as well."""
        if self.settings.start == "reference" and self.backbone.config.reference != "none":
            return graph.reference
        return torch.diag_embed(graph.orbital_mask.to(graph.overlap.dtype))

    def forward(self, graph: GraphBatch, initial: Tensor | None = None) -> Solution:
        """Solve for the Hamiltonians of a batch.

        Args:
            graph: the batch.
            initial: (B, n, n) Hamiltonians to start from instead of ``settings.start``.
        """
        injected = self.backbone.injection(graph)
        start = self.initial_hamiltonian(graph) if initial is None else initial
        state = self.backbone.state(start, injected)
        if not self.backbone.self_consistent:
            hamiltonian = self.backbone.hamiltonian(state, injected)
            ones = torch.ones(len(state), device=state.device)
            return Solution(hamiltonian, ones.long(), torch.zeros_like(ones))
        limit = self.settings.forward_max_iterations
        if self.training and self.settings.gradient == "random-depth":
            return self._applied(state, injected, 1 + int(torch.randint(limit, ())))
        if not self.training and limit == 1:
            return self._applied(state, injected, 1)  # without a solver's copies
        solved, info = self._deq(lambda x: self.backbone.filter(x, injected), state)
        return Solution(
            self.backbone.hamiltonian(solved[-1], injected),
            info["nstep"].to(torch.long),
            info["rel_lowest"],
        )

    def applied_once(self, graph: GraphBatch, hamiltonian: Tensor) -> Tensor:
        """f(H) of Hamiltonians (B, n, n), in hartree."""
        injected = self.backbone.injection(graph)
        state = self.backbone.state(hamiltonian, injected)
        if self.backbone.state_is_hamiltonian:
            state = self.backbone.filter(state, injected)
        return self.backbone.hamiltonian(state, injected)

    def jacobian_norm(self, graph: GraphBatch, hamiltonian: Tensor) -> Tensor:
        """Squared norm of f's Jacobian at Hamiltonians (B, n, n), by the number of a state's
        elements, padding included; by Hutchinson's estimate with one random vector, differentiable
        by the weights."""
        from torchdeq.loss import jac_reg

        injected = self.backbone.injection(graph)
        with torch.enable_grad():
            state = self.backbone.state(hamiltonian, injected).detach().requires_grad_()
            found: Tensor = jac_reg(self.backbone.filter(state, injected), state)
        return found

    def _applied(self, state: Tensor, injected: Any, times: int) -> Solution:
        """f applied so many times; only the last application is differentiated, and what reads a
        Hamiltonian off the state."""
        with torch.no_grad():
            for _ in range(times - 1):
                state = self.backbone.filter(state, injected)
        solved = self.backbone.filter(state, injected)
        rows = zip(solved.detach().split(_ROWS, dim=1), state.split(_ROWS, dim=1), strict=True)
        squares = [(a - b).flatten(1).square().sum(1) for a, b in rows]
        change = torch.stack(squares).sum(0).sqrt()
        return Solution(
            self.backbone.hamiltonian(solved, injected),
            torch.full((len(state),), times, device=state.device),
            change / solved.detach().flatten(1).norm(dim=1),
        )
