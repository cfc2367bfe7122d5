"""Part ``import``: fresh interpreters that import the package, load a model, make guesses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .report import Report
from .samples import geometries_of
from .settings import Settings
from .timing import Sample

_SCRIPT = """
import json, sys, time
options = json.loads(sys.argv[1])
clock = time.perf_counter
marks = [clock()]
import pyscf
from pyscf import gto, scf
marks.append(clock())
import pyscf_deqh
marks.append(clock())
lazy = "torch" not in sys.modules
import torch
marks.append(clock())
pyscf_deqh.load_model(options["model"])
marks.append(clock())
pyscf_deqh.load_model(options["model"])
marks.append(clock())
mol = gto.M(atom=options["atom"], basis="def2-svp", verbose=0)
for _ in range(2):
    started = clock()
    pyscf_deqh.init_guess_by_deqh(mol, options["model"], "cpu")
    marks.append(marks[-1] + clock() - started)
seconds = [after - before for before, after in zip(marks, marks[1:])]
print(json.dumps({"lazy": lazy, "seconds": seconds}))
"""
_STAGES = (
    "import pyscf, gto and scf",
    "import pyscf_deqh, after that",
    "import torch, after that",
    "first load of the model",
    "second load of the model",
    "first guess",
    "second guess",
)


def child_environment(threads: int) -> dict[str, str]:
    """Environment of a fresh interpreter with that many threads."""
    # The package is found where this process found it, whatever the working directory.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def fresh_interpreter(options: dict[str, Any], threads: int) -> dict[str, Any]:
    """Seconds of each stage in a new process, and whether PyTorch was imported with the package."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(options)],
        capture_output=True, text=True, check=True, env=child_environment(threads),
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def run(settings: Settings, report: Report) -> None:
    geometry = geometries_of(settings.sizes.small_atoms)[-1]
    report.start("import", f"fresh interpreters, {settings.threads} threads; guesses of "
                 f"{len(geometry.numbers)} atoms")  # fmt: skip
    options = {"model": str(settings.model), "atom": geometry.atom()}
    fresh_interpreter(options, settings.threads)  # the files are in the system's cache from now on
    runs = [fresh_interpreter(options, settings.threads) for _ in range(settings.repeats)]
    for i, name in enumerate(_STAGES):
        report.add(name, Sample(tuple(found["seconds"][i] for found in runs)), "s")
    lazy = all(found["lazy"] for found in runs)
    report.say("PyTorch", "imported with a model" if lazy else "imported with the package",
               lazy=lazy)  # fmt: skip
