"""nablaDFT's schema, with matrices that PySCF made in the AO orders of Psi4 and PhiSNet."""

import sqlite3

import numpy as np
import pytest
from conftest import in_another_order, make_mol
from pyscf import scf
from test_md17 import ORCA_LABELS

from pyscf_deqh import DatasetError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.splits import split_ids

# Psi4's order is ORCA's; PhiSNet has m = -l ... l.
ORDERS = {
    "Psi4": ORCA_LABELS,
    "PhiSNet": {"s": [""], "p": ["y", "z", "x"], "d": ["xy", "yz", "z^2", "xz", "x2-y2"]},
}
SCHEMA = """
CREATE TABLE dataset_ids (id INTEGER NOT NULL PRIMARY KEY, MOSES_ID INT, CONFORMER_ID INT);
CREATE TABLE data (id INTEGER NOT NULL PRIMARY KEY, Z BLOB, R BLOB, E FLOAT, F BLOB, H BLOB, S BLOB,
                   C BLOB);
CREATE TABLE nuclear_charges (id INTEGER NOT NULL PRIMARY KEY, N INTEGER, Z BLOB);
CREATE TABLE basisset (Z INTEGER NOT NULL PRIMARY KEY, orbitals BLOB);
CREATE TABLE metadata (id INTEGER PRIMARY KEY, N INTEGER);
"""


def molecules():
    """Hydrogen twice, hydrogen sulfide, hydrogen bromide."""
    hydrogens = [make_mol([("H", (0, 0, 0)), ("H", (0, 0.1, r))]) for r in (0.7, 0.8)]
    sulfide = make_mol([("S", (0, 0.1, 0)), ("H", (0.97, 0, 0.9)), ("H", (-0.95, 0.2, 0.9))])
    bromide = make_mol([("Br", (0.1, 0, 0)), ("H", (0.3, 0.2, 1.4))])
    return [*hydrogens, sulfide, bromide]


def blob(array, dtype):
    return np.ascontiguousarray(array, dtype).tobytes()


def write(path, order="Psi4", unit="bohr", ids=(7, 7, 13, 20)):
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA)
    for i, (mol, molecule) in enumerate(zip(molecules(), ids, strict=True)):
        matrices = (scf.hf.get_hcore(mol), mol.intor("int1e_ovlp"))
        h, s = (blob(in_another_order(mol, m, ORDERS[order]), "<f4") for m in matrices)
        z, r = blob(mol.atom_charges(), "<i4"), blob(mol.atom_coords(unit=unit), "<f4")
        force = blob(np.zeros((mol.natm, 3)), "<f4")
        connection.execute(
            "INSERT INTO data VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (i, z, r, -1.5 * i, force, h, s, h)
        )
        connection.execute("INSERT INTO dataset_ids VALUES (?, ?, ?)", (i, molecule, i % 3))
    connection.execute("INSERT INTO metadata VALUES (0, 4)")
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_pyscfs(tmp_path, order):
    with open_labels(write(tmp_path / "a.db", order)) as labels:
        assert labels.format == "nablaDFT"
        assert labels.ids() == [0, 1, 2, 3]
        assert labels.sizes() == [2, 2, 3, 2]
        assert labels.settings()["xc"] == "wb97x-d"
        for i, mol in enumerate(molecules()):
            record = labels[i]
            np.testing.assert_array_equal(record.numbers, mol.atom_charges())
            np.testing.assert_allclose(
                record.positions, mol.atom_coords(unit="angstrom"), atol=1e-6
            )
            np.testing.assert_allclose(record.hamiltonian, scf.hf.get_hcore(mol), rtol=2e-7,
                                       atol=1e-6)  # fmt: skip
            assert record.meta["energy"] == -1.5 * i


def test_conformers_of_a_molecule_stay_together(tmp_path):
    path = write(tmp_path / "a.db")
    store = tmp_path / "a.store"
    assert main(["convert", str(path), str(store)]) == 0
    for file in (path, store):
        with open_labels(file) as labels:
            assert labels.molecules() == [7, 7, 13, 20]
            assert split_ids(labels, "test", "qm9-id", []) == [0, 1]
            assert split_ids(labels, "valid", "qm9-id", []) == [2]
            assert labels[1].meta["conformer_id"] == 1


def test_what_is_not_so_is_refused(tmp_path):
    with (
        open_labels(write(tmp_path / "a.db", unit="angstrom")) as labels,
        pytest.raises(DatasetError, match=r"the stored overlap is off PySCF's by .* unit"),
    ):
        labels[2]
    with (
        open_labels(write(tmp_path / "b.db")) as labels,
        pytest.raises(KeyError, match="no row with id 9"),
    ):
        labels[9]
    for column, value, message in (
        ("H", b"1234" * 3, "no square"), ("S", None, "no array"), ("Z", b"123", "buffer size"),
        ("R", b"1234" * 4, "reshape"),
    ):  # fmt: skip
        path = write(tmp_path / f"{column}.db")
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE data SET {column} = ? WHERE id = 0", (value,))
        with open_labels(path) as labels, pytest.raises(DatasetError, match=f"id 0: .*{message}"):
            labels[0]


def test_phisnets_files_name_no_molecules(tmp_path):
    path = write(tmp_path / "a.db")
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE dataset_ids")
    with open_labels(path) as labels:
        assert labels.molecules() is None
        assert "qm9_id" not in labels[0].meta
