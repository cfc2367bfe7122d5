"""What more elements cost a network: a training step of SO2Net for the same eight molecules of QM9
by a network for H C N O F (14 orbitals of def2-SVP an atom) and by one for ten elements (32,
bromine's), whose blocks have room for the batch's elements alone, or for all of them."""

import time
from dataclasses import replace
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
    five, ten = (
        (net := SO2Net(template_of("def2-svp", numbers), SO2NetConfig(injection_layers=1)),
         collate(molecules, net.template, net.cutoff))
        for numbers in (FIVE, TEN)
    )  # fmt: skip
    counts = ten[0].template.counts
    kinds = {
        "five elements": five, "ten": ten,
        "ten, room for all": (ten[0], replace(ten[1], shell_counts=counts)),
    }  # fmt: skip
    turns = [
        [step_seconds(net, batch) for net, batch in kinds.values()] for _ in range(1 + REPEATS)
    ][1:]  # in turn, because servers are noisy; the first one warms up
    for name, seconds in zip(kinds, np.median(turns, axis=0), strict=True):
        print(f"{name}: {seconds:.3f} s a step of {len(molecules)} molecules, "
              f"{torch.get_num_threads()} threads")  # fmt: skip
    first, *others = np.transpose(turns)
    for name, seconds in zip(list(kinds)[1:], others, strict=True):
        print(f"{name}: {np.median(seconds / first):.2f} times as long as five")


if __name__ == "__main__":
    main()
