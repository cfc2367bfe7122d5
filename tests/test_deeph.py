"""DeepH: local frames, and what they leave of blocks. The symmetries are in test_backbones.py."""

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol

from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import BOHR, collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.angular import representation
from pyscf_deqh.nn.deeph import DeepH, DeepHConfig, local_pairs
from pyscf_deqh.nn.wigner import wigner_frames
from pyscf_deqh.testing import predicted, untrained
from pyscf_deqh.train.loss import hamiltonian_loss

SMALL = {"atom_features": 8, "pair_features": 32}
HCN = [("H", (0, 0, -1.06)), ("C", (0, 0, 0)), ("N", (0, 0, 1.15))]


def batch_of(model, *molecules, label=False):
    graphs = []
    for atoms in molecules:
        mol = make_mol(atoms)
        h = mol.intor("int1e_kin") + mol.intor("int1e_nuc") if label else None
        graphs.append(build_graph(mol, "none", h))
    return collate(graphs, model.backbone.template, model.backbone.cutoff, torch.float64)


def test_frames_turn_the_polar_and_the_x_axis():
    rng = torch.Generator().manual_seed(0)
    direction, side = (torch.randn(5, 3, dtype=torch.float64, generator=rng) for _ in range(2))
    z = torch.nn.functional.normalize(direction, dim=-1)
    x = torch.nn.functional.normalize(side - (side * z).sum(-1, keepdim=True) * z, dim=-1)
    axes = torch.stack([x, torch.linalg.cross(z, x), z], dim=-1)  # columns
    order = [1, 2, 0]
    for l, found in enumerate(wigner_frames(4, direction, side)):
        for matrix, expected in zip(found, axes[:, order][:, :, order], strict=True):
            torch.testing.assert_close(matrix, representation(l, expected), atol=1e-12, rtol=0)


def test_frames_and_triples_are_those_of_a_search_by_hand():
    model = untrained("deeph", **SMALL)
    molecules = (WATER, FORMAMIDE)
    batch = batch_of(model, *molecules)
    pairs = local_pairs(batch)
    positions = np.concatenate([[r for _, r in atoms] for atoms in molecules])
    first, second = pairs.atoms.tolist()
    triples = {p: set() for p in range(len(first))}
    for p, edge in zip(pairs.triple_pair.tolist(), pairs.triple_edge.tolist(), strict=True):
        assert first[edge] == first[p]
        triples[p].add(second[edge])
    molecule = batch.molecule.tolist()
    for p, (i, j) in enumerate(zip(first, second, strict=True)):
        others = [k for k in range(len(positions)) if molecule[k] == molecule[i]]
        assert triples[p] == set(others)
        others.remove(i)
        others.sort(key=lambda k: np.linalg.norm(positions[k] - positions[i]))
        axis = others[0] if i == j else j
        vector = positions[axis] - positions[i]
        np.testing.assert_allclose(pairs.direction[p], vector / np.linalg.norm(vector), atol=1e-12)
        beside = next(k for k in others if k != axis)
        np.testing.assert_allclose(pairs.side[p], positions[beside] - positions[i], atol=1e-12)
        np.testing.assert_allclose(pairs.vector[p], positions[j] - positions[i], atol=1e-12)
    assert (pairs.freedom == 2).all()
    assert BOHR < 1


@pytest.mark.parametrize("atoms", [HCN, HCN[1:]], ids=["HCN", "CN"])
def test_linear_molecules_are_axially_symmetric(atoms):
    """Matrix elements of different m about the axis vanish, those of m and -m are the same."""
    model = untrained("deeph", **SMALL)
    charge = 0 if len(atoms) == 3 else -1
    h = predicted(model, atoms, charge=charge)[0].numpy()
    mol = make_mol(atoms, charge=charge)
    orders = np.array([abs(m) for m in magnetic_numbers(mol)])
    different = orders[:, None] != orders
    np.testing.assert_allclose(h[different], 0, atol=1e-10 * np.abs(h).max())
    assert np.abs(h[~different]).max() > 0.01
    turned = [(s, (r[2], 0, 0)) for s, r in atoms]
    other = predicted(model, turned, charge=charge)[0].numpy()
    levels = [np.linalg.eigvalsh(matrix) for matrix in (h, other)]
    np.testing.assert_allclose(*levels, atol=1e-10 * np.abs(h).max())
    assert np.abs(h - other).max() > 0.01


def magnetic_numbers(mol):
    """Of each AO, in PySCF's order: x, y, z of p functions are 1, -1, 0."""
    numbers = []
    for shell in range(mol.nbas):
        l = mol.bas_angular(shell)
        inner = [1, -1, 0] if l == 1 else list(range(-l, l + 1))
        numbers += inner * mol.bas_nctr(shell)
    return numbers


def test_atoms_are_spheres():
    h = predicted(untrained("deeph", **SMALL), [("F", (0, 0, 0))], charge=-1)[0].numpy()
    l = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    np.testing.assert_allclose(h[l[:, None] != l], 0, atol=1e-12)
    np.testing.assert_allclose(h[9:, 9:], h[9, 9] * np.eye(5), atol=1e-12)


def test_every_parameter_gets_a_gradient():
    """But those of elements and of pairs of elements that the molecule lacks."""
    model = untrained("deeph", **SMALL).train()
    batch = batch_of(model, FORMAMIDE, label=True)
    hamiltonian_loss(model(batch).hamiltonian, batch, 0.0)["loss"].backward()
    elements = [0, 1, 2, 3]  # H, C, N, O of H, C, N, O, F
    heavy = {(a, b) for a in elements for b in elements if a == b == 0 or a != b}
    idle = {f"backbone.outputs.{5 * a + b}." for a in range(5) for b in range(5)
            if (a, b) not in heavy} | {"backbone.onsite_outputs.4."}  # fmt: skip
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {name for name in unused if not name.startswith(tuple(idle))} == set()


def test_size_is_the_published_codes():
    """Layer by layer at its default widths, for one element."""
    template = template_of("def2-svp", (6,))
    atom, pair, hidden, harmonics, orbitals = 64, 128, 128, 25, template.size**2

    def dense(inputs, outputs):
        return (inputs + 1) * outputs

    width, norm = 2 * atom + pair, 2 * atom
    layers = 5 * (2 * dense(width, atom) + norm + dense(width, hidden))
    layers += 4 * dense(hidden, pair) + dense(hidden, pair - harmonics)
    last = 2 * dense(width, atom) + norm + dense(width - harmonics, hidden)
    last += dense(hidden, orbitals)
    published = (1 + 5) * atom + layers + last
    # Without embeddings that no element has and a norm that is not applied; on-site blocks have
    # outputs of their own.
    expected = published - 5 * atom - norm + dense(hidden, orbitals)
    network = DeepH(template)
    assert sum(p.numel() for p in network.parameters()) == expected == 522_159


def test_options():
    with pytest.raises(ConfigError, match="not one of none, sad"):
        DeepHConfig(reference="minao")
    with pytest.raises(ConfigError, match="more than there are spherical harmonics"):
        DeepHConfig(pair_features=25)


def test_an_axis_without_a_plane_of_its_own():
    """An atom that sees others on its pair's axis alone, while the other atom sees more."""
    carbons = [("C", (0, 0, z)) for z in (0.0, 1.21, 2.58, 3.79, 5.25)]
    # At different distances: among equal neighbours the first one makes a frame.
    hydrogens = [
        ("H", (r * np.cos(a), r * np.sin(a), 5.61))
        for r, a in ((1.03, 0.3), (1.05, 2.4), (1.07, 4.5))
    ]
    atoms = [("H", (0, 0, -1.06)), *carbons, *hydrogens]
    model = untrained("deeph", cutoff=6.4, **SMALL)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    turned = [(s, tuple(turn @ np.array(r))) for s, r in atoms]
    # Orbitals turn among each other by an orthogonal matrix.
    before, after = (torch.linalg.eigvalsh(predicted(model, a)[0]) for a in (atoms, turned))
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)
