"""``python -m pyscf_deqh.data``: plan, make, download, convert and inspect labelled data."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import ConfigError, DatasetError, exit_status
from ..files import only_writer
from ..tasks import add_options
from .formats import open_labels
from .formats.store import PRECISIONS
from .geometry import read_geometries
from .make.convert import convert
from .make.download import DATASETS, download
from .make.dynamics import ENGINES
from .make.embed import embed, read_smiles
from .make.label import LabelSettings, label
from .make.plan import plan
from .make.recipe import SUFFIX as RECIPES
from .make.recipe import read_recipes
from .make.trajectories import simulate, start_geometries
from .record import LabelFile
from .splits import SPLITS, split_of
from .xyz import Described

# Their defaults are the engine's.
_ENGINE_OPTIONS: dict[str, tuple[type, str]] = {
    "interval": (float, "fs between frames"),
    "timestep": (float, "fs"),
    "equilibration": (float, "fs before the first interval"),
    "xc": (str, "functional"),
    "basis": (str, "basis set"),
}


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--qm9-ids", type=int, nargs="+", help="only molecules with these qm9_id")
    parser.add_argument("--split", choices=SPLITS, help="only molecules of this split")
    parser.add_argument("--heavy", type=int, nargs=2, metavar=("MIN", "MAX"),
                        help="only molecules with that many heavy atoms")  # fmt: skip
    parser.add_argument("--n", type=int, help="a random selection of this many molecules")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random")


def _select(geometries: list[Any], args: argparse.Namespace) -> list[Any]:
    """The geometries, or recipes of them, that the options ask for."""
    if args.qm9_ids:
        geometries = [g for g in geometries if g.qm9_id in args.qm9_ids]
    if args.split:
        geometries = [g for g in geometries if _split(g) == args.split]
    if args.heavy:
        geometries = [g for g in geometries if args.heavy[0] <= g.n_heavy <= args.heavy[1]]
    if args.n is not None:
        random.Random(args.seed).shuffle(geometries)
        geometries = geometries[: args.n]
    return geometries


def _split(geometry: Described) -> str:
    return split_of(_molecule(geometry, "--split"))


def _molecule(geometry: Described, option: str) -> int:
    """What the options that go by molecule know one by."""
    if geometry.molecule is None:
        raise DatasetError(f"{option} needs qm9_id=… or id=… in the comment lines")
    return geometry.molecule


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", choices=PRECISIONS,
                        help="of the matrices in a new label store (default: float64)")  # fmt: skip


def _add_label(commands) -> None:
    parser = commands.add_parser(
        "label",
        help="compute Kohn-Sham matrices with PySCF; run the same command again to resume",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("geometries", type=Path, help="xyz/extxyz file (also .gz), folder, labels, "
                        "or recipes of geometries (.smi)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True,
                        help="to make or to resume: a label store (.store) or "
                        "a database of QH9 (.db)")  # fmt: skip
    _add_precision(parser)
    _add_selection(parser)
    parser.add_argument("--exclude", type=Path, nargs="*", default=[],
                        help="files that label has made, whose molecules are skipped")  # fmt: skip
    add_options(parser)
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--steps", type=int, default=0, help="so many steps of each SCF are kept, "
                        "from its beginning, in a label store")  # fmt: skip
    parser.add_argument("--device", default="cpu",
                        help="for fitted Fock matrices; all workers may share a GPU")  # fmt: skip
    _add_settings(parser)
    parser.set_defaults(run=_run_label)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for item in fields(LabelSettings):
        name = "--" + item.name.replace("_", "-")
        if isinstance(item.default, bool):
            parser.add_argument(name, action="store_true", help="fitted integrals and a coarse "
                                "grid: several times faster, 10 micro-hartree off")  # fmt: skip
        elif item.name == "grid_level":
            parser.add_argument(name, type=int, default=argparse.SUPPRESS,
                                help=f"without --density-fit ({item.default})")  # fmt: skip
        else:
            parser.add_argument(name, type=type(item.default), default=item.default)


def _settings(args: argparse.Namespace) -> LabelSettings:
    names = [f.name for f in fields(LabelSettings) if hasattr(args, f.name)]
    if args.density_fit and "grid_level" in names:
        raise ConfigError("--density-fit has a grid of its own: leave out --grid-level")
    return LabelSettings(**{name: getattr(args, name) for name in names})


def _labelled(path: Path) -> list[int]:
    """Molecules of a file that ``label`` has made."""
    with open_labels(path) as file:
        if "pyscf_version" not in file.settings():
            raise ConfigError(
                f"--exclude {path}: published data number their molecules in their own way; give "
                "files that label has made"
            )
        return file.molecules() or []


def _run_label(args: argparse.Namespace) -> int:
    taken = {molecule for path in args.exclude for molecule in _labelled(path)}
    read: Any = read_recipes if args.geometries.suffix == RECIPES else read_geometries
    geometries = read(args.geometries)
    if args.exclude:
        geometries = [g for g in geometries if _molecule(g, "--exclude") not in taken]
    geometries = _select(geometries, args)
    written, failures = label(
        geometries,
        args.out,
        _settings(args),
        args.workers,
        retry_failed=args.retry_failed,
        device=args.device,
        scheduler=args.scheduler,
        precision=args.precision,
        steps=args.steps,
    )
    print(f"{args.out}: {written} molecules labelled now, {len(failures)} failed")
    return _list_failures(failures, "id ")


def _list_failures(failures: Mapping[Any, str], kind: str = "") -> int:
    """Print the reasons; the status of a command that has them."""
    for name, reason in failures.items():
        print(f"  {kind}{name}: {reason}")
    return 1 if failures else 0


def _add_md(commands) -> None:
    parser = commands.add_parser(
        "md",
        help="molecular dynamics from each geometry; run the same command again to resume",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("geometries", help="file, folder or .db as for label, or a bundled "
                        "molecule: water, ethanol, malondialdehyde, uracil")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="xyz file to make or to resume")
    _add_selection(parser)
    parser.add_argument("--frames", type=int, default=100, help="frames of each trajectory")
    parser.add_argument("--temperature", type=float, default=300.0, help="kelvin")
    parser.add_argument("--engine", choices=ENGINES, default="xtb",
                        help="xtb: GFN2-xTB with a Langevin thermostat; "
                        "dft: Kohn-Sham at constant energy, as in QH9-dynamic")  # fmt: skip
    for name, (kind, text) in _ENGINE_OPTIONS.items():
        defaults = ", ".join(f"{engine.name}: {getattr(engine, name)}"
                             for engine in ENGINES.values() if hasattr(engine, name))  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS,
                            help=f"{text} ({defaults})")  # fmt: skip
    add_options(parser)
    parser.set_defaults(run=_run_md)


def _run_md(args: argparse.Namespace) -> int:
    engine = ENGINES[args.engine]
    options = {name: getattr(args, name) for name in _ENGINE_OPTIONS if hasattr(args, name)}
    if foreign := [name for name in options if not hasattr(engine, name)]:
        raise ConfigError(f"engine {args.engine} has no option --{foreign[0]}")
    geometries = _select(start_geometries(args.geometries), args)
    with only_writer(args.out):
        written, failures = simulate(
            geometries,
            args.out,
            engine(**options),
            args.frames,
            args.temperature,
            args.seed,
            workers=args.workers,
            scheduler=args.scheduler,
        )
    print(f"{args.out}: {written} frames written now, {len(failures)} trajectories ended early")
    return _list_failures(failures, "trajectory ")


def _add_embed(commands) -> None:
    parser = commands.add_parser(
        "embed",
        help="geometries from SMILES; run the same command again to resume",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("smiles", type=Path, help="text file with lines 'SMILES name'")
    parser.add_argument("--out", type=Path, required=True, help="xyz file to make or to resume")
    parser.add_argument("--seed", type=int, default=0, help="seed of the conformers")
    add_options(parser)
    parser.set_defaults(run=_run_embed)


def _run_embed(args: argparse.Namespace) -> int:
    with only_writer(args.out):
        written, failures = embed(
            read_smiles(args.smiles),
            args.out,
            args.seed,
            workers=args.workers,
            scheduler=args.scheduler,
        )
    print(f"{args.out}: {written} molecules written now, {len(failures)} failed")
    return _list_failures(failures)


def _add_plan(commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="what labels will cost: core hours and disk, from some of the molecules",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("geometries", type=Path, help="xyz/extxyz file (also .gz), folder, labels")
    _add_selection(parser)
    parser.add_argument("--sample", type=int, default=8, help="molecules to time")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 16, 64],
                        help="numbers of cores to say hours for")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="for fitted Fock matrices")
    _add_settings(parser)
    add_options(parser)
    parser.set_defaults(run=_run_plan)


def _run_plan(args: argparse.Namespace) -> int:
    if args.geometries.suffix == RECIPES:
        raise ConfigError(f"{args.geometries}: plan times geometries; make some by embed or md")
    geometries = _select(read_geometries(args.geometries), args)
    found = plan(
        geometries,
        _settings(args),
        args.sample,
        args.workers,
        args.scheduler,
        args.device,
    )
    print(found)
    for cores in args.cores:
        print(f"on {cores} such cores: {found.core_hours[0] / cores:.3g} hours")
    return 0


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert",
        help="copy labels into another format; run the same command again to resume",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="file of labels of any format")
    parser.add_argument("out", type=Path, help="to make, to resume or to add to: a label store "
                        "(.store) or a database of QH9 (.db)")  # fmt: skip
    _add_precision(parser)
    parser.set_defaults(run=_run_convert)


def _run_convert(args: argparse.Namespace) -> int:
    written = convert(args.source, args.out, args.precision)
    print(f"{args.out}: {written} records written now")
    return 0


def _add_info(commands) -> None:
    parser = commands.add_parser("info", help="what a file of labels holds")
    parser.add_argument("database", type=Path, help="label store, QH9, QH9-dynamic or MD17 file")
    parser.add_argument("--check", action="store_true", help="read all records, and name those "
                        "that are damaged")  # fmt: skip
    parser.set_defaults(run=_run_info)


def _run_info(args: argparse.Namespace) -> int:
    with open_labels(args.database) as file:
        failures = file.failures()
        print(f"{args.database}: {len(file)} molecules, {len(failures)} failures")
        for key, value in ({"format": file.format} | file.settings()).items():
            print(f"  {key}: {value}")
        for row_id, reason in failures.items():
            print(f"  failed, {file.row_name} {row_id}: {reason}")
        damaged = _damaged(file) if args.check else []
        for message in damaged:
            print(f"  {message}")
        if args.check:
            print(f"  {len(damaged)} records are damaged")
    return 1 if damaged else 0


def _damaged(file: LabelFile) -> list[str]:
    """What is wrong with the records that cannot be read."""
    failures, messages = file.failures(), []
    for row_id in tqdm(file.ids(), desc="checking", unit="mol"):
        if row_id not in failures:
            try:
                file[row_id], file.steps_of(row_id)
            except DatasetError as error:
                messages.append(str(error))
    return messages


def _add_download(commands) -> None:
    parser = commands.add_parser(
        "download", help="fetch a published data set; run the same command again to resume"
    )
    parser.add_argument("name", choices=DATASETS, metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument("--out", type=Path, required=True, help="folder to put it in")
    parser.set_defaults(run=_run_download)


def _run_download(args: argparse.Namespace) -> int:
    with only_writer(args.out / args.name):
        print(download(args.name, args.out))
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyscf_deqh.data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_embed(commands)
    _add_md(commands)
    _add_label(commands)
    _add_plan(commands)
    _add_convert(commands)
    _add_info(commands)
    _add_download(commands)
    args = parser.parse_args(argv)
    interrupted = "interrupted; run the same command again to go on"
    return exit_status(lambda: args.run(args), interrupted)


if __name__ == "__main__":
    sys.exit(main())
