"""Which rows are for training, validation and test: the published rules, and this package's own.

Every published rule gives positions in the order of the file's rows. Sources: QH9 (Yu et al.,
NeurIPS 2023) with seed 43, MD17 with the seed 42 of QHNet; sizes in Table 4 of the paper.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..errors import DatasetError
from .record import LabelFile

SPLITS = ("train", "valid", "test")
Positions = dict[str, np.ndarray]

_GEOMETRIES = 100  # per molecule in QH9-dynamic
# Training and validation geometries by composition; the rest is for test.
_MD17_SIZES = {
    "H2O": (500, 500),
    "C2H6O": (25000, 500),
    "C3H4O2": (25000, 500),
    "C4H4N2O2": (25000, 500),
}


def split_of(qm9_id: int) -> str:
    """``test`` for ``qm9_id % 10 == 7``, ``valid`` for ``== 3``, else ``train``."""
    return {7: "test", 3: "valid"}.get(qm9_id % 10, "train")


def _parts(order: np.ndarray, n_train: int, n_valid: int) -> Positions:
    train, valid, test = np.split(order, [n_train, n_train + n_valid])
    return {"train": train, "valid": valid, "test": test}


def by_molecule_id(molecules: Sequence[int]) -> Positions:
    """:func:`split_of` of each row's molecule: all geometries of a molecule go together."""
    splits = np.array([split_of(molecule) for molecule in molecules])
    return {name: np.flatnonzero(splits == name) for name in SPLITS}


def qh9_stable_id(n: int) -> Positions:
    """Random 80/10/10 of ``n`` rows."""
    order = np.random.RandomState(43).permutation(n)
    return _parts(order, int(0.8 * n), int(0.1 * n))


def qh9_stable_ood(sizes: Sequence[int]) -> Positions:
    """By number of atoms: up to 20 train, 21 and 22 validate, 23 and more test."""
    atoms = np.asarray(sizes)
    return {
        "train": np.flatnonzero(atoms <= 20),
        "valid": np.flatnonzero((atoms > 20) & (atoms < 23)),
        "test": np.flatnonzero(atoms >= 23),
    }


def qh9_dynamic_geo(n: int) -> Positions:
    """80/10/10 of the 100 geometries of each molecule, drawn anew for each; ``n`` rows in all."""
    parts = []
    for start in range(0, n, _GEOMETRIES):
        # The seed is the position of the molecule's last row.
        order = np.random.RandomState(start + _GEOMETRIES - 1).permutation(_GEOMETRIES)
        parts.append(_parts(start + order, 80, 10))
    return {name: np.concatenate([p[name] for p in parts]) for name in SPLITS}


def qh9_dynamic_mol(n: int) -> Positions:
    """80/10/10 of the molecules, 100 rows each; ``n`` rows in all."""
    molecules = list(range(n // _GEOMETRIES))
    random.Random(43).shuffle(molecules)
    chosen = _parts(np.array(molecules), int(0.8 * len(molecules)), int(0.1 * len(molecules)))
    geometries = np.arange(_GEOMETRIES)
    return {
        name: (_GEOMETRIES * np.sort(part)[:, None] + geometries).reshape(-1)
        for name, part in chosen.items()
    }


def md17(n: int, sizes: Sequence[int]) -> Positions:
    """``sizes`` = (training, validation[, test]) of ``n`` rows at random; test may be the rest.

    Raises:
        DatasetError: the sizes are not two or three positive numbers, or there are too few rows.
    """
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise DatasetError(
            f"split sizes {list(sizes)}: give training, validation and, if it shall not be the "
            "rest, test"
        )
    # At least one row is left for test.
    if sum(sizes) + (len(sizes) == 2) > n:
        raise DatasetError(f"split sizes {list(sizes)} do not fit {n} rows")
    order = np.random.RandomState(42).permutation(n)
    return _parts(order[: sum(sizes)] if len(sizes) == 3 else order, sizes[0], sizes[1])


def _formula(numbers: np.ndarray) -> str:
    counts = Counter({1: "H", 6: "C", 7: "N", 8: "O"}.get(int(z), "X") for z in numbers)
    return "".join(f"{s}{n}" if n > 1 else s for s, n in sorted(counts.items()))


def _by_molecule_id(file: LabelFile, sizes: Sequence[int]) -> Positions:
    molecules = file.molecules()
    if molecules is None:
        raise DatasetError(
            f"{file.path}: the rule 'qm9-id' needs the molecule of each row, which a file of "
            f"{file.format} does not have; its rule is 'md17'"
        )
    return by_molecule_id(molecules)


def _trajectories(rule: Callable[[int], Positions], file: LabelFile) -> Positions:
    molecules = np.asarray(file.molecules() or [])
    n = len(molecules)
    if not n or n % _GEOMETRIES or (np.diff(molecules.reshape(-1, _GEOMETRIES), axis=1) != 0).any():
        raise DatasetError(
            f"{file.path}: the rules of QH9-dynamic need {_GEOMETRIES} successive rows of each "
            f"molecule, as in the published files; the file's {n} rows are not so"
        )
    return rule(n)


def _md17(file: LabelFile, sizes: Sequence[int]) -> Positions:
    n = len(file)
    if not sizes and n:
        formula = _formula(file[file.ids()[0]].numbers)
        if formula not in _MD17_SIZES:
            raise DatasetError(
                f"{file.path}: no sizes are published for {formula} (only for "
                f"{', '.join(_MD17_SIZES)}); give split sizes"
            )
        sizes = _MD17_SIZES[formula]
    try:
        return md17(n, sizes)
    except DatasetError as error:
        raise DatasetError(
            f"{file.path}: {error}; give others (data.split_sizes, --split-sizes)"
        ) from error


_RULES: dict[str, Callable[[LabelFile, Sequence[int]], Positions]] = {
    "qm9-id": _by_molecule_id,
    "qh9-stable-id": lambda file, _: qh9_stable_id(len(file)),
    "qh9-stable-ood": lambda file, _: qh9_stable_ood(file.sizes()),
    "qh9-dynamic-geo": lambda file, _: _trajectories(qh9_dynamic_geo, file),
    "qh9-dynamic-mol": lambda file, _: _trajectories(qh9_dynamic_mol, file),
    "md17": _md17,
}
SPLIT_RULES = tuple(_RULES)
# They draw by a row's place among all: where rows are added, others may come into another split.
BY_NUMBER_OF_ROWS = frozenset(("qh9-stable-id", "qh9-dynamic-geo", "qh9-dynamic-mol", "md17"))


def check_rows(
    rule: str, trained_on: Mapping[str, Sequence[int]], rows: Mapping[str, Sequence[int]]
) -> None:
    """Refuse files that have another number of rows than at a training, if it is split by that.

    Args:
        rule: one of :data:`SPLIT_RULES`.
        trained_on: numbers of rows of the files of each name, at the training.
        rows: the same now; of other files, too.

    Raises:
        DatasetError: one has, and its test rows may have been trained on.
    """
    if rule not in BY_NUMBER_OF_ROWS:
        return
    for name in rows.keys() & trained_on.keys():
        before = Counter(trained_on[name])
        for n in Counter(rows[name]) - before:
            raise DatasetError(
                f"{name} has {n} rows, at the training it had {' or '.join(map(str, before))}: by "
                f"the rule {rule!r} each row may be in another split now, test rows in training. "
                "Take the file as it was then; a file of other molecules is all for test "
                "('--split all' of 'train evaluate')"
            )


def split_ids(file: LabelFile, split: str, rule: str, sizes: Sequence[int] = ()) -> list[int]:
    """Rows of one split of a file, in the file's order, rows without a usable label included.

    Args:
        file: open labels.
        split: one of :data:`SPLITS`, or ``all``.
        rule: one of :data:`SPLIT_RULES`.
        sizes: for ``md17``: training, validation and perhaps test rows; empty for the published.

    Raises:
        DatasetError: an unknown split or rule, or a rule that does not fit the file.
    """
    if split not in (*SPLITS, "all"):
        raise DatasetError(f"no split {split!r}; there are {', '.join(SPLITS)} and all")
    if rule not in _RULES:
        raise DatasetError(f"no split rule {rule!r}; there are {', '.join(SPLIT_RULES)}")
    if sizes and rule != "md17":
        raise DatasetError(f"split sizes belong to the rule 'md17', not to {rule!r}")
    ids = file.ids()
    if split == "all":
        return ids
    return [ids[i] for i in np.sort(_RULES[rule](file, sizes)[split])]
