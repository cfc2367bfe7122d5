"""The most memory that a process has held over a while, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5): of what is written to clear_refs


def forget_peak() -> bool:
    """Count anew from here; whether that is possible."""
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def peak_memory() -> float | None:
    """Most resident memory since :func:`forget_peak`, in MB; None where it is not known."""
    try:
        lines = (_PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kilobytes[0] * 1024 / 1e6 if kilobytes else None
