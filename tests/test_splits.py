"""The published split rules: the sizes of Table 4, and the rows themselves by NumPy and random."""

import random
import sqlite3

import numpy as np
import pytest

from pyscf_deqh import DatasetError
from pyscf_deqh.data import splits
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.splits import SPLIT_RULES, SPLITS, split_ids


def sizes(parts):
    return tuple(len(parts[name]) for name in SPLITS)


def is_partition(parts, n):
    return np.array_equal(np.sort(np.concatenate([parts[s] for s in SPLITS])), np.arange(n))


@pytest.mark.parametrize(
    ("rule", "arguments", "n", "published"),
    [
        (splits.qh9_stable_id, (), 130_831, (104_664, 13_083, 13_084)),
        (splits.qh9_dynamic_geo, (), 99_900, (79_920, 9_990, 9_990)),
        (splits.qh9_dynamic_mol, (), 99_900, (79_900, 9_900, 10_100)),
        (splits.md17, ((500, 500),), 5_000, (500, 500, 4_000)),
        (splits.md17, ((25_000, 500),), 30_000, (25_000, 500, 4_500)),
        (splits.md17, ((25_000, 500),), 26_978, (25_000, 500, 1_478)),
    ],
)
def test_sizes_of_table_4(rule, arguments, n, published):
    parts = rule(n, *arguments)
    assert sizes(parts) == published
    assert is_partition(parts, n)


def test_stable_splits():
    parts = splits.qh9_stable_id(130_831)
    order = np.random.RandomState(43).permutation(130_831)
    np.testing.assert_array_equal(parts["train"], order[:104_664])
    np.testing.assert_array_equal(parts["test"], order[104_664 + 13_083 :])
    parts = splits.qh9_stable_ood([23, 20, 21, 3, 22, 29])
    assert [parts[s].tolist() for s in SPLITS] == [[1, 3], [2, 4], [0, 5]]


def test_dynamic_splits():
    parts = splits.qh9_dynamic_geo(300)
    order = 100 + np.random.RandomState(199).permutation(100)
    np.testing.assert_array_equal(parts["train"][80:160], order[:80])
    np.testing.assert_array_equal(parts["test"][10:20], order[90:])
    random.seed(43)
    molecules = list(range(2998))
    random.shuffle(molecules)
    parts = splits.qh9_dynamic_mol(299_800)
    assert set(parts["train"] // 100) == set(molecules[:2398])
    assert set(parts["valid"] // 100) == set(molecules[2398 : 2398 + 299])
    assert len(parts["test"]) == 100 * (2998 - 2398 - 299)


def test_md17_sizes_scale_down():
    parts = splits.md17(100, (10, 5, 20))
    assert sizes(parts) == (10, 5, 20)
    order = np.random.RandomState(42).permutation(100)
    np.testing.assert_array_equal(parts["test"], order[15:35])
    assert sizes(splits.md17(4_999, (500, 500))) == (500, 500, 3_999)
    for wrong in ((10,), (10, 0), (1, 1, 1, 1), (90, 10), (90, 10, 1)):
        with pytest.raises(DatasetError, match="split sizes"):
            splits.md17(100, wrong)


def test_rule_of_this_package():
    parts = splits.by_molecule_id([7, 17, 3, 10, 7])
    assert [parts[s].tolist() for s in SPLITS] == [[3], [2], [0, 1, 4]]


# Rules applied to files


@pytest.fixture
def stable(tmp_path):
    connection = sqlite3.connect(tmp_path / "stable.db")
    connection.execute(
        "CREATE TABLE data (id INTEGER NOT NULL PRIMARY KEY, N INTEGER, Z BLOB, pos BLOB, Ham BLOB)"
    )
    connection.executemany(
        "INSERT INTO data VALUES (?, ?, NULL, NULL, NULL)", [(5 * i, 18 + i) for i in range(10)]
    )
    connection.commit()
    connection.close()
    return tmp_path / "stable.db"


def test_rules_choose_rows_of_files(stable):
    with open_labels(stable) as file:
        assert split_ids(file, "all", "qm9-id") == list(range(0, 50, 5))
        assert split_ids(file, "valid", "qh9-stable-ood") == [15, 20]
        chosen = [split_ids(file, s, "qh9-stable-id") for s in SPLITS]
    assert [len(ids) for ids in chosen] == [8, 1, 1]
    assert all(ids == sorted(ids) for ids in chosen)


def test_what_does_not_exist_is_named(stable):
    with open_labels(stable) as file:
        with pytest.raises(DatasetError, match="no split 'dev'; there are train, valid, test"):
            split_ids(file, "dev", "qm9-id")
        with pytest.raises(DatasetError, match=r"no split rule 'random'.*" + SPLIT_RULES[1]):
            split_ids(file, "train", "random")
        with pytest.raises(DatasetError, match="belong to the rule 'md17'"):
            split_ids(file, "train", "qm9-id", (5, 2))
        with pytest.raises(DatasetError, match=r"stable\.db.*100 successive rows"):
            split_ids(file, "train", "qh9-dynamic-geo")
