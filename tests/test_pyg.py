"""Molecules as data of PyTorch Geometric."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import scf

from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats.qh9 import QH9Database, Record
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import BOHR, collate
from pyscf_deqh.graph.build import build_graph

pyg_loader = pytest.importorskip("torch_geometric.loader")

from pyscf_deqh.data.pyg import PyGHamiltonians, from_data, graphs_of, to_data  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_workers")


def graph_of(atoms, labelled=True):
    mol = make_mol(atoms, basis="sto-3g")
    fock = scf.RHF(mol).run().get_fock() if labelled else None
    return build_graph(mol, "sad", fock)


def assert_same(one, other):
    for field in fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
        assert np.shape(getattr(one, field.name)) == np.shape(getattr(other, field.name))


@pytest.fixture(scope="module")
def molecules():
    return [graph_of(WATER), graph_of(FORMAMIDE)]


def test_there_and_back(molecules):
    unlabelled = graph_of(WATER, labelled=False)
    for graph in (*molecules, unlabelled):
        data = to_data(graph)
        assert data.num_nodes == len(graph.numbers)
        assert_same(from_data(data), graph)
    assert "hamiltonian" not in to_data(unlabelled)


def test_loaders_join_molecules_of_different_sizes(molecules):
    (batch,) = pyg_loader.DataLoader([to_data(graph) for graph in molecules], batch_size=2)
    assert batch.z.tolist() == [*molecules[0].numbers, *molecules[1].numbers]
    assert batch.batch.tolist() == [0] * 3 + [1] * 6
    for found, graph in zip(graphs_of(batch), molecules, strict=True):
        assert_same(found, graph)
    template = template_of("sto-3g", (1, 6, 7, 8))
    ours, theirs = (collate(g, template, 12.0).tensors for g in (molecules, graphs_of(batch)))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name])


def test_our_datasets_are_datasets_of_pyg(tmp_path):
    with QH9Database(tmp_path / "labels.db", writable=True) as database:
        for i in range(3):
            mol = make_mol([("H", (0, 0, 0)), ("H", (0, 0, 0.7 + 0.02 * i))], basis="sto-3g")
            fock = scf.RHF(mol).run().get_fock()
            positions = BOHR * mol.atom_coords()
            database.add(Record(i, np.array([1, 1], np.int32), positions, fock))
    store = GraphStore(tmp_path / "cache", "sad", "sto-3g")
    molecules = HamiltonianDataset([tmp_path / "labels.db"], "all", store, progress=False)

    def doubled(data):
        data.pos = 2 * data.pos
        return data

    dataset = PyGHamiltonians(molecules, transform=doubled)
    assert len(dataset) == 3
    assert torch.equal(dataset[1].pos, 2 * torch.from_numpy(molecules[1].positions))
    batches = pyg_loader.DataLoader(dataset[[0, 2]], batch_size=2, num_workers=1)
    (batch,) = batches
    assert len(graphs_of(batch)) == 2
    assert torch.equal(batch.to_data_list()[1].hamiltonian, dataset[2].hamiltonian)
