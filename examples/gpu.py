"""Aspirin at B3LYP/def2-TZVP on a GPU: gpu4pyscf's SCF from its own guess, then from this one.

``pip install 'pyscf_deqh[gpu]'`` brings gpu4pyscf for CUDA 12; PyTorch must be a build for CUDA as
well. Each SCF runs twice: the first time, CUDA compiles and loads what it needs.
"""

import time
from pathlib import Path

import cupy
from gpu4pyscf import dft
from pyscf import gto

from pyscf_deqh import deqh_guess

ASPIRIN = str(Path(__file__).with_name("aspirin.xyz"))

mol = gto.M(atom=ASPIRIN, basis="def2-tzvp", verbose=3)
for name in ("minao", "deqh") * 2:
    mf = dft.RKS(mol, xc="b3lyp")
    if name == "deqh":
        mf = mf.apply(deqh_guess)
    started = time.perf_counter()
    energy = mf.kernel()
    cupy.cuda.Device().synchronize()
    seconds = time.perf_counter() - started
    print(f"{name:5} {mf.cycles:2} cycles {seconds:6.2f} s  E = {energy:.9f} hartree")
print(mf.deqh_report)
