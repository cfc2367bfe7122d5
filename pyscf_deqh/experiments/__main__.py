"""``python -m pyscf_deqh.experiments NAME``: repeat a table or figure of the paper, or compare its
networks with others' (``rivals``), with losses of self-consistency (``losses``), on labels in two
basis sets (``bases``), SO2Net with other ways to make f a step of a solver (``solver``), and follow
a DEQHNet as a start of SCFs while it learns (``progress``).

Results go to NAME.json (all numbers), NAME.md (the paper's beside ours) and NAME.png in the output
folder. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from ..errors import ConfigError, DEQHError, missing_extra
from .datasets import IN_HOUSE, MD17, QH9
from .options import Options
from .sizes import SIZES, size_of

# In this order, so that Fig. 4b finds the models that the tables train.
NAMES = ("table1", "table2", "table3", "fig4a", "fig4b", "fig5", "fig6")
OTHERS = ("rivals", "losses", "bases", "solver", "progress")  # of no table or figure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=(*NAMES, *OTHERS, "all"),
                        help="all: the paper's tables and figures")  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="smoke",
                        help="smoke (default): seconds, needs no data; small: for two CPU cores; "
                        "full: the paper's, for GPUs")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="default: results/SIZE")  # fmt: skip
    parser.add_argument("--data", type=Path, nargs="+", default=[], metavar="PATH",
                        help="labelled files or folders: water.db, ethanol.db … are MD17's, "
                        "QH9Stable.db and QH9-dynamic are known, the rest is in-house")  # fmt: skip
    parser.add_argument("--datasets", nargs="+", choices=(*MD17, *QH9, IN_HOUSE), default=[],
                        help="only these of what --data holds")  # fmt: skip
    parser.add_argument("--split-sizes", type=int, nargs="+", default=[], metavar="N",
                        help="of MD17's molecules: training, validation and perhaps test "
                        "geometries (default: as published)")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings")
    parser.add_argument("--minutes", type=float, help="of each training, evaluation not included")
    parser.add_argument("--steps", type=int, help="of each training")
    parser.add_argument("--init", metavar="MODEL", help="bundled name or exported folder of the "
                        "same network, whose weights all trainings start from")  # fmt: skip
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL",
                        help="bundled names or exported folders: for table3 (default: the bundled "
                        "model) and, the first, for fig4b (a DEQHNet)")  # fmt: skip
    parser.add_argument("--n", type=int, help="molecules of table3, fig4b and progress")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    options = Options(
        size=size_of(args.size),
        out=args.out or Path("results") / args.size,
        data=tuple(args.data),
        datasets=tuple(args.datasets),
        split_sizes=tuple(args.split_sizes),
        seeds=tuple(args.seeds),
        minutes=args.minutes,
        steps=args.steps,
        init=args.init,
        models=tuple(args.models),
        n=args.n,
    )
    code = 0
    for name in NAMES if args.name == "all" else (args.name,):
        try:
            report = importlib.import_module(f".{name}", __package__).run(options)
            report.write(options.out, options.to_json())
            print(f"\n{(options.out / f'{name}.md').read_text()}", flush=True)
        except ModuleNotFoundError as error:
            print(f"error: {missing_extra(error)}", file=sys.stderr)
            return 2
        except ConfigError as error:
            # The others may have what this one lacks.
            print(f"error: {name}: {error}", file=sys.stderr)
            code = 2
        except DEQHError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
