"""SO2Net: a backbone with SO(2) convolutions in edge frames that sees matrices as its input.

Atoms and pairs start from the blocks of the overlap, the reference Hamiltonian and its density,
coupled to irreps; that, and the first layers, are the injection. The filter adds the blocks of H^k
and of its density D[H^k] (so that one application of f is a solver step) and predicts the next
difference to the reference.

Electrons that move between atoms change the potential everywhere. As in SCC-DFTB (Elstner et al.,
Phys. Rev. B 58, 7260, 1998) that is a charge per atom, a potential phi at each atom, and, to first
order, the matrix (phi_A + phi_B) S / 2: atoms also see their Mulliken charge and its potential, and
the output has a term of that form, within the cutoff.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..graph.batch import GraphBatch, opposite
from ..graph.layout import OrbitalTemplate
from .backbones import register
from .density import density_matrix
from .deqh import Backbone, Hyperparameters, check_reference
from .irreps import (
    BlockCoupling,
    BlockEmbedding,
    BlockReadout,
    Channels,
    DegreeLinear,
    Excerpt,
    NodeNonlinearity,
    add_scalars,
    rms_normalize,
)
from .moments import Moments
from .so2 import EdgeFrames, EdgeGate, FrameFeatures, SO2Linear

_POTENTIAL_SCALE = 0.01  # hartree / e, typical change of the potential at an atom
_NEIGHBOURS = 16.0  # typical number of atoms within the cutoff, for the scale of message sums
# Pairs in a slice, whose features take some 4 MB a layer.
_PAIRS_AT_ONCE = 1024


@dataclass(frozen=True)
class SO2NetConfig(Hyperparameters):
    """Hyperparameters.

    Attributes:
        reference: ``sad`` (learn the difference to it) or ``none``.
        lmax: largest degree of features; at least twice the basis set's largest l.
        natural_channels, pseudo_channels: channels by parity.
        injection_layers, filter_layers: layers that run once, and in every iteration.
        cutoff: in angstrom; pairs beyond keep the reference's block (or zero).
        radial_functions: exponential Gaussians of the distance.
        invariants: width of the pair embedding made of distance and elements.
    """

    reference: str = "sad"
    lmax: int = 4
    natural_channels: int = 32
    pseudo_channels: int = 8
    injection_layers: int = 2
    filter_layers: int = 2
    cutoff: float = 8.0
    radial_functions: int = 32
    invariants: int = 64

    def __post_init__(self):
        check_reference(self.reference)
        if self.filter_layers < 1 or self.injection_layers < 0:
            raise ConfigError("SO2Net needs at least one filter layer")


class PairInvariants(nn.Module):
    """Embedding of a pair's distance and elements, and the cutoff envelope."""

    def __init__(self, n_elements: int, n_radial: int, width: int, cutoff: float):
        super().__init__()
        self.cutoff = cutoff
        # Gaussians of exp(-r / 2 bohr), denser where bonds are (Unke & Meuwly, 2019).
        centres = torch.linspace(math.exp(-cutoff / 2.0), 1.0, n_radial)
        self.register_buffer("centres", centres, persistent=False)
        self.sharpness = (2 / n_radial * (1 - math.exp(-cutoff / 2.0))) ** -2
        self.elements = nn.Embedding(n_elements, width // 2)
        self.mlp = nn.Sequential(
            nn.Linear(n_radial + 2 * (width // 2), width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, graph: GraphBatch) -> tuple[Tensor, Tensor]:
        """Invariants (E, width) and envelope (E,), which vanishes smoothly at the cutoff."""
        distance = graph.edge_vector.norm(dim=-1)
        radial = torch.exp(
            -self.sharpness * (torch.exp(-distance[:, None] / 2.0) - self.centres) ** 2
        )
        kinds = self.elements(graph.element[graph.edge_index]).transpose(0, 1).flatten(1)
        u = (distance / self.cutoff).clamp(max=1.0)
        envelope = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
        return self.mlp(torch.cat([radial, kinds], dim=-1)), envelope


@dataclass
class PairChunk:
    """Some of a batch's couples of pairs."""

    atoms: Tensor  # (2, e)
    frames: EdgeFrames
    invariants: Tensor  # (e, width)
    envelope: Tensor  # (e,)


@dataclass
class Injected:
    """What SO2Net's filter needs besides H."""

    graph: GraphBatch  # with the slots of the excerpt
    excerpt: Excerpt
    chunks: list[PairChunk]
    envelope: Tensor
    atoms: Tensor
    pairs: list[FrameFeatures]  # of each chunk
    density: Tensor  # of the reference's orbitals; zero without a reference
    zero: Tensor  # the state of the reference itself


class ChargeEmbedding(nn.Module):
    """Atoms' Mulliken charges, and the potential they make at other atoms, as scalar features."""

    # Charge and potential of typical size, in e and hartree / e.
    _TYPICAL = (0.2, 0.05)
    # Distance in bohr below which the potential of a charge cloud is no longer that of a point.
    _CLOUD = 1.5

    def __init__(self, channels: Channels):
        super().__init__()
        self.linear = nn.Linear(2, channels.natural, bias=False)

    def forward(self, graph: GraphBatch, electrons: Tensor, envelope: Tensor) -> Tensor:
        """``electrons`` (N,): number that each atom gained. Returns (N, natural channels)."""
        i, j = graph.edge_index
        squared = graph.edge_vector.square().sum(-1)
        potential = electrons[j] * envelope * torch.rsqrt(squared + self._CLOUD**2)
        potential = torch.zeros_like(electrons).index_add(0, i, potential)
        charge, phi = self._TYPICAL
        return self.linear(torch.stack([electrons / charge, potential / phi], dim=-1))


class SO2Layer(nn.Module):
    """SO(2) linear, gate, SO(2) linear of (x_i, x_j, e_ij); added to e_ij, summed onto x_i."""

    def __init__(self, config: SO2NetConfig, channels: Channels):
        super().__init__()
        lmax, width = config.lmax, config.invariants
        self.lmax, self.widths = lmax, [channels.natural, channels.pseudo]
        self.linear_in = SO2Linear(lmax, [channels] * 3, channels, mirrored=1)
        self.gate = EdgeGate(lmax, channels, width)
        self.linear_out = SO2Linear(lmax, [channels], channels)
        self.message_weight = nn.Linear(width, channels.total)
        self.message_linear = DegreeLinear(lmax, channels, channels)
        self.update = NodeNonlinearity(lmax, channels)

    def forward(
        self, x: Tensor, pairs: list[FrameFeatures], chunks: list[PairChunk]
    ) -> tuple[Tensor, list[FrameFeatures]]:
        normalized = rms_normalize(x)
        total = [x.new_zeros(*x.shape[:2], width) for width in self.widths]
        changed = []
        for e, chunk in zip(pairs, chunks, strict=True):
            step = self._step(normalized, e, chunk)
            weight = self.message_weight(chunk.invariants) * chunk.envelope[:, None]
            weights = (weight / math.sqrt(_NEIGHBOURS)).split(self.widths, dim=-1)
            messages = zip(total, chunk.frames.out_of(step), weights, strict=True)
            for onto, message, weight in messages:
                onto.index_add_(0, chunk.atoms[0], message * weight[:, None])
            changed.append(e + step)
        x = x + self.message_linear(torch.cat(total, dim=-1))
        return x + self.update(x), changed

    def _step(self, x: Tensor, e: FrameFeatures, chunk: PairChunk) -> FrameFeatures:
        """Change of the pairs' features (and, as a message, of their first atoms')."""
        source = chunk.frames.into(x.index_select(0, chunk.atoms[0]))
        inputs = (source, chunk.frames.opposite(source), e.rms_normalized())
        y = self.linear_in(*(features.by_order(self.lmax) for features in inputs))
        return FrameFeatures.of_orders(self.linear_out(self.gate(y, chunk.invariants)))


@register("so2net", SO2NetConfig)
class SO2Net(Backbone):
    """A backbone for any elements and basis set."""

    can_be_captured = True
    state_is_hamiltonian = True
    config: SO2NetConfig

    def __init__(self, template: OrbitalTemplate, config: SO2NetConfig | None = None):
        config = config or SO2NetConfig()
        super().__init__(template, config)
        channels = Channels(config.natural_channels, config.pseudo_channels)
        self.channels, self.widths = channels, [channels.natural, channels.pseudo]
        n_elements = len(template.numbers)
        self.invariants = PairInvariants(
            n_elements, config.radial_functions, config.invariants, self.cutoff
        )
        self.coupling = BlockCoupling(template, config.lmax)
        self.element_embedding = nn.Embedding(n_elements, channels.natural)
        self.pair_embedding = nn.Linear(config.invariants, (config.lmax + 1) * channels.natural)
        n_static = 1 if config.reference == "none" else 4
        args = (self.coupling, config.lmax)
        self.static_atoms = BlockEmbedding(*args, n_static, channels)
        self.static_pairs = BlockEmbedding(*args, n_static, channels)
        self.state_atoms = BlockEmbedding(*args, 2, channels)
        self.state_pairs = BlockEmbedding(*args, 2, channels)
        if config.reference != "none":
            self.static_charges = ChargeEmbedding(channels)
        self.state_charges = ChargeEmbedding(channels)
        self.injection_layers = nn.ModuleList(
            SO2Layer(config, channels) for _ in range(config.injection_layers)
        )
        self.filter_layers = nn.ModuleList(
            SO2Layer(config, channels) for _ in range(config.filter_layers)
        )
        self.atom_output = NodeNonlinearity(config.lmax, channels)
        self.atom_potential = nn.Linear(channels.natural, 1, bias=False)
        self.pair_linear = SO2Linear(config.lmax, [channels], channels)
        self.pair_gate = EdgeGate(config.lmax, channels, config.invariants)
        self.atom_readout = BlockReadout(*args, channels)
        self.pair_readout = BlockReadout(*args, channels)
        charges = torch.tensor(template.numbers, dtype=torch.get_default_dtype())
        self.register_buffer("nuclear_charge", charges, persistent=False)
        self._register_standards(n_elements, n_static)
        self._excerpts: dict[tuple[int, ...], Excerpt] = {}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._excerpts.clear()  # they are on the device that is left
        return super()._apply(*args, **kwargs)

    def _excerpt(self, graph: GraphBatch) -> Excerpt:
        """Of the coupling, for the shells that the batch's atoms have: most lack most of them."""
        counts = graph.shell_counts
        if counts not in self._excerpts:
            with torch.inference_mode(False):  # a training may come after this call
                self._excerpts[counts] = self.coupling.excerpt(counts)
        return self._excerpts[counts]

    def _register_standards(self, n_elements: int, n_static: int) -> None:
        t2, paths = self.template.size**2, self.coupling.n_paths
        for name, n_matrices in (("static", n_static), ("state", 2)):
            self.register_buffer(f"{name}_shift", torch.zeros(n_elements, t2, n_matrices))
            self.register_buffer(f"{name}_atom_scale", torch.ones(paths, n_matrices))
            self.register_buffer(f"{name}_pair_scale", torch.ones(paths, n_matrices))
        self.register_buffer("output_shift", torch.zeros(n_elements, t2))
        # Scales in hartree, and learned factors of order one: an optimizer's steps are as large
        # for a parameter of 1e-3 as for one of 1.
        for name, shape in (("atom", (n_elements, paths)), ("pair", (n_elements,) * 2 + (paths,))):
            self.register_buffer(f"output_{name}_scale", torch.ones(shape))
            self.register_parameter(f"output_{name}_factor", nn.Parameter(torch.ones(shape)))

    # The fixed-point problem.

    def state(self, hamiltonian: Tensor, injected: Injected) -> Tensor:
        """The difference to the reference: residuals are then relative to what is predicted."""
        reference = injected.graph.reference
        return injected.zero if hamiltonian is reference else hamiltonian - reference

    def hamiltonian(self, state: Tensor, injected: Injected) -> Tensor:
        return injected.graph.reference + state

    def _static_matrices(self, graph: GraphBatch) -> tuple[Tensor, list[Tensor]]:
        """Density of the reference's orbitals, and the matrices that do not depend on H."""
        if self.config.reference == "none":
            return torch.zeros_like(graph.overlap), [graph.overlap]
        # Columns that are empty in all molecules would make the product several times larger.
        n = graph.max_occupied
        occupied = torch.arange(n, device=graph.nao.device) < graph.n_occupied[:, None]
        filled = graph.basis_vectors[..., :n] * occupied[:, None]
        density = 2 * filled @ filled.mT
        return density, [graph.overlap, graph.reference, density, density - graph.atomic_density]

    def _state_matrices(self, graph: GraphBatch, state: Tensor, density: Tensor) -> list[Tensor]:
        h = graph.reference + state
        return [state, density_matrix(h, graph.basis_vectors, graph.n_occupied) - density]

    def _is_at_reference(self, state: Tensor, injected: Injected) -> bool:
        if self.config.reference == "none":
            return False
        # The first test costs nothing; the second, for states that a solver has copied, waits for
        # the device.
        return state is injected.zero or (not state.requires_grad and not state.any())

    def _embedded_atoms(
        self, name: str, graph: GraphBatch, components: Tensor | None, excerpt: Excerpt
    ) -> Tensor:
        """Features (N, (lmax + 1)^2, C) of coupled components (N, T T, M); None for zeros."""
        shift = getattr(self, f"{name}_shift")[:, excerpt.components][graph.element]
        scale = getattr(self, f"{name}_atom_scale")[excerpt.paths][excerpt.coupling.path]
        centred = -shift if components is None else components - shift
        return getattr(self, f"{name}_atoms")(centred / scale, excerpt)

    def _embedded_pairs(self, name: str, components: Tensor, excerpt: Excerpt) -> Tensor:
        """Features (E, (lmax + 1)^2, C) of coupled components (E, T T, M)."""
        scale = getattr(self, f"{name}_pair_scale")[excerpt.paths][excerpt.coupling.path]
        return getattr(self, f"{name}_pairs")(components / scale, excerpt)

    def injection(self, graph: GraphBatch) -> Injected:
        density, matrices = self._static_matrices(graph)
        excerpt = self._excerpt(graph)
        graph = graph.of_slots(excerpt.slots)
        onsite = excerpt.coupling.couple(graph.onsite_blocks(*matrices))
        invariants, envelope = self.invariants(graph)
        scalars = self.element_embedding(graph.element)
        if self.config.reference != "none":
            moved = graph.populations(matrices[-1])
            scalars = scalars + self.static_charges(graph, moved, envelope)
        x = add_scalars(self._embedded_atoms("static", graph, onsite, excerpt), scalars)
        chunks, pairs = [], []
        for part in graph.pair_slices(_PAIRS_AT_ONCE):
            frames = EdgeFrames(graph.edge_vector[part], self.config.lmax, self.channels)
            atoms = graph.edge_index[:, part]
            chunk = PairChunk(atoms, frames, invariants[part], envelope[part])
            chunks.append(chunk)
            blocks = excerpt.coupling.couple(graph.blocks(*chunk.atoms, *matrices))
            e = chunk.frames.into(self._embedded_pairs("static", blocks, excerpt))
            e = replace(e, natural=e.natural + self.pair_embedding(chunk.invariants))
            pairs.append(e)
        for layer in self.injection_layers:
            x, pairs = layer(x, pairs, chunks)
        zero = graph.reference.new_zeros(1).expand_as(graph.reference)
        return Injected(graph, excerpt, chunks, envelope, x, pairs, density, zero)

    def filter(self, state: Tensor, injected: Injected) -> Tensor:
        x, pairs = self._with_state(state, injected)
        for layer in self.filter_layers:
            x, pairs = layer(x, pairs, injected.chunks)
        return self._read(x, pairs, injected)

    def _with_state(self, state: Tensor, env: Injected) -> tuple[Tensor, list[FrameFeatures]]:
        """Injected features plus those of the difference to the reference and of its density."""
        graph, excerpt = env.graph, env.excerpt
        if self._is_at_reference(state, env):
            # Nothing has changed, the density neither: no eigenproblem, and no blocks.
            return env.atoms + self._embedded_atoms("state", graph, None, excerpt), env.pairs
        matrices = self._state_matrices(graph, state, env.density)
        moved = graph.populations(matrices[1])
        if self.config.reference == "none":  # there is no density yet that moved is relative to
            moved = moved - self.nuclear_charge[graph.element]
        scalars = self.state_charges(graph, moved, env.envelope)
        atoms = excerpt.coupling.couple(graph.onsite_blocks(*matrices))
        atoms = self._embedded_atoms("state", graph, atoms, excerpt)
        pairs = []
        for e, chunk in zip(env.pairs, env.chunks, strict=True):
            blocks = excerpt.coupling.couple(graph.blocks(*chunk.atoms, *matrices))
            embedded = self._embedded_pairs("state", blocks, excerpt)
            pairs.append(e + chunk.frames.into(embedded))
        return env.atoms + add_scalars(atoms, scalars), pairs

    def _read(self, x: Tensor, pairs: list[FrameFeatures], env: Injected) -> Tensor:
        graph, excerpt = env.graph, env.excerpt
        coupling, kept = excerpt.coupling, excerpt.paths
        scale = (self.output_atom_scale * self.output_atom_factor)[:, kept][graph.element]
        output = self.atom_output(x)
        atoms = self.atom_readout(*output.split(self.widths, dim=-1), excerpt)
        shift = self.output_shift[:, excerpt.components][graph.element]
        atoms = coupling.uncouple(atoms * scale[:, coupling.path] + shift)
        potential = self.atom_potential(output[:, 0, : self.channels.natural])[:, 0]
        potential = _POTENTIAL_SCALE * potential
        atoms = (atoms + atoms.mT) / 2 + graph.potential_blocks(graph.atoms, graph.atoms, potential)
        pair_scale = (self.output_pair_scale * self.output_pair_factor)[..., kept]
        blocks = []
        for e, chunk in zip(pairs, env.chunks, strict=True):
            of_pairs = pair_scale[tuple(graph.element[chunk.atoms])]
            block = self._read_pairs(e, chunk, of_pairs, excerpt)
            # Hermitian by construction: the mean of the block of (i, j) and that of (j, i).
            block = (block + opposite(block).mT) / 2
            blocks.append(block + graph.potential_blocks(*chunk.atoms, potential))
        return graph.matrix(atoms, torch.cat(blocks))

    def _read_pairs(
        self, e: FrameFeatures, chunk: PairChunk, scale: Tensor, excerpt: Excerpt
    ) -> Tensor:
        """Pair blocks (e, T, T); ``scale`` (e, paths) of their coupled components."""
        y = self.pair_linear(e.rms_normalized().by_order(self.config.lmax))
        e = FrameFeatures.of_orders(self.pair_gate(y, chunk.invariants))
        scale = (scale * chunk.envelope[:, None])[:, excerpt.coupling.path]
        components = self.pair_readout(*chunk.frames.out_of(e), excerpt)
        return excerpt.coupling.uncouple(components * scale)

    @torch.no_grad()
    def damp_state(self, factor: float) -> None:
        if self.config.reference == "none":
            return  # the start is no zero that all else could be told apart from
        weights = [*self.state_atoms.weights, *self.state_pairs.weights]
        for weight in (*weights, self.state_charges.linear.weight):
            weight *= factor
        self.state_shift /= factor  # what the reference's state gives is of this alone

    @torch.no_grad()
    def standardize(self, batches: Iterable[GraphBatch]) -> None:
        """Set input shifts and scales and initial output scales from labelled batches."""
        n_elements = len(self.template.numbers)
        moments = {
            name: Moments(self.coupling, n_elements, _PAIRS_AT_ONCE) for name in ("static", "state")
        }
        for graph in batches:
            density, matrices = self._static_matrices(graph)
            moments["static"].add(graph, matrices)
            target = graph.hamiltonian - graph.reference
            moments["state"].add(graph, self._state_matrices(graph, target, density))
        for name, found in moments.items():
            getattr(self, f"{name}_shift").copy_(found.shift())
            getattr(self, f"{name}_atom_scale").copy_(found.atom_scale())
            getattr(self, f"{name}_pair_scale").copy_(found.pair_scale())
        by_element, by_pair = moments["state"].target_scales()
        self.output_shift.copy_(self.state_shift[..., 0])
        self.output_atom_scale.copy_(by_element)
        self.output_pair_scale.copy_(by_pair)
