"""Many molecules on a cluster: energies, gaps and dipole moments into one Parquet file.

Usage: python examples/cluster.py molecules.xyz results.parquet [SCHEDULER]

SCHEDULER is the address of a Dask scheduler (tcp://host:8786), its scheduler file (.json), or a
file that describes the jobs of a batch system (docs/scaling.md). Without one, two workers of this
machine play the cluster. Run it again with more molecules: the file is extended.
"""

import sys

from pyarrow import parquet

from pyscf_deqh.benchmark.scf_runs import Method
from pyscf_deqh.data.geometry import read_geometries
from pyscf_deqh.screen import screen

if __name__ == "__main__":  # workers import this file
    molecules, results, *address = sys.argv[1:]
    where = {"scheduler": address[0]} if address else {"workers": 2}
    found = screen(read_geometries(molecules), results, Method(xc="pbe"), **where)
    print(f"{found['written']} molecules now, {found['failed']} without a result")
    columns = ["name", "energy", "gap", "full_builds", "seconds", "error"]
    for row in parquet.read_table(results, columns=columns).to_pylist():
        if row["error"]:
            print(f"{row['name']}: {row['error']}")
        else:
            print(f"{row['name']}: {row['energy']:.8f} hartree, gap {27.2114 * row['gap']:.2f} eV, "
                  f"{row['full_builds']} Fock builds, {row['seconds']:.1f} s")  # fmt: skip
