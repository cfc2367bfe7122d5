"""The bundled model on test molecules: real SCFs, minutes."""

import random

import pytest

from pyscf_deqh.benchmark.acceleration import run_benchmark
from pyscf_deqh.benchmark.scf_runs import Method
from pyscf_deqh.benchmark.sets import BUNDLED
from pyscf_deqh.data.geometry import read_geometries

pytestmark = pytest.mark.usefixtures("coarse_grids")


@pytest.mark.slow
def test_fewer_cycles_and_the_same_energy_on_unseen_molecules():
    geometries = random.Random(1).sample(read_geometries(BUNDLED), 4)
    results = run_benchmark(geometries, Method(), ["minao", "1e"], progress=False)
    against = results.summaries()
    assert against["minao"]["n"] == against["1e"]["n"] == 4
    assert against["minao"]["achieved_ratio"]["mean"] < 0.8
    assert against["1e"]["achieved_ratio"]["mean"] < 0.5
    for summary in against.values():
        assert summary["max_energy_difference"] < 1e-7
