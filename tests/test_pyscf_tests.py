"""PySCF's own tests with this guess as default: the command, on made-up tests."""

import json
import tarfile

import pyscf

from pyscf_deqh.benchmark import pyscf_tests
from pyscf_deqh.benchmark.__main__ import main
from pyscf_deqh.benchmark.pyscf_tests import differences, run_file

TESTS = """
import pathlib
import unittest
from pyscf import gto, scf

class KnownValues(unittest.TestCase):
    def test_energy(self):
        mol = gto.M(atom="O 0 0 0; H 0 0.76 0.59; H 0 -0.76 0.59", basis="def2-svp", verbose=0)
        self.assertAlmostEqual(scf.RHF(mol).kernel(), -75.9609, 3)

    def test_default(self):
        self.assertEqual(scf.hf.SCF.init_guess, "minao")

    def test_file(self):
        self.assertEqual(pathlib.Path("value.txt").read_text(), "7")
        pathlib.Path("value.txt").write_text("8")

    @unittest.skip("always")
    def test_skipped(self):
        pass
"""


def test_what_differs_is_listed(tmp_path, capsys):
    folder = tmp_path / "sources" / "pyscf" / "scf" / "test"
    folder.mkdir(parents=True)
    (folder / "test_made_up.py").write_text(TESTS)
    (folder / "value.txt").write_text("7")
    out = tmp_path / "rows.json"
    command = ["pyscf-tests", "--source", str(tmp_path / "sources"), "--json", str(out)]
    assert main(command) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["file"] == "scf/test_made_up.py"
    assert [test for test, *_ in differences(row)] == ["KnownValues.test_default"]
    assert (
        row["deqh"]["KnownValues.test_energy"] == row["minao"]["KnownValues.test_file"] == "passed"
    )
    assert row["deqh"]["KnownValues.test_skipped"] == "skipped"
    printed = capsys.readouterr().out
    assert "| scf | 1 | 4 | 0 | 1 |" in printed
    assert "- scf/test_made_up.py, KnownValues.test_default: passed → failure" in printed
    assert main(command) == 0  # goes on after its rows: nothing is left
    assert main([*command[:1], "--source", str(folder), *command[3:]]) == 2
    assert "source release of PySCF" in capsys.readouterr().err


def test_the_release_is_fetched_once(tmp_path, monkeypatch, capsys):
    name, made = f"pyscf-{pyscf.__version__}", tmp_path / "made"
    folder = made / name / "pyscf" / "scf" / "test"
    folder.mkdir(parents=True)
    (folder / "test_made_up.py").write_text("def test():\n    assert True\n")
    asked = []

    def fetch(url, target):
        asked.append(url)
        with tarfile.open(target, "w:gz") as archive:
            archive.add(made / name, name)

    monkeypatch.setattr(pyscf_tests, "fetch", fetch)
    monkeypatch.setattr(pyscf_tests, "run_file", lambda *args: {"test": "passed"})
    rows = tmp_path / "rows"
    rows.mkdir()
    for out in ("a.json", "b.json"):
        assert main(["pyscf-tests", "--folders", "scf", "--json", str(rows / out)]) == 0
        assert "No test differs." in capsys.readouterr().out
    assert asked == [
        f"https://github.com/pyscf/pyscf/archive/refs/tags/v{pyscf.__version__}.tar.gz"
    ]
    assert sorted(p.name for p in rows.iterdir()) == ["a.json", "b.json", name, f"{name}.tar.gz"]


def test_files_that_do_not_end(tmp_path):
    (tmp_path / "test_long.py").write_text("import time\n\ndef test():\n    time.sleep(60)\n")
    assert run_file(tmp_path / "test_long.py", "minao", 1.0) == {"(file)": "took more than 1 s"}
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    (outcome,) = run_file(tmp_path / "test_broken.py", "minao", 60.0).values()
    assert outcome.startswith("error: ")
