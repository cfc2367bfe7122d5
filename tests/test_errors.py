"""Messages for users who lack an optional package."""

import subprocess
import sys

import pytest

from pyscf_deqh.errors import missing_extra

_WITHOUT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "jsonargparse"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Block())
from pyscf_deqh.{package}.__main__ import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    ("package", "arguments", "missing"),
    [
        ("train", [], "jsonargparse"),
        ("train", ["export", "a", "b"], "lightning"),
        ("experiments", ["fig5"], "lightning"),
    ],
)
def test_commands_name_the_extra(package, arguments, missing, tmp_path):
    code = _WITHOUT.format(package=package, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert f"{missing} is not installed: pip install 'pyscf_deqh[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_missing_modules_are_not_hidden():
    with pytest.raises(ModuleNotFoundError):
        missing_extra(ModuleNotFoundError("no", name="pyscf.nothing"))
