"""MD17 of SchNOrb as ASE database and as npz, with matrices that PySCF made in ORCA's AO order."""

import sqlite3
import sys

import numpy as np
import pytest
from conftest import WATER, in_another_order, make_mol
from pyscf import scf

from pyscf_deqh import DatasetError
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.splits import SPLITS, split_ids

# ORCA's order inside a shell, in the words of PySCF's labels.
ORCA_LABELS = {"s": [""], "p": ["z", "x", "y"], "d": ["z^2", "xz", "yz", "x2-y2", "xy"]}


def in_orca_order(mol, matrix):
    return in_another_order(mol, matrix, ORCA_LABELS)


def water(stretch=0.0):
    return make_mol([(s, (x, y * (1 + stretch), z)) for s, (x, y, z) in WATER])


def example(n=4):
    """(Arrays as in an npz file of n geometries, PySCF's Hamiltonians)."""
    mols = [water(0.01 * i) for i in range(n)]
    matrices = [scf.hf.get_hcore(mol) for mol in mols]
    arrays = {
        "numbers": np.array([8, 1, 1]),
        "positions": np.array([mol.atom_coords(unit="angstrom") for mol in mols]),
        "hamiltonian": np.array([in_orca_order(*p) for p in zip(mols, matrices, strict=True)]),
        "overlap": np.array([in_orca_order(mol, mol.intor("int1e_ovlp")) for mol in mols]),
        "energy": np.arange(float(n))[:, None] - 76,
    }
    return arrays, matrices


def write_ase(path, arrays):
    ase = pytest.importorskip("ase")
    from ase.db import connect

    with connect(str(path)) as database:
        for i, positions in enumerate(arrays["positions"]):
            data = {
                k: arrays[k][i] for k in ("energy", "hamiltonian", "overlap") if k in arrays
            } | {"forces": np.zeros((3, 3))}
            database.write(ase.Atoms(arrays["numbers"], positions), data=data)
    return path


def as_json(path):
    """Bring an ASE database to the older form, in which row data is text."""
    from ase.db import connect
    from ase.io.jsonio import encode

    texts = [(encode(dict(row.data)), row.id) for row in connect(str(path)).select()]
    connection = sqlite3.connect(path)
    connection.executemany("UPDATE systems SET data = ? WHERE id = ?", texts)
    connection.execute("UPDATE information SET value = '8' WHERE name = 'version'")
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("form", ["npz", "compressed npz", "ase", "ase text"])
def test_matrices_come_in_pyscf_order(tmp_path, form):
    arrays, matrices = example(3)
    if "npz" in form:
        path = tmp_path / "water.npz"
        (np.savez_compressed if "compressed" in form else np.savez)(path, **arrays)
    else:
        path = write_ase(tmp_path / "water.db", arrays)
        if form == "ase text":
            as_json(path)
    with open_labels(path) as file:
        assert len(file) == 3
        assert file.sizes() == [3, 3, 3]
        ids = file.ids()
        records = list(file)
        with pytest.raises(KeyError):
            file[ids[-1] + 1]
    assert [r.id for r in records] == ids
    for record, matrix, positions in zip(records, matrices, arrays["positions"], strict=True):
        np.testing.assert_allclose(record.hamiltonian, matrix, atol=1e-12)
        np.testing.assert_array_equal(record.positions, positions)
        assert record.numbers.tolist() == [8, 1, 1]
    assert records[1].meta["energy"] == -75


def test_other_names_of_arrays(tmp_path):
    arrays, matrices = example(1)
    arrays["Z"], arrays["R"] = arrays.pop("numbers"), arrays.pop("positions")
    del arrays["energy"]
    np.savez(tmp_path / "a.npz", **arrays)
    with open_labels(tmp_path / "a.npz") as file:
        np.testing.assert_allclose(file[0].hamiltonian, matrices[0], atol=1e-12)


def test_datasets(tmp_path, quick_workers):
    arrays, matrices = example(5)
    np.savez(tmp_path / "water.npz", **arrays)
    store = GraphStore(tmp_path / "cache", "none", "def2-svp")

    def part(split, sizes=(2, 1)):
        return HamiltonianDataset(
            [tmp_path / "water.npz"], split, store, workers=1, progress=False,
            split_rule="md17", split_sizes=sizes,
        )  # fmt: skip

    assert len(part("all", ())) == 5
    order = np.random.RandomState(42).permutation(5)
    assert [len(part(s)) for s in SPLITS] == [2, 1, 2]
    (valid,) = part("valid")
    np.testing.assert_allclose(valid.hamiltonian, matrices[order[2]], atol=1e-5)
    assert len(part("test", (2, 1, 1))) == 1
    with pytest.raises(DatasetError, match=r"water\.npz: .*\[500, 500\] do not fit 5 rows"):
        part("train", ())
    with (
        open_labels(tmp_path / "water.npz") as file,
        pytest.raises(DatasetError, match=r"its rule is 'md17'"),
    ):
        split_ids(file, "train", "qm9-id")


def test_only_published_molecules_have_published_sizes(tmp_path):
    mol = make_mol("H 0 0 0; H 0 0 .74")
    np.savez(
        tmp_path / "h2.npz", Z=[1, 1], R=mol.atom_coords(unit="angstrom")[None],
        hamiltonian=in_orca_order(mol, scf.hf.get_hcore(mol))[None],
        overlap=in_orca_order(mol, mol.intor("int1e_ovlp"))[None],
    )  # fmt: skip
    with (
        open_labels(tmp_path / "h2.npz") as file,
        pytest.raises(DatasetError, match=r"no sizes are published for H2 \(only for H2O, C2H6O"),
    ):
        split_ids(file, "train", "md17")


def in_pyscf_order(arrays):
    arrays["overlap"] = np.array([water().intor("int1e_ovlp")])


def other_phase(arrays):
    arrays["overlap"][:, 3] *= -1
    arrays["overlap"][:, :, 3] *= -1


def in_bohr(arrays):
    arrays["positions"] = arrays["positions"] / 0.529177


def asymmetric(arrays):
    arrays["hamiltonian"][0, 0, 1] += 1e-3


def not_a_number(arrays):
    arrays["hamiltonian"][0, 0, 0] = np.nan


def too_small(arrays):
    arrays["hamiltonian"] = arrays["hamiltonian"][:, :20, :20]


def strange_atoms(arrays):
    arrays["numbers"] = np.array([8, 1, 0])


def without_overlap(arrays):
    del arrays["overlap"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (in_pyscf_order, "off PySCF's"),
        (other_phase, "off PySCF's"),
        (in_bohr, "off PySCF's"),
        (asymmetric, "not symmetric"),
        (not_a_number, "NaN"),
        (too_small, r"\(20, 20\) does not fit 24 orbitals"),
        (strange_atoms, "not atomic numbers"),
    ],
)
@pytest.mark.parametrize("form", ["npz", "db"])
def test_bad_rows_are_named(tmp_path, form, damage, message):
    arrays, _ = example(1)
    damage(arrays)
    path = tmp_path / f"bad.{form}"
    if form == "npz":
        np.savez(path, **arrays)
    else:
        write_ase(path, arrays)
    with open_labels(path) as file, pytest.raises(DatasetError, match=message) as caught:
        file[file.ids()[0]]
    assert ("bad.npz, row 0" if form == "npz" else "bad.db, id 1") in str(caught.value)


def test_rows_without_overlap(tmp_path):
    arrays, _ = example(1)
    without_overlap(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DatasetError, match=r"bad\.npz.*lacks the arrays overlap"):
        open_labels(tmp_path / "bad.npz")
    with (
        open_labels(write_ase(tmp_path / "bad.db", arrays)) as file,
        pytest.raises(DatasetError, match=r"bad\.db, id 1: .*lacks overlap"),
    ):
        file[1]


def test_bad_npz_files(tmp_path):
    arrays, _ = example(2)
    np.savez(tmp_path / "a.npz", **(arrays | {"positions": arrays["positions"][:1]}))
    with pytest.raises(DatasetError, match=r"a\.npz.*different lengths"):
        open_labels(tmp_path / "a.npz")
    objects = np.array([{"pickled": True}, None], dtype=object)
    np.savez(tmp_path / "b.npz", **(arrays | {"hamiltonian": objects}))
    with pytest.raises(DatasetError, match=r"b\.npz.*hamiltonian holds Python objects"):
        open_labels(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DatasetError, match=r"c\.npz"):
        open_labels(tmp_path / "c.npz")
    np.savez(tmp_path / "d.npz", **arrays)
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"d\.npz"):
        open_labels(tmp_path / "d.npz")


def test_ase_is_asked_for(tmp_path, monkeypatch):
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE systems (id INTEGER, natoms INTEGER)")
    connection.commit()
    connection.close()
    monkeypatch.setitem(sys.modules, "ase.db", None)
    with pytest.raises(DatasetError, match=r"a\.db is an ASE database.*pyscf_deqh\[md17\]"):
        open_labels(tmp_path / "a.db")


def test_damaged_ase_row(tmp_path):
    path = write_ase(tmp_path / "a.db", example(1)[0])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE systems SET data = ?", (b"\x08" + bytes(7) + b"no json",))
    connection.commit()
    connection.close()
    with open_labels(path) as file, pytest.raises(DatasetError, match=r"a\.db, id 1"):
        file[1]
