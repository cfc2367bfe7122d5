"""Results kept one by one, so that an interrupted experiment goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import write_json


class ResultCache:
    """A JSON file of results by key, made with one group of settings.

    Args:
        path: the file; made with its settings if absent.
        settings: all that the results depend on; anything that JSON can hold.

    Raises:
        ConfigError: the file was made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        wanted = json.loads(json.dumps(settings, default=str))
        if path.is_file():
            content = json.loads(path.read_text())
            found, self._results = content["settings"], content["results"]
            if found != wanted:
                names = sorted(k for k in found | wanted if found.get(k) != wanted.get(k))
                raise ConfigError(
                    f"{path} was made with other settings ({', '.join(names)}): name another "
                    "--out, or delete it"
                )
        else:
            self._results = {}
            write_json(path, {"settings": wanted, "results": {}})
        self._settings = wanted

    def __call__(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of that key; made, and written, if there is none yet."""
        if key not in self._results:
            self._results[key] = make()
            write_json(self.path, {"settings": self._settings, "results": self._results})
        return self._results[key]
