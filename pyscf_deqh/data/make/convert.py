"""Copies of labels in another format; the same command goes on after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...errors import DatasetError
from ..formats import open_for_writing, open_labels
from ..formats.sqlite import writing
from ..formats.store import SUFFIX, LabelStore
from ..record import LabelFile, Record, WritableLabels, refuse_mixture, symmetric

# Records of a transaction, all in memory at once.
_CHUNK = 64


def convert(
    source: str | Path, out: str | Path, precision: str | None = None, progress: bool = True
) -> int:
    """Add all records of a file of labels to a label store or a database of QH9, under their ids.

    Failures come along. Of a matrix that is not exactly symmetric, the mean with its transpose is
    written: the same to the last bit where it is symmetric.

    Args:
        source: labels of any format.
        out: made if absent, else resumed or added to; ``.store`` or a database of QH9.
        precision: of a new label store: ``float64`` (default) or ``float32``.
        progress: show a progress bar.

    Returns:
        The number of records written by this call.

    Raises:
        DatasetError: labels of other settings in ``out``, other molecules under the same ids, a row
            of ``source`` that cannot be read, or a disk that takes no more data; what was written
            before is kept.
        ConfigError: a precision that the format does not have.
    """
    if Path(out).resolve() == Path(source).resolve():
        raise DatasetError(f"{out} is the file to convert: name another")
    with (
        open_labels(source) as labels,
        _target(labels, Path(out), precision) as target,
        writing(target),
    ):
        if target.steps > labels.steps:
            raise DatasetError(
                f"{out} has {target.steps} steps of each SCF, {source} has {labels.steps}: name "
                "another file"
            )
        _write_settings(labels, target)
        todo = _todo(labels, target)
        written = 0
        with tqdm(total=len(todo), desc="converting", unit="mol", disable=not progress) as bar:
            for start in range(0, len(todo), _CHUNK):
                chunk = todo[start : start + _CHUNK]
                target.add_all(_copy(labels, target, row_id) for row_id in chunk)
                written += len(chunk)
                bar.update(len(chunk))
        return written


def _target(labels: LabelFile, out: Path, precision: str | None) -> WritableLabels:
    """The file to write; a new label store has the steps of SCFs that the source has."""
    new_store = out.suffix == SUFFIX and not out.exists()
    return open_for_writing(out, precision, labels.steps if new_store else None)


def _write_settings(labels: LabelFile, target: WritableLabels) -> None:
    settings = labels.settings()
    if isinstance(labels, LabelStore) and isinstance(target, LabelStore):
        # Each record brings its own.
        if len(target):
            refuse_mixture(target.path, target.settings(), settings)
    else:
        target.write_settings(settings, f"{labels.path.name} ({labels.format})")


def _copy(labels: LabelFile, target: WritableLabels, row_id: int) -> Record:
    record = labels[row_id]
    record.hamiltonian = symmetric(record.hamiltonian)
    if target.steps:
        record.steps = labels.steps_of(row_id)
    return record


def _todo(labels: LabelFile, target: WritableLabels) -> list[int]:
    """Rows to copy; failures are copied here.

    Raises:
        DatasetError: the target has other molecules under the same ids.
    """
    here, there = (_listed(file) for file in (labels, target))
    for row_id in here.keys() & there.keys():
        if here[row_id] != there[row_id]:
            _refuse(labels, target, row_id)
    unusable, molecules, failed = labels.failures(), labels.failed_molecules(), target.failures()
    for row_id in unusable.keys() - there.keys() - failed.keys():
        atoms = here[row_id][0] if row_id in here else None
        target.add_failure(row_id, molecules[row_id], unusable[row_id], atoms)
    done = there.keys() - failed.keys()
    copied = [row_id for row_id in here if row_id in done and row_id not in unusable]
    for row_id in {*copied[:1], *copied[-1:]}:
        record, atoms_there = labels[row_id], target.atoms(row_id)
        if not all(map(np.array_equal, (record.numbers, record.positions), atoms_there)):
            _refuse(labels, target, row_id)
    return [row_id for row_id in here if row_id not in done and row_id not in unusable]


def _listed(file: LabelFile) -> dict[int, tuple[int, int]]:
    """Number of atoms and molecule of each row."""
    ids, sizes = file.ids(), file.sizes()
    return dict(zip(ids, zip(sizes, file.molecules() or ids, strict=True), strict=True))


def _refuse(labels: LabelFile, target: WritableLabels, row_id: int) -> None:
    raise DatasetError(
        f"{target.path} has another molecule than {labels.path} under id {row_id}: write to "
        "another file"
    )
