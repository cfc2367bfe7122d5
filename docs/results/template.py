"""What more elements cost a network: a training step of SO2Net for the same eight molecules of QM9
with room for H C N O F (14 orbitals of def2-SVP an atom) and for ten elements (32, bromine's)."""

import time
from pathlib import Path

import numpy as np
import torch
from pyscf import gto

import pyscf_deqh
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.graph.basis import template_of
from pyscf_deqh.graph.batch import collate
from pyscf_deqh.graph.build import build_graph
from pyscf_deqh.nn.so2net import SO2Net, SO2NetConfig

MOLECULES = Path(pyscf_deqh.__file__).parent / "benchmark" / "molecules"
FIVE, TEN = (1, 6, 7, 8, 9), (1, 6, 7, 8, 9, 14, 15, 16, 17, 35)
REPEATS = 21


def graphs(file, n=8):
    for geometry in read_geometries(MOLECULES / file)[:n]:
        mol = gto.M(atom=geometry.atom(), basis="def2-svp", charge=geometry.charge, verbose=0)
        yield build_graph(mol, "sad")


def step_seconds(net, batch):
    """Forward and backward, one application of f."""
    start = time.perf_counter()
    injected = net.injection(batch)
    net.filter(net.state(batch.reference, injected), injected).square().sum().backward()
    return time.perf_counter() - start


def main():
    molecules = list(graphs("qm9_test.xyz"))
    templates = [template_of("def2-svp", numbers) for numbers in (FIVE, TEN)]
    nets = [SO2Net(template, SO2NetConfig(injection_layers=1)) for template in templates]
    batches = [collate(molecules, t, net.cutoff) for t, net in zip(templates, nets, strict=True)]
    turns = [
        [step_seconds(net, batch) for net, batch in zip(nets, batches, strict=True)]
        for _ in range(1 + REPEATS)
    ][1:]  # in turn, because servers are noisy; the first one warms up
    for template, seconds in zip(templates, np.median(turns, axis=0), strict=True):
        print(f"{len(template.numbers)} elements, {template.size} orbitals: {seconds:.3f} s a step "
              f"of {len(molecules)} molecules, {torch.get_num_threads()} threads")  # fmt: skip
    print(f"median ratio {np.median([ten / five for five, ten in turns]):.2f}")


if __name__ == "__main__":
    main()
