"""The most memory that a process has held over a while, as Linux counts it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5): of what is written to clear_refs


class PeakMemory:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._before: float | None = None
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
            self._before = _megabytes()

    def __call__(self) -> float | None:
        """Most resident memory since, less what there was before, in MB; None where it is not
        known."""
        now = _megabytes()
        return None if now is None or self._before is None else now - self._before


def _megabytes() -> float | None:
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kilobytes[0] * 1024 / 1e6 if kilobytes else None
