"""What fitted Fock matrices lack beyond neon, by their auxiliary basis set.

    python docs/results/fitting_sets.py

Of each molecule: the orbital gradient that they have at the SCF's solution, and by how much they
are off in the change of the Fock matrix from the density after minao's first cycle to there.
"""

import numpy as np
import torch
from pyscf import dft, gto

from pyscf_deqh.fock.auxiliary import HEAVY, LIGHT
from pyscf_deqh.fock.fitted import FittedFock
from pyscf_deqh.fock.orbitals import OrbitalGradient, orthonormal_basis

MOLECULES = {
    "HCl": "H 0 0 0; Cl 0 0 1.28",
    "TiCl4": "Ti 0 0 0; Cl 1.25 1.25 1.25; Cl -1.25 -1.25 1.25; Cl 1.25 -1.25 -1.25;"
    "Cl -1.25 1.25 -1.25",
    "ZnCl2": "Zn 0 0 0; Cl 0 0 2.07; Cl 0 0 -2.07",
    "Br2": "Br 0 0 0; Br 0 0 2.28",
    "I2": "I 0 0 0; I 0 0 2.67",
}


def occupied(mf, hamiltonian):
    energies, orbitals = mf.eig(hamiltonian, mf.get_ovlp())
    return np.sqrt(2) * orbitals[:, mf.get_occ(energies, orbitals) > 0]


for name, atoms in MOLECULES.items():
    mol = gto.M(atom=atoms, basis="def2-svp", ecp={"I": "def2-svp"}, verbose=0)
    mf = dft.RKS(mol, xc="b3lyp").run()
    overlap, hcore = mf.get_ovlp(), mf.get_hcore()
    basis = orthonormal_basis(overlap)
    gradient = OrbitalGradient(basis, overlap @ basis)
    end = occupied(mf, mf.get_fock())
    first = occupied(mf, mf.get_fock(dm=mf.get_init_guess(key="minao")))
    full = [np.asarray(mf.get_fock(dm=c @ c.T)) for c in (first, end)]
    texts = []
    for auxbasis in (LIGHT, HEAVY):
        fitted = FittedFock(mol, dtype=torch.float64, auxbasis=auxbasis)
        fock = [fitted(hcore, c, "b3lyp")[0] for c in (first, end)]
        change, right = (basis.T @ (b - a) @ basis for a, b in (fock, full))
        off = np.linalg.norm(change - right) / np.linalg.norm(right)
        texts.append(f"{auxbasis} {gradient(end @ end.T, fock[1]):.1e} hartree, {off:.2%} off")
    print(f"{name}: " + "; ".join(texts))
