"""Optimizations, trajectories and scans: every point starts from the one before."""

from __future__ import annotations

import gc
import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import FORMAMIDE, WATER, make_mol
from pyscf import dft, gto, lib, scf

from pyscf_deqh import deqh_guess, plugin
from pyscf_deqh.fock import cycles
from pyscf_deqh.fock.shells import Kind
from pyscf_deqh.starts.previous import Point, expected_defect

pytestmark = pytest.mark.usefixtures("coarse_grids")

pytestmark = pytest.mark.usefixtures("coarse_grids")


def moved(atoms, step, seed=0):
    """Atoms displaced at random, by so many angstrom on average."""
    shifts = step * np.random.default_rng(seed).normal(size=(len(atoms), 3)) / 3**0.5
    return [(s, tuple(np.array(r) + d)) for (s, r), d in zip(atoms, shifts, strict=True)]


def points(atoms, steps=(0.0, 0.05, 0.02), **options):
    return [make_mol(moved(atoms, step, seed), **options) for seed, step in enumerate(steps)]


METHODS = {
    "RHF": (lambda mol: scf.RHF(mol), {}),
    "RKS": (lambda mol: dft.RKS(mol, xc="b3lyp"), {}),
    "UKS": (lambda mol: dft.UKS(mol, xc="pbe"), {"charge": 1, "spin": 1}),
    "ROKS": (lambda mol: dft.ROKS(mol, xc="b3lyp"), {"spin": 2}),
    "another basis set": (lambda mol: dft.RKS(mol, xc="pbe0"), {"basis": "6-31g*"}),
    "density fitting": (lambda mol: dft.RKS(mol, xc="b3lyp").density_fit(), {}),
    "PCM": (lambda mol: dft.RKS(mol, xc="b3lyp").PCM(), {}),
}


_SLOW = ("ROKS", "PCM")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow) if m in _SLOW else m for m in METHODS]
)
def test_every_point_is_pyscfs_with_fewer_fock_matrices(method):
    make, options = METHODS[method]
    mols = points(WATER, **options)
    scanner = make(mols[0]).apply(deqh_guess).as_scanner()
    plain = make(mols[0]).as_scanner()
    for k, mol in enumerate(mols):
        assert scanner(mol) == pytest.approx(plain(mol), abs=2e-8)
        assert scanner.converged
        assert scanner.cycles < plain.cycles
        report = scanner.deqh_report
        assert report.start == ("previous" if k else "network")
        assert report.fallback is None
        if k:
            assert scanner.cycles <= 2


@pytest.mark.parametrize("solvent", [False, True])
def test_the_last_defect_makes_a_start_better(solvent):
    mols = points(WATER if solvent else FORMAMIDE, (0.0, 0.01, 0.02))
    mf = dft.RKS(mols[0], xc="b3lyp")
    scanner = (mf.PCM() if solvent else mf).apply(deqh_guess).as_scanner()
    gradients = []
    for mol in mols:
        scanner(mol)
        gradients.append(scanner.deqh_cycles[0].gradient)
    assert max(gradients[1:]) < gradients[0] / (5 if solvent else 10)


def test_defects_are_linear_between_points():
    """Positions that are a combination of earlier ones have that combination's defect."""
    rng = np.random.default_rng(1)
    positions, slopes = rng.normal(size=(3, 4, 3)) * 0.1, rng.normal(size=(2, 2, 12))

    def point(r, defect=True):
        value = slopes @ r.ravel() if defect else None
        return Point(r, None, Kind.CLOSED, [], value)

    points = tuple(point(r) for r in positions)
    new = positions[2] + 0.7 * (positions[1] - positions[2]) - 0.4 * (positions[0] - positions[2])
    np.testing.assert_allclose(expected_defect(points, new), slopes @ new.ravel(), atol=1e-12)
    np.testing.assert_array_equal(expected_defect(points[2:], new), points[2].defect)
    unknown = (point(positions[0], defect=False), points[2])
    np.testing.assert_array_equal(expected_defect(unknown, new), points[2].defect)
    assert expected_defect((points[0], unknown[0]), new) is None
    far = positions[2] + 50 * (positions[1] - positions[2])
    np.testing.assert_array_equal(expected_defect(points, far), points[2].defect)


def hydrogen(*distances):
    return [gto.M(atom=f"H 0 0 0; H 0 0 {r}", basis="cc-pvdz", verbose=0) for r in distances]


def breaks_symmetry():
    """Older versions of PySCF do not know 'mix'."""
    (mol,) = hydrogen(3.0)
    return scf.UHF(mol).set(init_guess_breaksym="mix").run().spin_square()[0] > 0.8


@pytest.mark.skipif(not breaks_symmetry(), reason="PySCF starts with the symmetry")
def test_states_are_kept():
    """A singlet of broken symmetry goes on from its last orbitals."""
    mols = hydrogen(3.0, 2.9, 2.8)
    scanner = scf.UHF(mols[0]).set(init_guess_breaksym="mix").apply(deqh_guess).as_scanner()
    for k, mol in enumerate(mols):
        energy = scanner(mol)
        assert energy == pytest.approx(
            scf.UHF(mol).set(init_guess_breaksym="mix").kernel(), abs=1e-8
        )
        assert scanner.spin_square()[0] > 0.8
        assert scanner.deqh_report.start == ("previous" if k else "minao")


@pytest.mark.parametrize("shape", ["molecule", "positions"])
def test_an_open_shell_keeps_its_state_after_a_jump(shape):
    """A state that the user has made; the guess would begin with both spins alike."""
    mols = hydrogen(3.0, 4.5)
    up, down = np.diag([1.0] * 5 + [0.0] * 5), np.diag([0.0] * 5 + [1.0] * 5)
    broken = np.array([up, down]) / 5
    scanner = scf.UHF(mols[0]).set(init_guess_breaksym=0).apply(deqh_guess).as_scanner()
    plain = scf.UHF(mols[0]).set(init_guess_breaksym=0).as_scanner()
    for mol, start in zip(mols, ({"dm0": broken}, {}), strict=True):
        geometry = mol.atom_coords(unit="angstrom") if shape == "positions" else mol
        assert scanner(geometry, **start) == pytest.approx(plain(mol, **start), abs=1e-8)
        assert scanner.spin_square()[0] > 0.8
    assert scanner.deqh_scan.starts == {"a density of the user's": 1, "PySCF's": 1}


def test_where_cycles_are_lost_the_last_state_is_the_start(monkeypatch):
    """minao's density may lead to another one."""
    mols = hydrogen(3.0, 2.9)
    broken = np.array([np.diag([1.0] * 5 + [0.0] * 5), np.diag([0.0] * 5 + [1.0] * 5)]) / 5
    scanner = scf.UHF(mols[0]).set(init_guess_breaksym=0).apply(deqh_guess).as_scanner()
    plain = scf.UHF(mols[0]).set(init_guess_breaksym=0).as_scanner()
    monkeypatch.setattr(cycles, "_failure", lambda *args: "the orbital gradient is still 1")
    for mol, start in zip(mols, ({"dm0": broken}, {}), strict=True):
        assert scanner(mol, **start) == pytest.approx(plain(mol, **start), abs=1e-8)
        assert scanner.spin_square()[0] > 0.8
    assert scanner.deqh_report.fallback is None
    assert scanner.deqh_report.start == "previous"
    assert any("one step from the last point" in note for note in scanner.deqh_report.notes)


def test_orbitals_of_the_users_are_looked_at_in_silence(tmp_path):
    """At the last geometry, which is not the molecule's any more."""
    mol = hydrogen(1.0)[0]
    scanner = scf.RHF(mol).apply(deqh_guess).as_scanner()
    scanner(mol)
    scanner.mo_coeff = scanner.mo_coeff.copy()
    with open(tmp_path / "log", "w") as log:
        mol.verbose, mol.stdout = 4, log
        assert plugin._points(scanner)[0].fits(mol.intor("int1e_ovlp"))
        mol.stdout = None
    assert not (tmp_path / "log").read_text()


def test_gradients():
    mols = points(WATER)
    scanner = dft.RKS(mols[0], xc="pbe").apply(deqh_guess).nuc_grad_method().as_scanner()
    for mol in mols:
        energy, gradient = scanner(mol)
        plain = dft.RKS(mol, xc="pbe").run()
        assert energy == pytest.approx(plain.e_tot, abs=2e-8)
        np.testing.assert_allclose(gradient, plain.nuc_grad_method().kernel(), atol=2e-5)
    assert scanner.base.deqh_report.start == "previous"


def test_jumps_start_anew():
    water = make_mol(WATER)
    scanner = scf.RHF(water).apply(deqh_guess).as_scanner()
    scanner(water)
    far = [("O", (0, 0, 0.119)), ("H", (0, 0.763, -0.477)), ("H", (0, -0.763, 0.7))]
    other = [("C", (0, 0, 0)), *moved(FORMAMIDE[:0], 0), ("O", (0, 0, 1.13))]
    for mol, reason in (
        (make_mol(far), "an atom has moved by"),
        (make_mol(other), "another molecule"),
        (make_mol(other, basis="6-31g"), "another molecule"),
    ):
        scanner(mol)
        assert scanner.deqh_report.start == "network"
        assert any(reason in note for note in scanner.deqh_report.notes)
        assert scanner.e_tot == pytest.approx(scf.RHF(mol).kernel(), abs=1e-8)


def test_molecules_that_are_moved_in_place():
    """As PySCF's dynamics do; a jump is noticed all the same."""
    mol = make_mol(WATER)
    scanner = scf.RHF(mol).apply(deqh_guess).as_scanner()
    for step, start in ((0.0, "network"), (0.03, "previous"), (0.8, "network")):
        mol.set_geom_(moved(WATER, step, seed=3))
        assert scanner(mol) == pytest.approx(scf.RHF(mol).kernel(), abs=1e-8)
        assert scanner.deqh_report.start == start


def test_a_converged_object_becomes_a_scanner():
    mols = points(WATER)
    scanner = scf.RHF(mols[0]).apply(deqh_guess).run().as_scanner()
    scanner(mols[1])
    assert scanner.deqh_report.start == "previous"


@pytest.mark.parametrize("target", ["another molecule", "far away"])
def test_drivers_change_the_molecule_before_they_call(target):
    """A gradient scanner does, also for the first point after an SCF."""
    h2 = [("H", (0, 0, 0)), ("H", (0, 0, 0.7))]
    other = {"another molecule": WATER, "far away": [h2[0], ("H", (0, 0, 2.0))]}[target]
    mf = scf.RHF(make_mol(h2)).apply(deqh_guess, start="atoms").run()
    scanner = mf.nuc_grad_method().as_scanner()
    mol = make_mol(other)
    assert scanner(mol)[0] == pytest.approx(scf.RHF(mol).kernel(), abs=1e-8)
    assert scanner.base.deqh_report.start == "atoms"


def stretched(distance):
    return make_mol([("H", (0, 0, 0)), ("H", (0, 0, distance))])


def symmetric(mol):
    """Of which PySCF does not break the symmetry: a closed shell, above the broken one."""
    return scf.UHF(mol).set(init_guess_breaksym=0).apply(deqh_guess, start="atoms")


def broken(distance, **settings):
    """The lower solution: one electron at either atom."""
    mf = scf.UHF(stretched(distance)).set(**settings)
    density = np.zeros((2, mf.mol.nao, mf.mol.nao))
    density[0, 0, 0] = density[1, mf.mol.nao // 2, mf.mol.nao // 2] = 1
    mf.kernel(dm0=density)
    return mf


def test_orbitals_that_the_user_loads_are_kept(tmp_path):
    mol, file = stretched(2.0), str(tmp_path / "broken.chk")
    state = broken(2.0, chkfile=file)
    assert symmetric(mol).run().e_tot > state.e_tot + 1e-3
    mf = symmetric(mol)
    mf.update_from_chk(file)
    scanner = mf.as_scanner()
    assert scanner(mol) == pytest.approx(state.e_tot, abs=1e-8)
    assert scanner.deqh_report is None
    assert scanner(stretched(2.02)) == pytest.approx(broken(2.02).e_tot, abs=1e-8)
    assert scanner.deqh_report.start == "previous"


def test_a_state_that_the_user_has_changed_is_followed():
    scanner = symmetric(stretched(2.0)).as_scanner()
    scanner(stretched(2.0))
    scanner.kernel(dm0=broken(2.0).make_rdm1())
    near, expected = stretched(2.02), broken(2.02).e_tot
    assert scanner(near) == pytest.approx(expected, abs=1e-8)
    assert scanner.deqh_report.start == "previous"
    report, other = scanner.deqh_report, broken(3.0)
    scanner.mo_coeff, scanner.mo_occ = other.mo_coeff, other.mo_occ  # of another geometry
    assert scanner(near) == pytest.approx(expected, abs=1e-8)
    assert scanner.deqh_report is report  # PySCF's start


def test_a_state_that_the_user_has_changed_in_place_is_followed():
    scanner = symmetric(stretched(2.0)).as_scanner()
    scanner(stretched(2.0))
    for own, other in zip(scanner.mo_coeff, broken(2.0).mo_coeff, strict=True):
        own[:] = other
    assert scanner(stretched(2.02)) == pytest.approx(broken(2.02).e_tot, abs=1e-8)
    assert scanner.deqh_report.start == "previous"


def test_orbitals_that_take_the_place_of_unconverged_ones_are_kept():
    mol, state = stretched(2.0), broken(2.0)
    mf = symmetric(mol).set(max_cycle=1).run().set(max_cycle=50)
    mf.mo_coeff, mf.mo_occ = state.mo_coeff, state.mo_occ
    assert mf.as_scanner()(mol) == pytest.approx(state.e_tot, abs=1e-8)


def test_other_numbers_of_electrons_start_anew():
    mols = points(WATER)
    scanner = scf.UHF(mols[0]).set(init_guess_breaksym=0).apply(deqh_guess).as_scanner()
    scanner(mols[0])
    scanner.nelec = (6, 4)
    scanner(mols[1])
    assert scanner.deqh_report.start == "network"


def test_scanners_of_other_packages_are_left_alone():
    """Of classes that know nothing of this one."""
    assert not plugin._at_every_point(SimpleNamespace())
    assert not plugin._at_every_point(SimpleNamespace(init_guess="minao"))


def test_a_later_point_without_memory_has_another_start():
    mols = points(WATER)
    mf = scf.RHF(mols[0]).apply(deqh_guess, start="network")
    mf.max_memory = 0.1
    scanner = mf.as_scanner()
    for mol in mols:
        assert scanner(mol) == pytest.approx(scf.RHF(mol).kernel(), abs=1e-8)
        assert scanner.deqh_report.start == "network"
    assert any(note.startswith("network, because") for note in scanner.deqh_report.notes)


def test_filled_representations_keep_pyscfs_density():
    mols = points(WATER[:1], symmetry=True, spin=2)
    scanner = scf.UHF(mols[0]).set(irrep_nelec={"s+0": (2, 2)}).apply(deqh_guess).as_scanner()
    scanner(mols[0])
    report = scanner.deqh_report
    scanner(mols[0].copy())
    assert scanner.deqh_report is report


def test_a_scan_is_told_of_where_it_is_served():
    plain = scf.addons.smearing(scf.RHF(make_mol(WATER)), sigma=0.01).apply(deqh_guess)
    plain.as_scanner()
    assert plain.deqh_scan is None


def test_newton_makes_integrals_once(monkeypatch):
    made = []
    intor = gto.Mole.intor
    monkeypatch.setattr(
        gto.Mole, "intor", lambda mol, name, *args, **kwargs: made.append(name)
        or intor(mol, name, *args, **kwargs),
    )  # fmt: skip
    mf = scf.RHF(make_mol(WATER)).newton().apply(deqh_guess, start="atoms")
    scanner = mf.as_scanner()
    scanner(mf.mol)
    assert scanner._eri is scanner._scf._eri is not None
    assert made.count("int2e") == 1


def test_a_failed_point_leaves_a_clean_start():
    mols = points(WATER)
    scanner = scf.RHF(mols[0]).apply(deqh_guess).as_scanner()
    scanner(mols[0])
    scanner.max_cycle = 1
    scanner(mols[1])
    scanner.max_cycle = 50
    scanner(mols[2])
    assert scanner.deqh_report.start == "network"
    assert scanner.converged


def test_what_the_user_chose():
    mols = points(WATER)
    scanner = scf.RHF(mols[0]).apply(deqh_guess, every_point=False).as_scanner()
    scanner(mols[0])
    report = scanner.deqh_report
    scanner(mols[1])
    assert scanner.deqh_report is report  # no other guess was made
    scanner = scf.RHF(mols[0]).apply(deqh_guess).as_scanner()
    scanner(mols[0])
    report, own = scanner.deqh_report, scf.RHF(mols[1]).get_init_guess()
    scanner(mols[1], dm0=own)
    assert scanner.deqh_report is report
    plain = scf.RHF(mols[0]).as_scanner()
    plain(mols[0])
    plain(mols[1])
    assert plain.deqh_report is None


def test_points_travel_with_the_object():
    mols = points(WATER)
    scanner = scf.RHF(mols[0]).apply(deqh_guess).as_scanner()
    scanner(mols[0])
    scanner(mols[1])
    copy = pickle.loads(pickle.dumps(Point.of(scanner)))
    assert copy.kind == Point.of(scanner).kind
    np.testing.assert_array_equal(copy.spins[0], Point.of(scanner).spins[0])


def test_a_scan_is_summed_up():
    mols = points(WATER)
    mf = scf.RHF(mols[0]).apply(deqh_guess)
    scanner = mf.as_scanner()
    builds = 0
    for mol in mols:
        scanner(mol)
        builds += scanner.cycles + 2
    scan = mf.deqh_scan  # of the object that the scanner was made of
    assert scan is scanner.deqh_scan
    assert (scan.points, scan.builds) == (3, builds)
    assert scan.starts == {"network": 1, "previous": 2}
    scanner(mols[0], dm0=scf.RHF(mols[0]).get_init_guess())
    scanner.max_cycle, scanner.conv_tol, scanner.verbose = 1, 1e-15, 4
    scanner.stdout = io.StringIO()
    scanner(mols[1])
    assert scan.not_converged == [5]
    text = "starts: network 1, previous 3, a density of the user's 1; not converged: 5"
    assert text in str(scan)
    assert f"DEQH point 5: start previous, {1 + scanner.cycles} full" in scanner.stdout.getvalue()
    mf.as_scanner()
    assert mf.deqh_scan.points == 0


def test_another_state_is_reported(monkeypatch):
    mols = points(WATER)
    scanner = scf.UHF(mols[0]).set(init_guess_breaksym=0).apply(deqh_guess).as_scanner()
    scanner(mols[0])
    first = Point.of(scanner)
    scanner(mols[2])
    assert scanner.deqh_scan.switched == []
    same, overlap = Point.of(scanner), scanner.get_ovlp()
    assert 0.9 < same.likeness(first, overlap) <= 1 + 1e-9
    scanner.mo_coeff[0][:, [4, 5]] = scanner.mo_coeff[0][:, [5, 4]]  # the last occupied orbital
    assert Point.of(scanner).likeness(first, overlap) < 0.3
    monkeypatch.setattr(plugin, "_SAME_STATE", 1.1)
    scanner(mols[1])
    assert scanner.deqh_scan.switched == [3]
    assert "another state than before: 3" in str(scanner.deqh_scan)


def test_a_switch_to_another_state_is_reported():
    """OH's odd electron, put from one pi orbital into the other by a user's density."""
    mols = [gto.M(atom=f"O 0 0 0; H 0 0 {r}", basis="6-31g", spin=1, verbose=0)
            for r in (0.97, 0.98, 0.99)]  # fmt: skip
    labels = mols[0].ao_labels()
    x, y = ([i for i, label in enumerate(labels) if p in label] for p in ("px", "py"))
    turn = np.eye(len(labels))
    turn[x, x] = turn[y, y] = 0.0
    turn[y, x], turn[x, y] = 1.0, -1.0
    scanner = scf.UHF(mols[0]).apply(deqh_guess, start="atoms").as_scanner()
    scanner(mols[0])
    turned = turn @ scanner.make_rdm1() @ turn.T
    for mol, options, switched in zip(mols[1:], ({"dm0": turned}, {}), ([2], [2]), strict=True):
        assert scanner(mol, **options) == pytest.approx(scf.UHF(mol).kernel(), abs=1e-8)
        assert scanner.deqh_scan.switched == switched
    assert scanner.deqh_report.start == "previous"


def test_an_object_goes_on_elsewhere():
    """Pickled, and put to another geometry, as PySCF's own."""
    mols = points(WATER)
    mf = dft.RKS(mols[0], xc="pbe").apply(deqh_guess, start="network")
    for run in (False, True):
        other = pickle.loads(pickle.dumps(mf.run() if run else mf))
        other.kernel()
        assert other.deqh_report.start == "network"
        assert other.e_tot == pytest.approx(mf.e_tot or other.e_tot, abs=1e-8)
    assert mf.reset(mols[1]).kernel() == pytest.approx(
        dft.RKS(mols[1], xc="pbe").kernel(), abs=1e-8
    )


def test_pyberny_is_served():
    pytest.importorskip("berny")
    from pyscf.geomopt.berny_solver import optimize

    mf = scf.RHF(make_mol(moved(WATER, 0.05))).apply(deqh_guess, start="network")
    minimum, plain = optimize(mf), optimize(scf.RHF(make_mol(moved(WATER, 0.05))))
    np.testing.assert_allclose(minimum.get_enuc(), plain.get_enuc(), atol=1e-4)
    assert mf.deqh_scan.starts == {"network": 1, "previous": mf.deqh_scan.points - 1}
    assert mf.deqh_scan.points > 3


def test_dynamics_at_a_temperature_are_served():
    from pyscf.md.integrators import NVTBerendson

    mf = scf.RHF(make_mol(WATER)).apply(deqh_guess, start="network")
    velocities = 1e-4 * np.random.default_rng(0).normal(size=(3, 3))
    driver = NVTBerendson(mf, dt=20, steps=3, T=300, taut=400, veloc=velocities, verbose=0)
    driver.stdout = io.StringIO()
    driver.run()
    assert mf.deqh_scan.starts == {"network": 1, "previous": 2}
    assert not mf.deqh_scan.not_converged


def test_finite_differences_are_served():
    finite_diff = pytest.importorskip("pyscf.tools.finite_diff")
    plain = scf.RHF(make_mol(WATER)).run(conv_tol=1e-11)
    mf = scf.RHF(make_mol(WATER)).set(conv_tol=1e-11).apply(deqh_guess)
    gradient = finite_diff.kernel(mf, displacement=1e-2)
    np.testing.assert_allclose(gradient, plain.nuc_grad_method().kernel(), atol=2e-4)
    assert mf.deqh_scan.points == 18
    assert mf.deqh_scan.starts["previous"] == 17


def test_pyscfs_calculator_for_ase_is_served():
    ase = pytest.importorskip("ase")
    calculators = pytest.importorskip("pyscf.pbc.tools.pyscf_ase")
    mf = dft.RKS(make_mol(WATER), xc="pbe").apply(deqh_guess)
    atoms = ase.Atoms([s for s, _ in WATER], [r for _, r in WATER])
    try:
        atoms.calc = calculators.PySCF(method=mf)
    except (AttributeError, TypeError):
        pytest.skip("this version of PySCF has another calculator")
    for shift in (0.0, 0.02):
        atoms.positions[1, 0] += shift
        forces = atoms.get_forces()
    plain = dft.RKS(make_mol(list(zip(atoms.symbols, atoms.positions, strict=True))), xc="pbe")
    expected = -plain.run().nuc_grad_method().kernel() * ase.units.Hartree / ase.units.Bohr
    np.testing.assert_allclose(forces, expected, atol=2e-3)
    assert mf.deqh_scan.starts == {"network": 1, "previous": 1}


@pytest.mark.slow
def test_memory_stays_flat():
    """Over 450 points, after fifty that fill what is kept."""
    scanner = scf.RHF(make_mol(WATER)).apply(deqh_guess, start="network").as_scanner()
    resident = []
    for k in range(500):
        scanner(make_mol(moved(WATER, 0.01, seed=k)))
        assert scanner.deqh_report.start == ("previous" if k else "network")
        if k in (50, 499):
            gc.collect()
            resident.append(lib.current_memory()[0])
    assert resident[1] - resident[0] < 15  # megabytes
