"""``python -m pyscf_deqh.benchmark pyscf-tests``: PySCF's own tests, with this guess as default.

Each file of tests of a source release runs twice, in processes of its own: as PySCF has it, and
with ``init_guess = "deqh"`` in all classes that start from minao otherwise, also for SCFs so small
that they would be left alone. What differs is listed. Rows are written after every file; the same
command goes on where it stopped.

Tests compare digits, some of them of SCFs in mid-iteration: what differs is read by a person.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyscf
from tqdm import tqdm

from ..data.make.download import fetch, unpacked
from ..errors import ConfigError, DatasetError
from .report import markdown_table
from .resume import read_rows, run_resumable, write_rows

# Folders of PySCF whose tests run SCFs of molecules.
FOLDERS = (
    "scf", "dft", "soscf", "grad", "hessian", "solvent", "x2c", "qmmm", "geomopt", "md", "df",
)  # fmt: skip
_RELEASES = "https://github.com/pyscf/pyscf/archive/refs/tags"
_RUNS = ("minao", "deqh")
_BY_DEFAULT = "PYSCF_DEQH_BY_DEFAULT"


def pytest_configure() -> None:
    """Called by pytest, for which this module is a plug-in."""
    if os.environ.get(_BY_DEFAULT) != "deqh":
        return
    from pyscf.scf import hf

    from .. import plugin
    from ..fock import cost

    hf.SCF.init_guess = plugin.KEY
    # A guess that costs nothing is worth it for every SCF.
    cost.rates = lambda: cost.Rates(fixed=0.0, imports=0.0)  # type: ignore[assignment]


def run_file(file: Path, default: str, seconds: float) -> dict[str, str]:
    """Outcome of each test of a file: ``passed``, ``skipped``, or how it failed.

    Args:
        file: its folder is copied, because tests read files beside them and write others.
        default: ``minao`` or ``deqh``.
        seconds: limit; what has not run then is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(file.parent, Path(folder) / "tests")
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-p", __name__, "--import-mode=importlib",
            "-p", "no:cacheprovider", f"--junitxml={report}", f"--rootdir={copy}",
            str(copy / file.name),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=copy, env=os.environ | {_BY_DEFAULT: default}, timeout=seconds,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"(file)": f"took more than {seconds:.0f} s"}
        if not report.is_file():
            return {"(file)": "pytest: " + " ".join(done.stdout.split()[-40:])}
        return _outcomes(report)


def _outcomes(report: Path) -> dict[str, str]:
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name, outcome = f"{case.get('classname', '').split('.')[-1]}.{case.get('name')}", "passed"
        for kind in ("skipped", "failure", "error"):
            element = case.find(kind)
            if element is not None:
                first = (element.get("message") or "").strip().splitlines()[:1]
                outcome = "skipped" if kind == "skipped" else f"{kind}: {''.join(first)[:200]}"
        found[name] = outcome
    return found


def failed(outcome: str | None) -> bool:
    """Whether a test did anything but pass; one that is missing did."""
    return outcome not in ("passed", "skipped")


def differences(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Tests of a file that fail in one of the runs alone: name and both outcomes."""
    plain, deqh = (row[name] for name in _RUNS)
    return [
        (test, plain.get(test, "missing"), deqh.get(test, "missing"))
        for test in sorted(plain.keys() | deqh.keys())
        if failed(plain.get(test)) != failed(deqh.get(test))
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Tests and failures of each folder, and every test that differs."""
    cells, listed = [], []
    for folder in dict.fromkeys(row["file"].split("/")[0] for row in rows):
        own = [row for row in rows if row["file"].split("/")[0] == folder]
        counts = [sum(failed(o) for row in own for o in row[name].values()) for name in _RUNS]
        n = sum(len(row["minao"]) for row in own)
        cells.append([folder, f"{len(own)}", f"{n}", *(f"{count}" for count in counts)])
    for row in rows:
        for test, plain, deqh in differences(row):
            listed.append(f"- {row['file']}, {test}: {plain} → {deqh}")
    header = ["folder", "files", "tests", "failures, minao", "failures, deqh"]
    return "\n".join([*markdown_table(header, cells), "", *(listed or ["No test differs."])])


def _release(folder: Path) -> Path:
    """PySCF's source release of the version that is installed, fetched if it is not there.

    Raises:
        DatasetError: it cannot be fetched or unpacked.
    """
    release = folder / f"pyscf-{pyscf.__version__}"
    if release.is_dir():
        return release
    archive = folder / f"{release.name}.tar.gz"
    if not archive.exists():
        try:
            fetch(f"{_RELEASES}/v{pyscf.__version__}.tar.gz", archive)
        except DatasetError as error:
            raise DatasetError(f"{error}; or give a copy by --source") from error
    with unpacked(archive, release) as content:
        os.replace(content / release.name, release)
    return release


def _files(source: Path, folders: Sequence[str]) -> list[tuple[str, Path]]:
    package = source / "pyscf" if (source / "pyscf").is_dir() else source
    found = [
        (f"{folder}/{path.name}", path)
        for folder in folders
        for path in sorted((package / folder / "test").glob("test_*.py"))
    ]
    if not found:
        raise ConfigError(
            f"{source} holds no tests of {', '.join(folders)}: give the folder of a source "
            "release of PySCF (https://github.com/pyscf/pyscf/releases); pip leaves tests out"
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark pyscf-tests",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--source", type=Path, help="PySCF's sources, of the version that is "
                        "installed; by default they are fetched to the folder of OUT")  # fmt: skip
    parser.add_argument("--folders", nargs="+", default=list(FOLDERS), help="of the package")
    parser.add_argument("--seconds", type=float, default=1800.0, help="limit of a file's run")
    parser.add_argument("--json", type=Path, metavar="OUT", required=True,
                        help="write all outcomes here, and go on after those in it")  # fmt: skip
    args = parser.parse_args(argv)

    def run() -> int:
        settings = {"pyscf": pyscf.__version__}
        rows = read_rows(args.json, settings)
        done = {row["file"] for row in rows}
        files = _files(args.source or _release(args.json.parent), args.folders)
        for name, path in tqdm([f for f in files if f[0] not in done], desc="files", unit="file"):
            rows.append({"file": name} | {r: run_file(path, r, args.seconds) for r in _RUNS})
            write_rows(args.json, settings, rows)
        print(table(rows))
        return 0

    return run_resumable(run, args.json)
