"""The public interface: names and signatures, written down so that none changes unseen."""

import dataclasses
import inspect
from pathlib import Path

import pyscf_deqh
from pyscf_deqh import testing
from pyscf_deqh.nn import backbones, deqh

WRITTEN = Path(__file__).with_name("api.txt")


def described(name, value):
    """Lines of a function, or of a class with what is public in it."""
    if isinstance(value, tuple):
        yield f"{name}: {', '.join(member.__name__ for member in value)}"
        return
    if not inspect.isclass(value):
        yield f"{name}{inspect.signature(value)}"
        return
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    yield f"class {name}({bases})"
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield f"    {field.name}: {field.type}"
    for member, found in sorted(vars(value).items()):
        if member.startswith("_"):
            continue
        if isinstance(found, property):
            yield f"    {member} (property)"
        elif inspect.isfunction(found):
            yield f"    {member}{inspect.signature(found)}"


def interface():
    names = {name: getattr(pyscf_deqh, name) for name in pyscf_deqh.__all__}
    names |= {"nn.backbones.register": backbones.register, "nn.deqh.Backbone": deqh.Backbone,
              "testing.CHECKS": testing.CHECKS}  # fmt: skip
    for name, value in vars(testing).items():
        if getattr(value, "__module__", "") == testing.__name__ and not name.startswith("_"):
            names[f"testing.{name}"] = value
    return "\n".join(line for item in sorted(names.items()) for line in described(*item)) + "\n"


def test_the_interface_is_the_one_that_is_written_down():
    """After a change on purpose: ``python tests/test_api.py``, and a line in the changelog."""
    assert interface() == WRITTEN.read_text()


if __name__ == "__main__":
    WRITTEN.write_text(interface())
