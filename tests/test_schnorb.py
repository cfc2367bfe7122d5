"""SchNOrb: size, polynomials, and how it is taught rotations."""

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from scipy.spatial.transform import Rotation

from pyscf_deqh import testing
from pyscf_deqh.errors import ConfigError
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.schnorb import SchNOrb, SchNOrbConfig
from pyscf_deqh.testing import predicted, untrained
from pyscf_deqh.train.loss import hamiltonian_loss

SMALL = {"features": 12, "factors": 12, "directions": 3, "gaussians": 8}


def test_rotations_are_not_built_in():
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        testing.check_rotation(untrained("schnorb", **SMALL))


def batch_of(model, *molecules):
    graphs = []
    for atoms in molecules:
        mol = make_mol(atoms)
        label = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
        graphs.append(build_graph(mol, "none", label))
    return collate(graphs, model.backbone.template, model.backbone.cutoff, torch.float64)


def test_training_turns_each_molecule_and_its_blocks_back():
    model = untrained("schnorb", **SMALL)
    batch = batch_of(model, WATER, FORMAMIDE)
    levels = model.backbone.levels  # of each orbital; they are turned as all else is
    levels.data = torch.linspace(-1, 1, levels.numel(), dtype=levels.dtype).view_as(levels)
    model.train()
    torch.manual_seed(5)
    found = model(batch).hamiltonian.detach().numpy()
    torch.manual_seed(5)
    poles, sides = torch.randn(2, 2, 3, dtype=torch.float64).numpy()
    model.eval()
    for h, atoms, pole, side in zip(found, (WATER, FORMAMIDE), poles, sides, strict=True):
        z = pole / np.linalg.norm(pole)
        x = side - side @ z * z
        x /= np.linalg.norm(x)
        matrix = np.stack([x, np.cross(z, x), z], axis=-1)
        assert np.linalg.det(matrix) == pytest.approx(1)
        turned = [(symbol, tuple(matrix @ r)) for symbol, r in atoms]
        n, orbitals = make_mol(atoms).nao, turned_orbitals(atoms, turned, matrix)
        expected = orbitals.T @ predicted(model, turned)[0].numpy() @ orbitals
        np.testing.assert_allclose(h[:n, :n], expected, atol=1e-10 * np.abs(expected).max())
        assert np.abs(h[:n, :n] - predicted(model, atoms)[0].numpy()).max() > 1e-3


def turned_orbitals(before, after, matrix):
    """Orthogonal T with phi_after(R r) = T phi_before(r), by values at points."""
    points = np.random.default_rng(1).normal(scale=2.0, size=(2000, 3))
    values = [make_mol(atoms).eval_gto("GTOval", p)
              for atoms, p in ((before, points), (after, points @ matrix.T))]  # fmt: skip
    return np.linalg.lstsq(values[0], values[1], rcond=None)[0].T


@pytest.mark.slow
def test_copies_teach_rotations():
    """One water molecule: a training without turned copies knows it from one side alone."""
    views = Rotation.random(4, random_state=2).as_matrix()

    def error(turned):
        model = untrained("schnorb", **(SMALL | {"features": 32, "factors": 32}))
        batch = batch_of(model, WATER)
        model.backbone.standardize([batch])
        model.train(turned)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(150):
            optimizer.zero_grad()
            hamiltonian_loss(model(batch).hamiltonian, batch, 0.0)["loss"].backward()
            optimizer.step()
        model.eval()
        found = 0.0
        for matrix in views:
            turned = [(symbol, tuple(matrix @ r)) for symbol, r in WATER]
            mol = make_mol(turned)
            label = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
            found += np.abs(predicted(model, turned)[0].numpy() - label).mean() / len(views)
        return found

    errors = [error(turned) for turned in (True, False)]
    assert errors[0] < 0.7 * errors[1]


def test_blocks_are_polynomials_of_direction_cosines():
    """F-H turned about the z axis: Fourier components up to 2 lmax, and no others."""
    model = untrained("schnorb", **SMALL)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    element = [
        predicted(model, [("F", (0, 0, 0)), ("H", (np.cos(a), np.sin(a), 0.3))])[0, 0, -1].item()
        for a in angles
    ]
    amplitudes = np.abs(np.fft.rfft(element)) / len(angles)
    assert (amplitudes[:5] > 1e-10).all()
    np.testing.assert_allclose(amplitudes[5:], 0, atol=1e-12)


def test_levels_start_at_the_labels_means():
    model = untrained("schnorb", **SMALL)
    batch = batch_of(model, WATER, FORMAMIDE)
    model.backbone.standardize([batch])
    mol = make_mol(WATER)
    water = np.diag(mol.intor("int1e_kin") + mol.intor("int1e_nuc"))
    formamide = make_mol(FORMAMIDE)
    amide = np.diag(formamide.intor("int1e_kin") + formamide.intor("int1e_nuc"))
    oxygen = (water[0] + amide[formamide.aoslice_by_atom()[1, 2]]) / 2
    levels = model.backbone.levels[3]
    assert levels[0].item() == pytest.approx(oxygen)
    assert not model.backbone.levels[4].any()  # no fluorine


def test_size_is_the_published_codes():
    """Layer by layer, for water in def2-SVP; without embeddings of other elements."""
    template = template_of("def2-svp", (1, 8))
    f, g, directions, size = 1000, 50, 12, template.size**2

    def dense(inputs, outputs):
        return (inputs + 1) * outputs

    filters = dense(g, f) + dense(f, f)
    schnet = filters + f * f + 2 * dense(f, f)
    first = filters + 2 * dense(f, f) + 3 * 2 * dense(f, f)
    others = first + 3 * dense(3, directions)
    outputs = 2 * dense(f * directions * 5, size)
    levels, embedding = 2 * template.size, 2 * f
    published = 3 * schnet + first + 4 * others + outputs + levels + embedding
    network = SchNOrb(template)
    # After the last interaction only the energy's branch reads the atoms.
    expected = published - 2 * dense(f, f)
    assert sum(p.numel() for p in network.parameters()) == expected == 78_982_996


def test_every_parameter_gets_a_gradient():
    """But those of elements that the molecule lacks."""
    model = untrained("schnorb", **SMALL).train()
    batch = batch_of(model, FORMAMIDE)
    hamiltonian_loss(model(batch).hamiltonian, batch, 0.0)["loss"].backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert unused == set()


def test_options():
    with pytest.raises(ConfigError, match="gaussians: two or more"):
        SchNOrbConfig(gaussians=1)
    with pytest.raises(ConfigError, match="lmax of 2 for this basis set"):
        SchNOrb(template_of("def2-svp", (1, 8)), SchNOrbConfig(lmax=1))
