"""Do something to a module as soon as it is imported, without importing it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class AfterImport:
    """A finder of the import system that finds nothing by itself.

    It lets the finders after it find one module, and calls back once that has been executed. It
    stays, for a first import that fails and for ``importlib.reload``.

    Args:
        name: of the module.
        callback: called with the module, under its import lock, perhaps more than once.
    """

    def __init__(self, name: str, callback: Callable[[ModuleType], None]):
        self.name, self.callback = name, callback

    def install(self) -> None:
        """Wait for the module; if it has been imported already, call back at once."""
        sys.meta_path.insert(0, self)
        module = sys.modules.get(self.name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            self._call_back(module)

    def _call_back(self, module: ModuleType) -> None:
        try:
            self.callback(module)
        except Exception as error:  # the import is the user's, and has succeeded
            warnings.warn(f"{module.__name__} was left as it is: {error!r}", stacklevel=2)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the import system calls."""
        if fullname != self.name or self not in sys.meta_path:
            return None
        # Only those after this one: no recursion, and no state that threads would share.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec and find_spec(fullname, path, target)
            if spec is not None:
                self._watch(spec)
                return spec
        return None

    def _watch(self, spec: ModuleSpec) -> None:
        loader = spec.loader

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # as it was before
            loader.exec_module(module)  # type: ignore[union-attr]
            if module.__name__ == self.name:
                self._call_back(module)

        # A loader that is a class, or has no place for attributes, loads no package from a disk.
        if hasattr(loader, "__dict__") and not isinstance(loader, type):
            loader.exec_module = exec_module  # type: ignore[union-attr, method-assign]
