"""What the labels' fitted integrals and coarse grid cost, by element.

    python docs/results/label_errors.py data/b3lyp-def2svp.store

Of each rare element the three test molecules in the store with the fewest orbitals, once each, with
the SCF that PySCF makes of them: mean error of the on-site blocks of each element's atoms, of whole
matrices, and the orbital gradient of the label's density in PySCF's Fock matrix, by the root of an
electron pair.
"""

import sys
from collections import defaultdict

import numpy as np
from pyscf import dft, gto
from pyscf.data.elements import ELEMENTS

from pyscf_deqh import deqh_guess
from pyscf_deqh.data.formats import open_labels
from pyscf_deqh.data.splits import split_ids
from pyscf_deqh.fock.orbitals import OrbitalGradient, orthonormal_basis
from pyscf_deqh.graph.basis import n_orbitals

RARE = (9, 14, 15, 16, 17, 35)
OF_EACH = 3

with open_labels(sys.argv[1]) as store:
    failures = store.failures()
    records = [store[i] for i in split_ids(store, "test", "qm9-id") if i not in failures]
records.sort(key=lambda record: n_orbitals(record.numbers, "def2-svp"))
chosen = {}
for number in RARE:
    having = [record for record in records if number in record.numbers]
    chosen |= {record.id: record for record in having[:OF_EACH]}

onsite, whole, gradients = defaultdict(list), [], []
for record in chosen.values():
    mol = gto.M(atom=record.geometry().atom(), basis="def2-svp", charge=record.charge, verbose=0)
    mf = dft.RKS(mol, xc="b3lyp").apply(deqh_guess).run(conv_tol=1e-10)
    assert mf.converged
    error = np.abs(record.hamiltonian - mf.get_fock())
    whole.append(error.mean())
    for number, (*_, start, stop) in zip(record.numbers, mol.aoslice_by_atom(), strict=True):
        onsite[int(number)].append(error[start:stop, start:stop].mean())
    overlap = mf.get_ovlp()
    energies, orbitals = mf.eig(record.hamiltonian, overlap)
    occupied = orbitals[:, mf.get_occ(energies, orbitals) > 0]
    density = 2 * occupied @ occupied.T
    basis = orthonormal_basis(overlap)
    gradient = OrbitalGradient(basis, overlap @ basis)(density, mf.get_fock(dm=density))
    gradients.append(gradient / occupied.shape[1] ** 0.5)

print("element: atoms, on-site error / micro-hartree")
for number, errors in sorted(onsite.items()):
    print(f"{ELEMENTS[number]}: {len(errors)}, {1e6 * np.mean(errors):.0f} ± "
          f"{1e6 * np.std(errors, ddof=1):.0f}")  # fmt: skip
for name, values, unit in (("whole matrices, micro-hartree", whole, 1e6),
                           ("orbital gradient, milli-hartree", gradients, 1e3)):  # fmt: skip
    print(f"{name}: {unit * np.mean(values):.2f} ± {unit * np.std(values, ddof=1):.2f}, "
          f"n = {len(values)}")  # fmt: skip
