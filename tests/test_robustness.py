"""Random SCFs: the same each time, resumed, and a table that hides nothing."""

import json

import numpy as np
import pytest
from pyscf import scf

from pyscf_deqh.benchmark import robustness
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.scf_runs import Method

pytestmark = pytest.mark.usefixtures("coarse_grids")


def test_cases_are_the_same_each_time_and_can_be_run():
    assert robustness.cases(30) == robustness.cases(60)[:30]
    assert robustness.cases(5, seed=1) != robustness.cases(5)
    for case in robustness.cases(60):
        mf = case.scf()
        assert mf.mol.nelectron >= max(mf.mol.spin, 2)
        assert mf.mol.nao <= 180 or case.basis == "sto-3g" or case.family == "heavy"
        assert mf.init_guess == case.init
        assert mf.mol.basis == case.basis
        assert mf.mol.charge == case.charge
    names = {case.family for case in robustness.cases(1000)}
    assert names == robustness.molecules().keys()


def test_every_bundled_molecule_has_a_basis_set_and_its_electrons_their_spin():
    """PySCF, which counts electrons and functions itself."""
    families = robustness.molecules()
    assert sum(map(len, families.values())) > 500
    assert {"mb16-43", "f-block", "rc21", "transition-states", "cages"} <= families.keys()
    for geometry in (g for family in families.values() for g in family.values()):
        ghosts = geometry.whole_number("ghosts") or 0
        real = geometry.numbers[: len(geometry.numbers) - ghosts]
        electrons = int(real.sum()) - (geometry.whole_number("charge") or 0)
        unpaired = geometry.whole_number("spin")  # as few as possible where it is not said
        assert unpaired is None or (electrons - unpaired) % 2 == 0
        assert 0 < robustness.n_orbitals(geometry.numbers, "def2-svp") < np.inf
    for family, chosen in (("f-block", "LaCl3"), ("mb16-43", "01"), ("noble-gases", "XeF4")):
        geometry = families[family][chosen]
        mol = Method().molecule(geometry)
        expected = robustness.n_orbitals(geometry.numbers, "def2-svp")
        assert mol.nao == expected
        assert mol.spin == (geometry.whole_number("spin") or 0)


def small(n, seed=0):
    """Hydrogen fluoride and water."""
    common = ("hf", "def2-svp", 0, 0, 1.0, True, 1, "minao")
    return [robustness.Case("g2", name, *common) for name in ("HF", "H2O")[:n]]


def test_command_goes_on_and_lists_what_is_worse(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robustness, "cases", small)
    out = tmp_path / "rows.json"
    assert main(["robustness", "--n", "1", "--json", str(out)]) == 0
    first = json.loads(out.read_text())["rows"]
    assert main(["robustness", "--n", "2", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[0] == first[0]
    assert len(rows) == 2
    for row in rows:
        assert row["deqh"]["builds"] <= row["corrected"]["builds"] < row["plain"]["builds"]
        assert row["corrected"]["energy"] == pytest.approx(row["plain"]["energy"], abs=1e-8)
        assert not row["plain"]["accepted"]
    text = capsys.readouterr().out
    assert "| corrected |" in text
    assert "\n- corrected" not in text
    assert "\n- deqh" not in text
    assert text.count("Measured with:") == 2


def test_verdicts_by_hand():
    plain = {"converged": True, "energy": -1.0, "builds": 9}
    row = {"plain": plain, "corrected": plain | {"energy": -0.997, "builds": 11}}
    assert robustness.verdicts(row, "corrected") == [
        "3.000 mEh higher", "11 builds instead of 9"
    ]  # fmt: skip
    row["corrected"] = plain | {"energy": -1.1, "builds": 10}
    assert not robustness.verdicts(row, "corrected")
    row["corrected"] = plain | {"converged": False}
    assert robustness.verdicts(row, "corrected") == ["not converged"]
    row["corrected"] = plain | {"energy": -0.997, "stable": False}
    assert robustness.verdicts(row, "corrected") == ["3.000 mEh higher, not stable"]
    for reason, worse in (("PySCF breaks the spin symmetry", 0), ("NumericalError: NaN", 1)):
        row["deqh"] = plain | {"fallback": reason}
        assert len(robustness.verdicts(row, "deqh")) == worse
        assert robustness.is_good(row) == (not worse)


@pytest.mark.parametrize(
    ("end", "good"),
    [({}, True), ({"stable": False}, True), ({"stable": True}, False), ({"stable": None}, False),
     ({"stable": False, "builds": 11}, False)],
)  # fmt: skip
def test_a_saddle_point_above_is_explained(end, good):
    plain = {"converged": True, "energy": -1.0, "builds": 9}
    above = plain | ({"energy": -0.997} if end else {}) | end
    assert robustness.is_good({"plain": plain, "corrected": plain, "deqh": above}) == good


def test_an_end_above_is_looked_at_for_stability():
    """Lithium hydride's ground state is a minimum, one with both electrons higher is not."""
    mf = robustness.Case("g2", "LiH", "hf", "def2-svp", 0, 0, 1.0, True, 1, "minao").scf()
    mf.kernel()
    assert robustness._is_stable(mf) is True
    excited = scf.UHF(mf.mol)
    excited.verbose = 0
    occupation = np.zeros((2, mf.mol.nao))
    occupation[:, [0, 3]] = 1
    excited = scf.addons.mom_occ(excited, np.stack([mf.mo_coeff] * 2), occupation)
    excited.kernel(excited.make_rdm1(np.stack([mf.mo_coeff] * 2), occupation))
    assert excited.e_tot > mf.e_tot + 0.1
    assert robustness._is_stable(excited) is False
    assert robustness._is_stable(None) is None


def test_slow_ones_are_timed_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robustness, "cases", small)
    out = tmp_path / "rows.json"
    assert main(["robustness", "--n", "1", "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    (row,) = content["rows"]
    assert not row["worth"]  # the cost rule leaves it alone
    assert not robustness.is_slower(row)
    row["worth"], row["deqh"]["seconds"] = True, 1e6
    assert robustness.is_slower(row)
    out.write_text(json.dumps(content))
    picture = tmp_path / "builds.png"
    options = ["--n", "1", "--json", str(out), "--retime", "--plot", str(picture)]
    assert main(["robustness", *options]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert 0 < row["retimed"]["deqh"] < 1e6
    assert "1 cases that the cost rule does not leave alone" in capsys.readouterr().out
    assert picture.stat().st_size > 1000


def test_other_files_are_refused(tmp_path, capsys):
    out = tmp_path / "rows.json"
    out.write_text('{"rows": [{"case": {"name": "water"}}]}')
    assert main(["robustness", "--json", str(out)]) == 2
    assert "holds no rows of this command" in capsys.readouterr().err


def test_an_error_is_a_verdict_and_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robustness, "cases", small)
    original = robustness.deqh_guess

    def fails_for_water(mf, *args, **options):
        original(mf, *args, **options)
        if mf.mol.natm == 3:
            mf.kernel = lambda *a: (_ for _ in ()).throw(ValueError("no such thing"))
        return mf

    monkeypatch.setattr(robustness, "deqh_guess", fails_for_water)
    assert main(["robustness", "--n", "2", "--json", str(tmp_path / "rows.json")]) == 1
    text = capsys.readouterr().out
    assert "\n1 of 2 cases are worse" in text
    assert "H2O" in text
    assert "ValueError: no such thing" in text
    assert "| 1 of 2 | 1 |" in text


def test_rows_of_another_model_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(robustness, "cases", small)
    out = str(tmp_path / "rows.json")
    assert main(["robustness", "--n", "1", "--json", out]) == 0
    other = ["--model", "b3lyp-def2svp-equilibrium"]
    assert main(["robustness", "--n", "1", "--json", out, *other]) == 2
    assert "rows.json was made with weights " in capsys.readouterr().err
