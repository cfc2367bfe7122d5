"""``python -m pyscf_deqh.benchmark speed``: how fast the guess and training are, and why."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ...checkpoint import DEFAULT_MODEL
from ...errors import DEQHError
from .settings import SMOKE, Settings, Sizes

# Modules of this package, each with a function run(settings, report).
PARTS = {
    "guess": "guess",
    "paper": "paper",
    "training": "training",
    "growth": "growth",
    "import": "imports",
    "gpu": "gpu",
}  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark speed",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=Settings.repeats,
                        help="timed calls of each figure")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count(),
                        help="of PyTorch and PySCF")  # fmt: skip
    parser.add_argument("--device", default="cuda", help="of part gpu")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--max-atoms", type=int, default=Settings.max_atoms,
                        help="largest system of part growth")  # fmt: skip
    parser.add_argument("--smoke", action="store_true",
                        help="tiny networks and molecules: checks the parts")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all figures here")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    import torch

    from ...process import use_threads
    from .report import Report

    use_threads(args.threads)
    settings = Settings(
        args.repeats, args.threads, args.device, args.model, args.max_atoms,
        sizes=SMOKE if args.smoke else Sizes(),
    )  # fmt: skip
    if args.smoke:
        settings = replace(settings, repeats=min(args.repeats, 2))
    report = Report(args.json, settings.to_config())
    try:
        for part in args.parts:
            if part == "gpu" and settings.device == "cuda" and not torch.cuda.is_available():
                report.start(part, "left out, PyTorch sees no GPU")
                continue
            with report.attempt(part):
                import_module(f".{PARTS[part]}", __package__).run(settings, report)
    except DEQHError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if report.failures else 0
