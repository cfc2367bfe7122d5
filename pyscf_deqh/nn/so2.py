"""SO(2) convolutions in edge-aligned frames (Passaro & Zitnick, ICML 2023, eSCN).

In a frame whose z axis points along the pair, the stabilizer of the pair is the group of rotations
about z and reflections in planes that contain it. A linear map that commutes with it mixes only
components of equal |m|, acts alike on the cosine (m > 0) and the sine (m < 0) component, and, for
the reflections, has no part that exchanges the two: real weights, half of eSCN's work. Pseudo
channels join the natural ones once their cosine and sine components are exchanged (with a sign),
except for m = 0, where the two parities cannot mix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .irreps import Channels, random_weight
from .wigner import wigner_d

# Edge features by order: natural m = 0 (E, (L+1) Cn), pseudo m = 0 (E, (L+1) Cp), then for
# m = 1 … L cosine and sine rows (E, 2, (L+1-m) C).
EdgeFeatures = list[Tensor]


class EdgeFrames:
    """Rotations into the frames of all pairs; the azimuth about the pair is free (and cancels).

    Args:
        edge_vector: (E, 3) in any unit.
        lmax: largest degree.
        channels: of the features to rotate.
    """

    def __init__(self, edge_vector: Tensor, lmax: int, channels: Channels):
        size = (lmax + 1) ** 2
        frame = edge_vector.new_zeros(len(edge_vector), size, size)
        for l in range(lmax + 1):
            part = slice(l * l, (l + 1) ** 2)
            frame[:, part, part] = wigner_d(l, edge_vector).mT
        orders = [0] + [sign * m for m in range(1, lmax + 1) for sign in (1, -1)]
        permutation = torch.tensor(
            [l * l + l + m for m in orders for l in range(abs(m), lmax + 1)],
            device=edge_vector.device,
        )
        self._rotation = frame[:, permutation]
        self._channels = channels
        # Rows of the rotated features: m = 0, then cosine and sine of each m.
        self._rows = [lmax + 1] + [lmax + 1 - m for m in range(1, lmax + 1) for _ in "cs"]

    # Tensors are cut with split, whose gradient is one concatenation; the gradient of every slice
    # would be a tensor of the full size.

    def into(self, x: Tensor) -> EdgeFeatures:
        """Rotate features (E, (lmax + 1)^2, C) into the frames."""
        widths = [self._channels.natural, self._channels.pseudo]
        rotated = torch.bmm(self._rotation, x).split(self._rows, dim=1)
        parts = [part.flatten(1) for part in rotated[0].split(widths, dim=-1)]
        for cosine, sine in zip(rotated[1::2], rotated[2::2], strict=True):
            cosine, pseudo_cosine = cosine.split(widths, dim=-1)
            sine, pseudo_sine = sine.split(widths, dim=-1)
            rows = [
                torch.cat([cosine, -pseudo_sine], dim=-1).flatten(1),
                torch.cat([sine, pseudo_cosine], dim=-1).flatten(1),
            ]
            parts.append(torch.stack(rows, dim=1))
        return parts

    def out_of(self, parts: EdgeFeatures) -> Tensor:
        """Rotate back to (E, (lmax + 1)^2, C)."""
        widths = [self._channels.natural, self._channels.pseudo]
        n_edges = len(parts[0])
        scalars = [p.view(n_edges, -1, w) for p, w in zip(parts[:2], widths, strict=True)]
        rows = [torch.cat(scalars, dim=-1)]
        for part in parts[2:]:
            cosine, sine = part.view(n_edges, 2, -1, sum(widths)).unbind(1)
            cosine, pseudo_sine = cosine.split(widths, dim=-1)
            sine, pseudo_cosine = sine.split(widths, dim=-1)
            rows.append(torch.cat([cosine, pseudo_cosine], dim=-1))
            rows.append(torch.cat([sine, -pseudo_sine], dim=-1))
        return torch.bmm(self._rotation.mT, torch.cat(rows, dim=1))


class SO2Linear(nn.Module):
    """Linear map of concatenated edge features that commutes with rotations about, and reflections
    in planes through, the pair axis."""

    def __init__(self, lmax: int, inputs: Sequence[Channels], outputs: Channels):
        super().__init__()
        natural, total = sum(c.natural for c in inputs), sum(c.total for c in inputs)
        pseudo = total - natural
        shapes = [
            ((lmax + 1) * natural, (lmax + 1) * outputs.natural),
            ((lmax + 1) * pseudo, (lmax + 1) * outputs.pseudo),
        ] + [((lmax + 1 - m) * total, (lmax + 1 - m) * outputs.total) for m in range(1, lmax + 1)]
        self.weights = nn.ParameterList(random_weight(shape[0], *shape) for shape in shapes)

    def forward(self, *features: EdgeFeatures) -> EdgeFeatures:
        return [
            torch.cat(parts, dim=-1) @ weight
            for *parts, weight in zip(*features, self.weights, strict=True)
        ]


def edge_rms_normalize(parts: EdgeFeatures, eps: float = 1e-6) -> EdgeFeatures:
    """Divide each pair's features by their root mean square over all components and channels."""
    square = torch.stack([p.square().flatten(1).sum(1) for p in parts]).sum(0)
    count = sum(p.shape[1:].numel() for p in parts)
    scale = torch.rsqrt(square / count + eps)
    return [p * scale.view(-1, *[1] * (p.dim() - 1)) for p in parts]


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
        rotating = [p * g[:, None] for p, g in zip(parts[2:], by_order, strict=True)]
        return [scalars, parts[1] * pseudo, *rotating]
