"""PhiSNet here against its published code: with the same weights, the same matrix of water.

    python docs/results/published_phisnet.py FOLDER

FOLDER holds ``nn/`` of the code that was published with Unke et al. (NeurIPS 2021).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from pyscf import gto

from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.angular import wigner_3j
from pyscf_deqh.nn.irreps import BlockCoupling
from pyscf_deqh.nn.phisnet import BlockOutput, PhiSNet, PhiSNetConfig

WATER = "O 0.1 0.2 0.3; H 0.9 0.2 -0.3; H -0.6 0.5 0.8"
SHELLS = {1: [0, 0, 1], 8: [0, 0, 0, 1, 1, 2]}  # of def2-SVP
CHANNELS, MODULES, LMAX = 8, 2, 4


class Copy:
    """Copies weights; signs of 3j symbols are a matter of convention."""

    def __init__(self, published: Any):
        self.symbols = published.clebsch_gordan

    def sign(self, *path: int) -> float:
        theirs, ours = self.symbols(*path), wigner_3j(*path)
        sign = float((theirs * ours).sum() / ours.square().sum())
        assert abs(abs(sign) - 1) < 1e-12, path
        return sign

    def mixing(self, ours: Any, theirs: Any) -> None:
        for l, keep in enumerate(ours.keep):
            keep.copy_(theirs.keepcoeff(l))
        for p, path in enumerate(ours.product.paths):
            ours.mix[p] = theirs.mixcoeff(*path) * self.sign(*path)

    def linear(self, ours: Any, theirs: Any) -> None:
        self.mixing(ours.mixing, theirs.mixing)
        for weight, layer in zip(ours.linear.weights, theirs.linear, strict=True):
            weight.copy_(layer.weight.T)
        ours.linear.bias.copy_(theirs.linear[0].bias)

    @staticmethod
    def swish(ours: Any, theirs: Any) -> None:
        ours.alpha.copy_(theirs.alpha)
        ours.beta.copy_(theirs.beta)

    def residuals(self, ours: Any, theirs: Any) -> None:
        for block, stacked in zip(ours, next(theirs.children()), strict=True):
            first, linear, second, zero = block.layers
            self.swish(first, stacked.activation_pre)
            self.linear(linear, stacked.linear1)
            self.swish(second, stacked.activation_post)
            self.linear(zero, stacked.linear2)

    def module(self, ours: Any, theirs: Any) -> None:
        self.residuals(ours.before, theirs.residual_pre_x)
        self.residuals(ours.after, theirs.residual_post_x)
        self.residuals(ours.out, theirs.residual_out)
        inner = theirs.interaction
        for branch, name, short in (
            (ours.interaction.own, "residual_pre_vi", "i"),
            (ours.interaction.neighbours, "residual_pre_vj", "j"),
            (ours.interaction.out, "residual_post_v", "v"),
        ):
            self.residuals(branch[0], getattr(inner, name))
            self.swish(branch[1], getattr(inner, f"activation_{short}"))
            self.linear(branch[2], getattr(inner, f"linear_{short}"))
        messages = ours.interaction.messages
        self.paths(messages.path_weights, messages.product.paths, inner.mixing)
        for l in range(LMAX + 1):
            sign = float(torch.sign(wigner_3j(0, l, l)[0, 0, 0]))
            messages.scalar_weights.weight[l] = inner.radial_fn[l].weight * sign
            messages.harmonics[l] = inner.angular_fn1.linear[l].weight[:, 0]
            messages.scalar_harmonics[l] = inner.angular_fn2.linear[l].weight[:, 0]
        messages.bias.copy_(inner.angular_fn1.linear[0].bias)
        messages.scalar_bias.copy_(inner.angular_fn2.linear[0].bias)

    def paths(self, ours: Any, paths: list[tuple[int, int, int]], theirs: Any) -> None:
        for p, path in enumerate(paths):
            ours.weight[p] = theirs.coeff(*path).weight * self.sign(*path)

    def output(self, ours: BlockOutput, theirs: Any, kind: str, pairs: list) -> None:
        shared, own = (getattr(theirs, f"residual_{name}{kind}") for name in ("", "full_"))
        self.residuals(ours.layers[0][:1], shared)
        self.residuals(ours.layers[0][1:], own)
        self.swish(ours.layers[1], getattr(theirs, f"activation_full_{kind}"))
        last, places = getattr(theirs, f"output_full_{kind}"), getattr(theirs, f"irreps_{kind}")
        self.mixing(ours.layers[2], last.mixing)
        order = path_order(ours.coupling)
        for k, (first, second) in enumerate(pairs):
            for a, la in enumerate(SHELLS[first]):
                for b, lb in enumerate(SHELLS[second]):
                    for l in range(abs(la - lb), la + lb + 1):
                        place = places.get((first, second, a, b, l))
                        if place is None:  # a pair of elements that the molecule lacks
                            continue
                        path, sign = order[slot(first, a), slot(second, b), l], self.sign(la, lb, l)
                        ours.weights[k, :, path] = last.linear[l].weight[place] * sign
                        if l == 0:
                            ours.biases[k, path] = last.linear[0].bias[place] * sign

    def everything(self, ours: PhiSNet, theirs: Any) -> None:
        for block, module in zip(ours.modular_blocks, theirs.module, strict=True):
            self.module(block, module)
        self.residuals(ours.central, theirs.residual_pc)
        self.residuals(ours.neighbours, theirs.residual_pn)
        for l in range(LMAX + 1):
            ours.atom_sum.weights.weight[l] = theirs.radial_ii[l].weight
            ours.pair_sum.weights.weight[l] = theirs.radial_ij[l].weight
        self.paths(ours.pair_mixing.weights, ours.pair_mixing.product.paths, theirs.mix_ij)
        embedding = theirs.embedding.embedding
        configurations = embedding.config_linear(embedding.electron_config.double())
        table = embedding.element_embedding + configurations
        ours.element_embedding.weight.copy_(table[list(ours.template.numbers)])
        ours.radial_basis.raw_alpha.copy_(theirs.radial_basis_functions._alpha)
        numbers = ours.template.numbers
        self.output(ours.atom_output, theirs, "ii", [(z, z) for z in numbers])
        self.output(ours.pair_output, theirs, "ij", [(z, w) for z in numbers for w in numbers])


def slot(number: int, shell: int) -> int:
    """Shell of an element in the template, which is that of oxygen."""
    l = SHELLS[number][shell]
    before = SHELLS[number][:shell].count(l)
    return [s for s, degree in enumerate(SHELLS[8]) if degree == l][before]


def path_order(coupling: BlockCoupling) -> dict[tuple[int, int, int], int]:
    """Place of each (shell, shell, degree) among the paths of a coupling."""
    order, shells = {}, SHELLS[8]
    for group in coupling.groups:
        for a, la in enumerate(shells):
            for b, lb in enumerate(shells):
                couple = abs(la - lb) <= group.degree <= la + lb
                if couple and bool((la + lb + group.degree) % 2) == group.pseudo:
                    order[a, b, group.degree] = len(order)
    return order


def pyscfs_places() -> list[int]:
    """PySCF's number of each published orbital: p functions are x, y, z there."""
    places, start = [], 0
    for number in (8, 1, 1):
        for l in SHELLS[number]:
            inner = [1, 2, 0] if l == 1 else list(range(2 * l + 1))
            places += [start + m for m in inner]
            start += 2 * l + 1
    return places


def size(network: Any, without: tuple[str, ...] = ()) -> int:
    return sum(
        p.numel() for name, p in network.named_parameters() if not any(w in name for w in without)
    )


def main(folder: str) -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    sys.path.insert(0, folder)
    from nn.neural_network import NeuralNetwork  # type: ignore

    orbitals = [[(z, l) for l in SHELLS[z]] for z in (8, 1, 1)]
    template = template_of("def2-svp", (1, 8))
    deep = {f"num_residual_{name}": 2 for name in ("full_ii", "full_ij", "core_ii", "core_ij")}
    full = NeuralNetwork(orbitals, LMAX, 128, 128, 5, num_residual_over_ij=2, **deep)
    print(f"parameters: {size(PhiSNet(template)):,}; published: {size(full):,}, "
          f"{size(full, ('core', 'over', 'angular_fn.', 'mix_s')):,} for H alone")  # fmt: skip
    theirs = NeuralNetwork(orbitals, LMAX, CHANNELS, CHANNELS, MODULES, **deep).double()
    for what in ("core_hamiltonian", "overlap_matrix", "energy", "forces"):
        setattr(theirs, f"calculate_{what}", False)
    config = PhiSNetConfig(channels=CHANNELS, radial_functions=CHANNELS, modules=MODULES)
    ours = PhiSNet(template, config)
    mol = gto.M(atom=WATER, basis="def2-svp", verbose=0)
    batch = collate([build_graph(mol, "none")], template, ours.cutoff, torch.float64)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
        Copy(theirs).everything(ours, theirs)
        injected = ours.injection(batch)
        found = ours.hamiltonian(ours.state(batch.overlap, injected), injected)[0]
        expected = theirs(torch.from_numpy(mol.atom_coords())[None])["full_hamiltonian"][0]
    places = pyscfs_places()
    error = (found[places][:, places] - expected).abs().max()
    print(f"largest difference {error:.1e}, of elements up to {expected.abs().max():.2f}")
    np.testing.assert_allclose(error, 0, atol=1e-12)


if __name__ == "__main__":
    main(sys.argv[1])
