"""How far each of PySCF's cycles gets with corrected cycles that have the response of the
functional, and with PBE's in its place, by the part of exact exchange.

    python docs/results/response.py

Three molecules of QM9's test set, from minao: full Fock builds, and the part of the orbital
gradient that a cycle leaves (geometric mean of those before convergence).
"""

import numpy as np
from pyscf import dft, scf

from pyscf_deqh import corrected_diis
from pyscf_deqh.benchmark.scf_runs import Method
from pyscf_deqh.benchmark.sets import BUNDLED
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.fock.corrector import STAND_IN
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.pyscf_api import full_builds

METHODS = {"pbe": "0", "b3lyp": "0.20", "pbe0": "0.25", "m06-2x": "0.54", "hf": "1",
           "camb3lyp": "0.19 to 0.65"}  # fmt: skip
WHOLE = FittedFock.serves
MOLECULES = [Method().molecule(geometry) for geometry in read_geometries(BUNDLED)[:3]]


def run(xc, prepare):
    builds, left = [], []
    for mol in MOLECULES:
        mf = scf.RHF(mol) if xc == "hf" else dft.RKS(mol, xc=xc)
        prepare(mf).kernel()
        assert mf.converged
        builds.append(full_builds(mf))
        gradients = np.array([cycle.gradient for cycle in mf.deqh_cycles])
        left += list(np.log(gradients[1:] / gradients[:-1]))
    return np.mean(builds), np.exp(np.mean(left)) if left else np.nan


print("functional, exact exchange: builds of DIIS; builds and part left, own response; PBE's")
for xc, exchange in METHODS.items():
    plain, _ = run(xc, lambda mf: mf)
    found = []
    for serves in (WHOLE, lambda self, functional: functional.name == STAND_IN):
        FittedFock.serves = serves
        found.append("{:.1f} {:.0e}".format(*run(xc, corrected_diis)))
    FittedFock.serves = WHOLE
    print(f"{xc}, {exchange}: {plain:.1f}; {'; '.join(found)}", flush=True)
