"""Geometries from any file or folder that holds some."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import DatasetError
from .formats import SUFFIXES, open_labels
from .xyz import Geometry, read_xyz

__all__ = ["Geometry", "read_geometries"]


def read_geometries(path: str | Path) -> list[Geometry]:
    """All geometries of an xyz file, of every xyz file in a folder, or of a file of labels."""
    path = Path(path)
    if path.suffix in SUFFIXES:
        with open_labels(path) as labels:
            geometries = [record.geometry() for record in labels]
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if re.search(r"\.(ext)?xyz(\.gz)?$", p.name))
        if not files:
            raise DatasetError(f"no .xyz or .extxyz file in {path}")
        geometries = [geometry for file in files for geometry in read_xyz(file)]
    else:
        geometries = list(read_xyz(path))
    for place, geometry in enumerate(geometries):
        geometry.place = place
    return geometries
