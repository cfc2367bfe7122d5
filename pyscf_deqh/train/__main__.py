"""``python -m pyscf_deqh.train --config run.yaml --optimizer.learning_rate 1e-3``: train a model.

``--resume`` goes on from the last checkpoint of the run's folder. ``python -m pyscf_deqh.train
export RUN_FOLDER MODEL_FOLDER`` writes the averaged weights as a model that PySCF can use.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from ..errors import DEQHError


def _train(argv: list[str]) -> int:
    from jsonargparse import ArgumentParser

    from .config import TrainConfig
    from .run import train

    parser = ArgumentParser(prog="python -m pyscf_deqh.train", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later options override it")
    parser.add_class_arguments(TrainConfig)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--init", type=Path, help="checkpoint whose weights a new run starts from")
    args = parser.parse_args(argv)
    options = parser.instantiate(args)
    config = TrainConfig(
        **{field.name: getattr(options, field.name) for field in fields(TrainConfig)}
    )
    train(config, resume=args.resume, init=args.init)
    return 0


def _export(argv: list[str]) -> int:
    from .run import export

    parser = argparse.ArgumentParser(prog="python -m pyscf_deqh.train export")
    parser.add_argument("run", type=Path, help="folder of the run, or one of its checkpoints")
    parser.add_argument("model", type=Path, help="folder to make")
    args = parser.parse_args(argv)
    export(args.run, args.model)
    print(f"wrote {args.model}")
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _export(argv[1:]) if argv[:1] == ["export"] else _train(argv)
    except DEQHError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
