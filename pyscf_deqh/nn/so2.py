"""SO(2) convolutions in edge-aligned frames (Passaro & Zitnick, ICML 2023, eSCN).

In a frame whose z axis points along the pair, the stabilizer of the pair is the group of rotations
about z and reflections in planes that contain it. A linear map that commutes with it mixes only
components of equal |m|, acts alike on the cosine (m > 0) and the sine (m < 0) component, and, for
the reflections, has no part that exchanges the two: real weights, half of eSCN's work. Pseudo
channels join the natural ones once their cosine and sine components are exchanged (with a sign),
except for m = 0, where the two parities cannot mix.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..graph.batch import opposite
from .irreps import Channels, random_weight
from .wigner import wigner_d

# Edge features by order: natural m = 0 (E, (L+1) Cn), pseudo m = 0 (E, (L+1) Cp), then for
# m = 1 … L cosine and sine (2, E, (L+1-m) C).
EdgeFeatures = list[Tensor]


@dataclass
class FrameFeatures:
    """The same components in three tensors, so that sums and norms are few operations.

    Attributes:
        natural, pseudo: m = 0, (E, (L+1) Cn) and (E, (L+1) Cp).
        rotating: cosine and sine of m = 1, of m = 2, … (E, L (L+1) C).
    """

    natural: Tensor
    pseudo: Tensor
    rotating: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.natural, self.pseudo, self.rotating

    def __add__(self, other: FrameFeatures) -> FrameFeatures:
        pairs = zip(self.tensors, other.tensors, strict=True)
        return FrameFeatures(*(a + b for a, b in pairs))

    def rms_normalized(self, eps: float = 1e-6) -> FrameFeatures:
        """Each pair's features over their root mean square over all components and channels."""
        square = sum(torch.linalg.vector_norm(part, dim=1).square() for part in self.tensors)
        count = sum(part.shape[1] for part in self.tensors)
        scale = torch.rsqrt(square / count + eps)[:, None]
        return FrameFeatures(*(part * scale for part in self.tensors))

    def by_order(self, lmax: int) -> EdgeFeatures:
        """Views of each order."""
        n, width = self.rotating.shape
        channels = width // (lmax * (lmax + 1))
        widths = [2 * (lmax + 1 - m) * channels for m in range(1, lmax + 1)]
        rotating = self.rotating.split(widths, dim=-1)
        return [
            self.natural,
            self.pseudo,
            *(part.view(n, 2, part.shape[1] // 2).transpose(0, 1) for part in rotating),
        ]

    @classmethod
    def of_orders(cls, parts: EdgeFeatures) -> FrameFeatures:
        rotating = [row for part in parts[2:] for row in part]
        return cls(parts[0], parts[1], torch.cat(rotating, dim=-1))


@functools.cache  # a copy to a GPU makes the host wait
def _frame_rows(
    lmax: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Components of degrees 0 to ``lmax`` ordered by m, as a frame's rows ((lmax + 1)^2,).

    Returns:
        Where each comes from, and, for pseudo channels, from where and with which sign; its sign
        under the reflection that exchanges the atoms.
    """
    orders = [0] + [sign * m for m in range(1, lmax + 1) for sign in (1, -1)]
    rows = [(l, m) for m in orders for l in range(abs(m), lmax + 1)]
    permutation = [l * l + l + m for l, m in rows]
    exchanged = [l * l + l - m for l, m in rows]
    signs = [-1 if m > 0 else 1 for _, m in rows]
    mirror = [(-1) ** (l + m) for l, m in rows]
    return (
        torch.tensor(permutation, device=device),
        torch.tensor(exchanged, device=device),
        torch.tensor(signs, device=device, dtype=dtype),
        torch.tensor(mirror, device=device, dtype=dtype),
    )


class EdgeFrames:
    """Rotations into the frames of all pairs; the azimuth about the pair is free (and cancels).

    The frame of (j, i) is that of (i, j) reflected in the plane between the atoms. So features of
    an atom that are rotated into the frame of one are those of the other up to signs.

    Args:
        edge_vector: (E, 3) in any unit, each at an odd place the opposite of that before it.
        lmax: largest degree.
        channels: of the features to rotate.
    """

    def __init__(self, edge_vector: Tensor, lmax: int, channels: Channels):
        self._scalar_rows, self._channels = lmax + 1, channels
        permutation, exchanged, signs, mirror = _frame_rows(
            lmax, edge_vector.device, edge_vector.dtype
        )
        size = len(permutation)
        blocks = [wigner_d(l, edge_vector[::2]).mT for l in range(lmax + 1)]
        frame = torch.cat(
            [
                nn.functional.pad(block, (l * l, size - (l + 1) ** 2))
                for l, block in enumerate(blocks)
            ],
            dim=1,
        )
        natural = frame.index_select(1, permutation)
        pseudo = frame.index_select(1, exchanged) * signs[:, None]
        # An inversion maps pseudo components to minus the natural ones' images.
        self._natural, self._pseudo = (
            torch.stack([rotation, sign * mirror[:, None] * rotation], dim=1).flatten(0, 1)
            for rotation, sign in ((natural, 1), (pseudo, -1))
        )

    def into(self, x: Tensor) -> FrameFeatures:
        """Rotate features (E, (lmax + 1)^2, C) into the frames."""
        # Cut by split, whose gradient is one concatenation; that of a slice is of x's full size.
        natural, pseudo = x.split([self._channels.natural, self._channels.pseudo], dim=-1)
        natural, pseudo = torch.bmm(self._natural, natural), torch.bmm(self._pseudo, pseudo)
        sizes = [self._scalar_rows, natural.shape[1] - self._scalar_rows]
        natural, natural_rotating = natural.split(sizes, dim=1)
        pseudo, pseudo_rotating = pseudo.split(sizes, dim=1)
        rotating = torch.cat([natural_rotating, pseudo_rotating], dim=-1)
        return FrameFeatures(natural.flatten(1), pseudo.flatten(1), rotating.flatten(1))

    def opposite(self, features: FrameFeatures) -> FrameFeatures:
        """Features of the opposite pairs; :func:`mirror_signs` away from this pair's frame."""
        return FrameFeatures(*(opposite(part) for part in features.tensors))

    def out_of(self, features: FrameFeatures) -> tuple[Tensor, Tensor]:
        """Rotate back: natural and pseudo channels (E, (lmax + 1)^2, …)."""
        n, size = self._natural.shape[:2]
        widths = [self._channels.natural, self._channels.pseudo]
        sizes = [self._scalar_rows, size - self._scalar_rows]
        rotating = features.rotating.view(n, sizes[1], sum(widths)).split(widths, dim=-1)
        out = []
        for rotation, scalars, rest, width in zip(
            (self._natural, self._pseudo), features.tensors[:2], rotating, widths, strict=True
        ):
            first, second = rotation.split(sizes, dim=1)
            back = torch.bmm(first.mT, scalars.view(n, sizes[0], width))
            out.append(back.baddbmm_(second.mT.to(back), rest.to(back)))
        return out[0], out[1]


def mirror_signs(lmax: int, channels: Channels) -> list[Tensor]:
    """Signs of features in the two frames of a pair, in the order of :data:`EdgeFeatures`."""
    parities = torch.tensor([1.0] * channels.natural + [-1.0] * channels.pseudo)

    def signs(m: int, parities: Tensor) -> Tensor:
        by_degree = torch.tensor([(-1.0) ** (l + m) for l in range(m, lmax + 1)])
        return torch.outer(by_degree, parities).flatten()

    scalars = [signs(0, parities[: channels.natural]), signs(0, parities[channels.natural :])]
    return scalars + [signs(m, parities) for m in range(1, lmax + 1)]


class SO2Linear(nn.Module):
    """Linear map of concatenated edge features that commutes with rotations about, and reflections
    in planes through, the pair axis.

    Args:
        lmax: largest degree.
        inputs, outputs: channels.
        mirrored: the one of ``inputs`` that comes in the frames of the opposite pairs, if any.
    """

    def __init__(
        self,
        lmax: int,
        inputs: Sequence[Channels],
        outputs: Channels,
        mirrored: int | None = None,
    ):
        super().__init__()
        natural, total = sum(c.natural for c in inputs), sum(c.total for c in inputs)
        pseudo = total - natural
        shapes = [
            ((lmax + 1) * natural, (lmax + 1) * outputs.natural),
            ((lmax + 1) * pseudo, (lmax + 1) * outputs.pseudo),
        ] + [((lmax + 1 - m) * total, (lmax + 1 - m) * outputs.total) for m in range(1, lmax + 1)]
        self.weights = nn.ParameterList(random_weight(shape[0], *shape) for shape in shapes)
        self.mirrored = mirrored
        if mirrored is not None:
            signs = mirror_signs(lmax, inputs[mirrored])
            self.widths = [len(part) for part in signs]
            self.register_buffer("signs", torch.cat(signs)[:, None], persistent=False)

    def forward(self, *features: EdgeFeatures) -> EdgeFeatures:
        out = []
        for k, (*parts, weight) in enumerate(zip(*features, self.weights, strict=True)):
            weights = list(weight.split([part.shape[-1] for part in parts]))
            if self.mirrored is not None:
                # The weights are fewer than the features.
                signs = self.signs.split(self.widths)[k]
                weights[self.mirrored] = signs * weights[self.mirrored]
            out.append(_sum_of_products(parts, weights))
        return out


def _sum_of_products(parts: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Linear map of concatenated ``parts`` (E, K) or (2, E, K), without the concatenation."""
    if parts[0].dim() == 2:
        out = parts[0] @ weights[0]
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            out = out.addmm_(part.to(out), weight.to(out))
        return out
    out = torch.bmm(parts[0], weights[0].expand(len(parts[0]), -1, -1))
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        out = out.baddbmm_(part.to(out), weight.to(out).expand(len(part), -1, -1))
    return out


class EdgeGate(nn.Module):
    """Nonlinearity in the edge frame.

    All natural m = 0 components are invariants of the pair: they go through SiLU, and together with
    the pair's own invariants (distance, elements) they make a gate in (0, 2) for every degree,
    order and channel of the rest.
    """

    def __init__(self, lmax: int, channels: Channels, n_invariants: int):
        super().__init__()
        n_scalars = (lmax + 1) * channels.natural
        self.widths = [(lmax + 1) * channels.pseudo]
        self.widths += [(lmax + 1 - m) * channels.total for m in range(1, lmax + 1)]
        self.scalars = nn.Linear(n_invariants, n_scalars)
        self.gates = nn.Linear(n_scalars + n_invariants, sum(self.widths))

    def forward(self, parts: EdgeFeatures, invariants: Tensor) -> EdgeFeatures:
        scalars = nn.functional.silu(parts[0] + self.scalars(invariants))
        gates = 2 * torch.sigmoid(self.gates(torch.cat([scalars, invariants], dim=-1)))
        pseudo, *by_order = gates.split(self.widths, dim=-1)
        rotating = [p * g for p, g in zip(parts[2:], by_order, strict=True)]
        return [scalars, parts[1] * pseudo, *rotating]
