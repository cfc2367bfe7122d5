"""``python -m pyscf_deqh.train --config run.yaml --optimizer.learning_rate 1e-3``: train a model.

``--resume`` goes on from the last checkpoint of the run's folder. ``python -m pyscf_deqh.train
export RUN_FOLDER MODEL_FOLDER`` writes the averaged weights as a model that PySCF can use, and
``evaluate MODEL DATABASE …`` prints a model's errors on a labelled split.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from ..errors import DEQHError, missing_extra
from ..files import only_writer


def _train(argv: list[str]) -> int:
    # Before PyTorch is imported: in each process its DDP would warn of a step that leaves no
    # parameter unused, though others do.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from jsonargparse import ArgumentParser
    from lightning.pytorch.utilities import rank_zero_only

    from .config import TrainConfig
    from .run import train

    parser = ArgumentParser(prog="python -m pyscf_deqh.train", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--init", type=Path, help="whose weights a new run starts from: a "
                        "checkpoint (.ckpt), a bundled model, or an exported folder")  # fmt: skip
    args = parser.parse_args(argv)
    options = parser.instantiate(args)
    config = TrainConfig(
        **{field.name: getattr(options, field.name) for field in fields(TrainConfig)}
    )
    # The processes of one training share its folder.
    first = getattr(rank_zero_only, "rank", 0) == 0
    with only_writer(config.run.folder / "config.yaml") if first else nullcontext():
        train(config, resume=args.resume, init=args.init)
    return 0


def _export(argv: list[str]) -> int:
    from .run import export

    parser = argparse.ArgumentParser(prog="python -m pyscf_deqh.train export")
    parser.add_argument("run", type=Path, help="folder of the run, or one of its checkpoints")
    parser.add_argument("model", type=Path, help="folder to make")
    parser.add_argument("--half", action="store_true", help="weights in half precision")
    args = parser.parse_args(argv)
    export(args.run, args.model, args.half)
    print(f"wrote {args.model}")
    return 0


def _evaluate(argv: list[str]) -> int:
    from ..data.splits import SPLIT_RULES, SPLITS
    from .evaluate import evaluate, summary

    parser = argparse.ArgumentParser(prog="python -m pyscf_deqh.train evaluate")
    parser.add_argument("model", help="bundled model or exported folder")
    parser.add_argument("databases", type=Path, nargs="+",
                        help="label stores, QH9, QH9-dynamic or MD17 files")  # fmt: skip
    parser.add_argument("--split", choices=(*SPLITS, "all"), default="valid")
    parser.add_argument("--split-rule", choices=SPLIT_RULES,
                        help="by default the rule of the model's training")  # fmt: skip
    parser.add_argument("--split-sizes", type=int, nargs="+", default=[],
                        help="of md17: training, validation and perhaps test rows")  # fmt: skip
    parser.add_argument("--cache", type=Path, default=Path("data/cache"))
    parser.add_argument("--iterations", type=int, help="limit of the fixed-point iteration")
    args = parser.parse_args(argv)
    results = evaluate(args.model, args.databases, args.split, args.cache, args.iterations,
                       args.split_rule, args.split_sizes)  # fmt: skip
    n = len(results["mae"])
    print(f"{args.model}, {args.split}: mean +- standard deviation of {n} geometries")
    print(summary(results))
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        command = {"export": _export, "evaluate": _evaluate}.get(argv[0] if argv else "")
        return command(argv[1:]) if command else _train(argv)
    except ModuleNotFoundError as error:
        print(f"error: {missing_extra(error)}", file=sys.stderr)
        return 2
    except DEQHError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
