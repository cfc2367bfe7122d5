"""Two water molecules at PBE/def2-SVP: molecular dynamics in which every frame has a guess.

Each frame starts from the orbitals of the one before and from what the last frames have taught of
the fitted Fock matrices' error. ``python dynamics.py 10`` makes ten steps of 0.5 fs.
"""

import os
import sys

from pyscf import gto, md, scf

from pyscf_deqh import deqh_guess

WATERS = """
O  -1.4650  0.0930 -0.0640
H  -1.7780 -0.7560  0.2740
H  -0.5050 -0.0130 -0.0170
O   1.3900 -0.0880  0.0540
H   1.8030  0.3690 -0.6960
H   1.7690  0.3810  0.8130
"""
FEMTOSECOND = 41.341374575751  # atomic units of time

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
mol = gto.M(atom=WATERS, basis="def2-svp", verbose=0)
mf = scf.RKS(mol, xc="pbe").apply(deqh_guess, start="network")
energies = []


def watch(envs):
    frame, base = envs["current_frame"], envs["scanner"].base
    energies.append(frame.etot)
    print(
        f"frame {len(energies)}: start {base.deqh_report.start}, {base.cycles + 2} Fock matrices, "
        f"total energy {frame.etot:.6f} hartree"
    )


velocities = md.distributions.MaxwellBoltzmannVelocity(mol, T=300.0)
driver = md.NVE(mf, dt=0.5 * FEMTOSECOND, steps=steps, veloc=velocities, verbose=0)
driver.callback = watch
with open(os.devnull, "w") as driver.stdout:  # the velocities of each frame
    driver.run()
print(mf.deqh_scan)
print(f"total energy: largest less smallest {max(energies) - min(energies):.1e} hartree")
