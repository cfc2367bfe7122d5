import sys
from dataclasses import dataclass

import numpy as np
import pytest
from pyscf import dft, gto
from pyscf.data import elements, nist

from pyscf_deqh import ConfigError, DatasetError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.dataset import GraphStore, HamiltonianDataset
from pyscf_deqh.data.formats.qh9 import QH9Database
from pyscf_deqh.data.make.dynamics import DFT, XTB, thermal_velocities
from pyscf_deqh.data.make.label import LabelSettings, label
from pyscf_deqh.data.make.trajectories import simulate, start_geometries
from pyscf_deqh.data.xyz import Geometry, read_xyz

FAST = DFT(interval=0.4, timestep=0.2, xc="hf", basis="sto-3g")
FS = 1e-15 / (nist.HBAR / nist.HARTREE2J)
MD17_ATOMS = {
    "water": "OHH",
    "ethanol": "CCOHHHHHH",
    "malondialdehyde": "CCCOOHHHH",
    "uracil": "CCNCNCOOHHHH",
}


def hydrogen(**info):
    return Geometry(np.array([1, 1], np.int32), np.array([[0, 0, 0], [0, 0, 0.74]]), info)


def kinetic(numbers, velocities):
    """Kinetic energy in hartree of velocities in angstrom/fs."""
    masses = np.array([elements.COMMON_ISOTOPE_MASSES[z] for z in numbers]) * nist.AMU2AU
    return 0.5 * (masses[:, None] * (velocities / nist.BOHR / FS) ** 2).sum()


def temperature(numbers, velocities):
    return 2 * kinetic(numbers, velocities) * nist.HARTREE2J / nist.BOLTZMANN / velocities.size


def velocities_of(path):
    """Velocities (frames, atoms, 3) in a file that ``md`` wrote."""
    rows = [line.split() for line in path.read_text().splitlines() if len(line.split()) == 7]
    n_frames = sum(1 for _ in read_xyz(path))
    return np.array([[float(x) for x in row[4:]] for row in rows]).reshape(n_frames, -1, 3)


# Physics


def test_thermal_velocities():
    """The mean kinetic energy of each element is 3/2 kT, and nothing moves on average."""
    numbers = np.repeat([1, 8], 20000)
    velocities = thermal_velocities(numbers, 300.0, np.random.default_rng(0))
    for z in (1, 8):
        part = velocities[numbers == z]
        assert temperature(np.full(len(part), z), part) == pytest.approx(300, rel=0.02)
        assert abs(part.mean()) < 0.02 * part.std()
    # Root mean square of a hydrogen atom, sqrt(3 k 300 K / m) = 2.72 km/s.
    rms = np.sqrt((velocities[numbers == 1] ** 2).sum(axis=1).mean())
    assert rms == pytest.approx(0.0272, rel=0.02)


def test_kohn_sham_dynamics_conserve_energy():
    """A quarter of a vibration of a stretched bond, against energies from PySCF alone."""

    def total(positions, velocities):
        mol = gto.M(atom=list(zip([1, 1], positions, strict=True)), basis="sto-3g", verbose=0)
        return dft.RKS(mol, xc="hf").run().e_tot, kinetic([1, 1], velocities)

    numbers, rng = np.array([1, 1]), np.random.default_rng(0)
    start = np.array([[0, 0, 0], [0, 0, 0.8]]), np.zeros((2, 3))
    end = FAST.advance(numbers, start, 10, 300.0, rng)
    potential, kinetic_energy = (b - a for a, b in zip(total(*start), total(*end), strict=True))
    assert kinetic_energy > 1e-3
    assert potential + kinetic_energy == pytest.approx(0, abs=0.02 * kinetic_energy)


def test_xtb_dynamics_have_the_temperature(tmp_path):
    pytest.importorskip("ase")
    pytest.importorskip("tblite")
    out = tmp_path / "a.xyz"
    engine = XTB(interval=10, equilibration=200)
    written, failures = simulate(
        start_geometries("water"), out, engine, 100, workers=0, progress=False
    )
    assert (written, failures) == (100, {})
    mean = np.mean([temperature([8, 1, 1], v) for v in velocities_of(out)])
    assert mean == pytest.approx(300, rel=0.25)
    bonds = [np.linalg.norm(g.positions[1:] - g.positions[0], axis=1) for g in read_xyz(out)]
    assert np.mean(bonds) == pytest.approx(0.96, abs=0.02)
    assert 0.01 < np.std(bonds) < 0.1


@pytest.mark.parametrize("name", MD17_ATOMS)
def test_bundled_molecules(name):
    (geometry,) = start_geometries(name)
    assert "".join(elements.ELEMENTS[z] for z in geometry.numbers) == MD17_ATOMS[name]
    pytest.importorskip("ase")
    interface = pytest.importorskip("tblite.interface")
    calculator = interface.Calculator("GFN2-xTB", geometry.numbers, geometry.positions / nist.BOHR)
    calculator.set("verbosity", 0)
    assert np.abs(calculator.singlepoint().get("gradient")).max() < 1e-3


# Files


def test_resuming_gives_the_same_file(tmp_path):
    """Interrupted in the middle of a trajectory, and with half of a frame on disk."""

    @dataclass(frozen=True)
    class Interrupted(DFT):
        def advance(self, numbers, state, steps, temperature, rng, charge=0):
            if len(list(read_xyz(tmp_path / "b.xyz"))) == 4:
                raise KeyboardInterrupt
            return super().advance(numbers, state, steps, temperature, rng, charge)

    starts = [hydrogen(qm9_id="7", smiles="C#C\\[H]"), hydrogen(qm9_id="12")]
    whole, resumed = tmp_path / "a.xyz", tmp_path / "b.xyz"
    assert simulate(starts, whole, FAST, 3, workers=0, progress=False) == (6, {})
    assert simulate(starts[:1], resumed, FAST, 2, workers=0, progress=False) == (2, {})
    broken = Interrupted(interval=0.4, timestep=0.2, xc="hf", basis="sto-3g")
    with pytest.raises(KeyboardInterrupt):
        simulate(starts, resumed, broken, 3, workers=0, progress=False)
    with open(resumed, "r+b") as handle:
        handle.truncate(resumed.stat().st_size - 20)
    assert simulate(starts, resumed, FAST, 3, workers=0, progress=False) == (3, {})
    assert resumed.read_bytes() == whole.read_bytes()
    assert simulate(starts, resumed, FAST, 3, workers=0, progress=False) == (0, {})
    frames = list(read_xyz(whole))
    assert [g.info["frame"] for g in frames] == ["0", "1", "2"] * 2
    assert frames[0].info["smiles"] == "C#C\\[H]"
    assert frames[0].info["temperature"] == "300"
    assert not np.array_equal(frames[0].positions, frames[3].positions)


def test_two_workers_write_what_one_process_does(tmp_path, quick_workers):
    starts = [hydrogen(qm9_id=str(i)) for i in range(3)]
    alone, together = tmp_path / "a.xyz", tmp_path / "b.xyz"
    assert simulate(starts, alone, FAST, 2, workers=0, progress=False) == (6, {})
    assert simulate(starts, together, FAST, 1, workers=2, progress=False) == (3, {})
    assert simulate(starts, together, FAST, 2, workers=2, progress=False) == (3, {})
    frames = [
        {g.info["id"]: (g.info, g.positions.tolist()) for g in read_xyz(path)}
        for path in (alone, together)
    ]
    assert frames[0] == frames[1]


def test_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(
            [hydrogen()], tmp_path / f"{name}.xyz", FAST, 1, seed=seed, workers=0, progress=False
        )
    a, b, c = ((tmp_path / f"{name}.xyz").read_text() for name in "abc")
    assert a == b
    assert a.replace("seed=1", "seed=2") != c


def test_other_settings_and_files_are_refused(tmp_path):
    out = tmp_path / "a.xyz"
    simulate([hydrogen()], out, FAST, 1, workers=0, progress=False)
    with pytest.raises(DatasetError, match=r"other settings \(temperature: 300 there, 400 now"):
        simulate([hydrogen()], out, FAST, 2, temperature=400, workers=0, progress=False)
    with pytest.raises(DatasetError, match="of another molecule"):
        simulate(start_geometries("water"), out, FAST, 2, workers=0, progress=False)
    # A file of somebody else is not touched, complete or not.
    for text in ("1\nmine\nHe 0 0 0\n", "1\nmine\nHe 0 0"):
        out.write_text(text)
        with pytest.raises(DatasetError, match="not written by this command"):
            simulate([hydrogen()], out, FAST, 1, workers=0, progress=False)
        assert out.read_text() == text
    with pytest.raises(DatasetError, match="cannot write"):
        simulate([hydrogen()], tmp_path / "none" / "a.xyz", FAST, 1, workers=0, progress=False)


def test_bad_values(tmp_path):
    with pytest.raises(DatasetError, match=r"wter is neither .*water"):
        start_geometries("wter")
    with pytest.raises(DatasetError, match="two start geometries"):
        simulate([hydrogen(qm9_id="1")] * 2, tmp_path / "a.xyz", FAST, workers=0, progress=False)
    with pytest.raises(ConfigError, match="no multiple of timestep"):
        simulate([hydrogen()], tmp_path / "a.xyz", DFT(interval=1.0), workers=0, progress=False)
    with pytest.raises(ConfigError, match="must be positive"):
        simulate([hydrogen()], tmp_path / "a.xyz", FAST, frames=0, workers=0, progress=False)
    with pytest.raises(ConfigError, match="plain"):
        simulate([hydrogen()], tmp_path / "a.xyz.gz", FAST, workers=0, progress=False)
    assert not any(tmp_path.iterdir())


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    with pytest.raises(ConfigError, match=r"pip install 'pyscf_deqh\[md\]'"):
        XTB()


def test_a_failing_trajectory_ends_alone(tmp_path):
    lithium = Geometry(np.array([3], np.int32), np.zeros((1, 3)))
    out = tmp_path / "a.xyz"
    written, failures = simulate([lithium, hydrogen()], out, FAST, 1, workers=0, progress=False)
    assert written == 1
    assert "spin" in failures[0]
    assert [g.info["trajectory"] for g in read_xyz(out)] == ["1"]


def test_frames_of_several_molecules_stay_in_their_splits(tmp_path):
    starts = [hydrogen(id=str(i)) for i in (7, 12)]
    simulate(starts, tmp_path / "a.xyz", FAST, 2, workers=0, progress=False)
    assert sorted(g.molecule for g in read_xyz(tmp_path / "a.xyz")) == [7, 7, 12, 12]
    # Frames of one molecule are all that there is to split.
    simulate(starts[:1], tmp_path / "b.xyz", FAST, 2, workers=0, progress=False)
    assert len({g.molecule for g in read_xyz(tmp_path / "b.xyz")}) == 2
    before = (tmp_path / "b.xyz").read_text()
    with pytest.raises(DatasetError, match=r"split one by one \(qm9_id"):
        simulate(starts, tmp_path / "b.xyz", FAST, 2, workers=0, progress=False)
    assert (tmp_path / "b.xyz").read_text() == before
    # One of several goes on as it began.
    assert simulate(starts[:1], tmp_path / "a.xyz", FAST, 3, workers=0, progress=False)[0] == 1
    assert sorted(g.molecule for g in read_xyz(tmp_path / "a.xyz")) == [7, 7, 7, 12, 12]


@pytest.mark.parametrize("key", ["name", "smiles"])
def test_an_isomers_trajectory_is_not_gone_on_with(key, tmp_path):
    """Its elements are the same, in their order."""
    out = tmp_path / "a.xyz"
    simulate([hydrogen(**{key: "CCCO"})], out, FAST, 1, workers=0, progress=False)
    with pytest.raises(DatasetError, match=f"another molecule.*{key}"):
        simulate([hydrogen(**{key: "CC(C)O"})], out, FAST, 2, workers=0, progress=False)


@pytest.mark.parametrize("info", [{"spin": "2"}, {"ghosts": "1"}])
def test_open_shells_and_ghost_atoms_are_refused(info, tmp_path):
    starts = [hydrogen(id="1", **info), hydrogen(id="2")]
    _, failures = simulate(starts, tmp_path / "a.xyz", FAST, 1, workers=0, progress=False)
    assert list(failures) == [0]
    assert next(iter(info)) in failures[0]


def test_ions(tmp_path):
    """Forces are those of the ion: HeH+ is a molecule, HeH is none, nor has it an even number of
    electrons."""
    start = Geometry(
        np.array([2, 1], np.int32), np.array([[0, 0, 0], [0, 0, 1.2]]), {"charge": "1"}
    )
    engine = DFT(interval=4.0, timestep=0.2, xc="hf", basis="sto-3g")
    out = tmp_path / "a.xyz"
    assert simulate([start], out, engine, 1, 1e-3, workers=0, progress=False) == (1, {})
    (frame,) = read_xyz(out)
    assert frame.charge == 1
    start.info["charge"] = "3"
    with pytest.raises(DatasetError, match="trajectory 0 there is of another molecule"):
        simulate([start], out, engine, 2, 1e-3, workers=0, progress=False)
    # 0.93 angstrom is the minimum in this basis set.
    assert np.linalg.norm(frame.positions[0] - frame.positions[1]) < 1.19


def test_command_line(tmp_path, capsys):
    (tmp_path / "start.xyz").write_text("2\nqm9_id=7\nH 0 0 0\nH 0 0 .74\n")
    out = str(tmp_path / "a.xyz")
    command = ["md", str(tmp_path / "start.xyz"), "--out", out, "--engine", "dft", "--frames", "2",
               "--xc", "hf", "--basis", "sto-3g", "--interval", ".12",
               "--workers", "0"]  # fmt: skip
    assert main([*command, "--split", "train"]) == 0
    assert "0 frames written" in capsys.readouterr().out
    assert main([*command, "--split", "test"]) == 0
    assert "2 frames written now, 0 trajectories ended early" in capsys.readouterr().out
    assert main(["md", "water", "--out", out, "--xc", "pbe"]) == 2
    assert "engine xtb has no option --xc" in capsys.readouterr().err


def test_labels_of_trajectories(tmp_path, quick_workers):
    """Ids differ; frames of a QM9 molecule are in one split, others are split one by one."""
    frames = []
    for name, start in (("qm9", hydrogen(qm9_id="7")), ("other", hydrogen())):
        simulate([start], tmp_path / f"{name}.xyz", FAST, 4, workers=0, progress=False)
        frames += read_xyz(tmp_path / f"{name}.xyz")
    out = tmp_path / "a.db"
    settings = LabelSettings(xc="hf", conv_tol=1e-8)
    assert label(frames, out, settings, 0, progress=False) == (8, {})
    with QH9Database(out) as database:
        assert {r.meta["kind"] for r in database} == {"md"}
        assert {r.meta["temperature"] for r in database} == {300.0}
        # Above those of all QM9 molecules at equilibrium.
        assert min(database.ids()) >= 10 * 133885 + 2
    store = GraphStore(tmp_path, "none", "def2-svp")
    sizes = [
        len(HamiltonianDataset([out], split, store, workers=1, progress=False))
        for split in ("all", "train", "valid", "test")
    ]
    assert sizes == [8, 3, 1, 4]
