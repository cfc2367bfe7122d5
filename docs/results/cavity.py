"""What fitted densities lack on the surface of a solute: ``python docs/results/cavity.py``."""

import numpy as np
from pyscf import df, gto, scf

from pyscf_deqh import init_guess_by_deqh
from pyscf_deqh.benchmark.sets import SUITE
from pyscf_deqh.fock.auxiliary import auxiliary_molecule
from pyscf_deqh.pyscf_api import cavity_of

for kind in ("pcm", "smd"):
    entry = SUITE[kind]
    (geometry,) = entry.geometries(1)
    mol = entry.method().molecule(geometry)
    cavity = cavity_of(entry.method().scf(mol), build=True)
    change = init_guess_by_deqh(mol, xc="b3lyp") - scf.RHF(mol).get_init_guess(mol, "minao")
    auxiliary = auxiliary_molecule(mol, None)

    def integrals(functions, mol=mol, change=change):
        return np.einsum("ijp,ij->p", df.incore.aux_e2(mol, functions), change)

    exact = integrals(cavity.charges)
    weights = np.linalg.solve(auxiliary.intor("int2c2e"), integrals(auxiliary))
    fitted = weights @ gto.intor_cross("int2c2e", auxiliary, cavity.charges)
    errors = []
    for solve in (lambda v: v, lambda v, c=cavity: np.linalg.solve(c.k, c.r @ v)):
        error = np.linalg.norm(solve(fitted) - solve(exact))
        errors.append(error / np.linalg.norm(solve(exact)))
    print(
        f"{kind}, {geometry.name}: {len(exact)} charges, {auxiliary.nao} fitting functions; "
        f"potential {errors[0]:.1%} off, charges {errors[1]:.1%}"
    )
