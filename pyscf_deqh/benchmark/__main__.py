"""``python -m pyscf_deqh.benchmark --init 1e minao``: what the DEQH guess saves, measured.

``python -m pyscf_deqh.benchmark speed`` measures how fast the guess and training are, ``ablation``
what the choices in the guess are worth, ``robustness`` how many Fock builds random SCFs take,
``steps`` what optimizations and dynamics gain, ``gpu4pyscf`` what SCFs on a GPU gain, ``rates``
from what size on an SCF is worth a guess on this machine, ``pyscf-tests`` which of PySCF's own
tests differ, ``single-build`` how good the energy of one Fock matrix is, ``starts`` how near to the
solution a model's Hamiltonian is, and ``store`` how fast labels are written and read.
"""

from __future__ import annotations

import argparse
import random
import sys
from importlib import import_module
from pathlib import Path

from ..checkpoint import DEFAULT_MODEL
from ..data.geometry import read_geometries
from ..errors import DEQHError
from .scf_runs import INITS, Method
from .sets import BUNDLED

# First words of the command line, and the modules that they stand for.
_COMMANDS = {
    "speed": ".speed.command",
    "suite": ".suite",
    "ablation": ".ablation",
    "robustness": ".robustness",
    "rates": ".rates",
    "steps": ".steps",
    "gpu4pyscf": ".gpu4pyscf",
    "pyscf-tests": ".pyscf_tests",
    "store": ".store",
    "single-build": ".single_build",
    "starts": ".starts",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyscf_deqh.benchmark",
        description=__doc__,
        epilog="'python -m pyscf_deqh.benchmark suite --help': all bundled sets in one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--init", nargs="+", choices=INITS, default=["minao"],
                        help="guesses to compare with")  # fmt: skip
    parser.add_argument("--molecules", type=Path, default=BUNDLED,
                        help="xyz/extxyz file, folder of them, or QH9 database; the default is the "
                        "bundled set of QM9 molecules that no model was trained on")  # fmt: skip
    parser.add_argument("--first", type=int, help="only this many molecules from the beginning")
    parser.add_argument("--n", type=int, help="a random selection of this many molecules")
    parser.add_argument("--seed", type=int, default=0, help="seed of that selection")
    parser.add_argument("--xc", default="b3lyp", help="functional, or hf")
    parser.add_argument("--basis", default="def2-svp")
    parser.add_argument("--charge", type=int, default=0, help="of every molecule")
    parser.add_argument("--spin", type=int, help="unpaired electrons of every molecule; "
                        "as few as possible if it is left out")  # fmt: skip
    parser.add_argument("--density-fit", action="store_true",
                        help="SCFs with PySCF's density_fit()")  # fmt: skip
    parser.add_argument("--model", default=DEFAULT_MODEL, help="bundled model or exported folder")
    parser.add_argument("--max-cycles", type=int, default=Method.max_cycles,
                        help="limit of DEQH's density-fitted cycles; "
                        "0: none")  # fmt: skip
    parser.add_argument("--no-accelerate", action="store_true",
                        help="SCFs from DEQH go on with PySCF's DIIS")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda …")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write rows and summary here")
    parser.add_argument("--plot", type=Path, metavar="OUT.png", help="gradient norm over time")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in _COMMANDS:
        return import_module(_COMMANDS[argv[0]], __package__).main(argv[1:])
    args = _parser().parse_args(argv)
    from .acceleration import failed, run_benchmark
    from .report import new_figure, plot, table

    try:
        if args.plot:
            new_figure()  # Says now, not after all runs, that matplotlib is missing.
        geometries = read_geometries(args.molecules)[: args.first]
        if args.n is not None and args.n < len(geometries):
            geometries = random.Random(args.seed).sample(geometries, args.n)
        method = Method(
            args.xc, args.basis, args.model, args.device, args.max_cycles,
            not args.no_accelerate, args.charge, args.spin, args.density_fit,
        )  # fmt: skip
        results = run_benchmark(geometries, method, args.init, args.json)
        print(table(results))
        if args.plot and results.rows:
            plot(results, args.plot)
    except DEQHError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if results.interrupted:
        return 130
    return int(failed(results, args.init))


if __name__ == "__main__":
    sys.exit(main())
