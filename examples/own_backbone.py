"""A backbone of one's own in seventy lines: blocks of matrices, scaled by elements and distances.

``python own_backbone.py`` runs the checks that every backbone has to pass;
docs/add-a-backbone.md goes through it.
"""

from dataclasses import asdict, dataclass

import torch
from torch import nn

from pyscf_deqh.nn.backbones import register
from pyscf_deqh.nn.deqh import Backbone
from pyscf_deqh.testing import CHECKS, untrained

BOHR = 0.529177210903  # angstrom


@dataclass(frozen=True)
class ScaledBlocksConfig:
    reference: str = "sad"  # the network learns the difference to superposed atomic densities
    cutoff: float = 8.0  # angstrom
    width: int = 32

    @property
    def cutoff_bohr(self):
        return self.cutoff / BOHR

    def to_config(self):
        return asdict(self)


@register("scaled-blocks", ScaledBlocksConfig)
class ScaledBlocks(Backbone):
    """H_AB <- R_AB + a S_AB + b R_AB + c (H_AB - R_AB) for each pair of atoms A and B."""

    state_is_hamiltonian = True

    def __init__(self, template, config):
        super().__init__(template, config)
        self.element = nn.Embedding(len(template.numbers), config.width)
        self.register_buffer("decays", torch.linspace(0.25, 2.0, 8))
        self.factors = nn.Sequential(
            nn.Linear(config.width + 8, config.width), nn.SiLU(), nn.Linear(config.width, 3)
        )

    def injection(self, graph):
        """All that does not depend on H: here the factors of all pairs, (N + E, 1, 3)."""
        i, j = torch.cat([graph.atoms.expand(2, -1), graph.edge_index], dim=1)
        none = graph.edge_vector.new_zeros(graph.n_atoms)
        distances = torch.cat([none, graph.edge_vector.norm(dim=-1)])
        elements = self.element(graph.element[i]) + self.element(graph.element[j])  # symmetric
        radial = torch.exp(-distances[:, None] * self.decays)
        factors = 0.3 * torch.tanh(self.factors(torch.cat([elements, radial], dim=-1)))
        return graph, i, j, factors[:, None]

    def state(self, hamiltonian, injected):
        """What f reads of a Hamiltonian: the difference to the reference."""
        return hamiltonian - injected[0].reference

    def filter(self, state, injected):
        """One application of f."""
        graph, i, j, factors = injected
        blocks = graph.blocks(i, j, graph.overlap, graph.reference, state)  # (N + E, T T, 3)
        size = self.template.size
        new = (blocks * factors).sum(-1).view(-1, size, size)
        return graph.matrix(new[: graph.n_atoms], new[graph.n_atoms :])

    def hamiltonian(self, state, injected):
        return injected[0].reference + state


if __name__ == "__main__":
    for check in CHECKS:
        check(untrained("scaled-blocks"))
        print(f"{check.__name__}: passed")
