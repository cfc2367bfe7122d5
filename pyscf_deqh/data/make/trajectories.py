"""Trajectories in an extended-xyz file, which is its own restart.

A frame holds positions and velocities, and the next one is computed from them as they are written,
with a random stream of its own. So a run that is killed at any moment loses at most the frames in
work, and the same command goes on to the file that an uninterrupted run would have made.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from pyscf.data import elements
from tqdm import tqdm

from ...errors import ConfigError, DatasetError
from ...files import cannot_write, differences
from ...tasks import Failure, Task, outcomes
from ..geometry import read_geometries
from ..xyz import Geometry, parse_comment, places, read_xyz
from .dynamics import Engine, State, centred, thermal_velocities
from .frames import complete_frames, foreign_file

MD17 = Path(__file__).parent / "molecules" / "md17.xyz"

_COLUMNS = "species:S:1:pos:R:3:velo:R:3"
# Frames of one trajectory have successive ids. Equilibrium geometries of QM9, which may lie in the
# same database, have ids below the first of these.
_IDS_PER_TRAJECTORY = 10_000_000


def start_geometries(source: str | Path) -> list[Geometry]:
    """Geometries of a file, a folder or a database, or the bundled MD17 molecule of that name."""
    if Path(source).exists():
        return read_geometries(source)
    bundled = {geometry.info["name"]: geometry for geometry in read_xyz(MD17)}
    if str(source) not in bundled:
        raise DatasetError(
            f"{source} is neither a file or folder nor a bundled molecule ({', '.join(bundled)})"
        )
    return [bundled[str(source)]]


def simulate(
    starts: Sequence[Geometry],
    out: str | Path,
    engine: Engine,
    frames: int = 100,
    temperature: float = 300.0,
    seed: int = 0,
    progress: bool = True,
    workers: int | None = None,
    scheduler: str | None = None,
) -> tuple[int, dict[int, str]]:
    """Write the frames of one trajectory from each start that ``out`` does not hold yet.

    A trajectory has the number of its molecule in QM9, where the comment gives one, else that of
    its place in the file (or among the starts). Velocities at the start are thermal.

    Args:
        starts: molecules, closed shells, positions in angstrom.
        out: ``.xyz`` or ``.extxyz`` file; made if absent, else resumed.
        engine: forces, integrator and time between frames.
        frames: frames of each trajectory; more than in an earlier run continue its trajectories.
        temperature: in kelvin.
        seed: of the velocities and the thermostat.
        progress: show a progress bar.
        workers, scheduler: where to compute, see :func:`pyscf_deqh.tasks.outcomes`; trajectories
            run side by side, the frames of each one after the other.

    Returns:
        The number of frames written by this call, and by number of trajectory the reasons of those
        that ended early.

    Raises:
        ConfigError: a value out of range.
        DatasetError: ``out`` comes from other settings or molecules, or cannot be written.
    """
    out = Path(out)
    if out.suffix not in (".xyz", ".extxyz"):
        raise ConfigError(f"{out}: frames are written to a plain .xyz or .extxyz file")
    if frames < 1 or not temperature > 0 or not engine.interval > 0:
        raise ConfigError("frames, temperature and interval must be positive")
    plan = _Plan(engine, temperature, seed)
    trajectories = _numbered(starts)
    if len(trajectories) > 1:  # frames of several molecules stay in the splits of these
        trajectories = {n: _with_molecule(start) for n, start in trajectories.items()}
    written = 0
    failures: dict[int, str] = {}
    try:
        last = _resume(out, plan.made_by, trajectories)
        present = sum(min(last[n].number + 1, frames) for n in trajectories if n in last)
        tasks: deque[Task[int]] = deque()

        def ask_for(number: int, following: _Frame | None, start: Geometry) -> None:
            """The next frame of a trajectory, before any of one that has not begun."""
            if following is None or following.number + 1 < frames:
                tasks.appendleft((number, (plan, start, number, following)))

        for number, start in reversed(trajectories.items()):
            ask_for(number, last.get(number), start)
        bar = tqdm(total=frames * len(trajectories), initial=present, desc="dynamics",
                   unit="frame", disable=not progress)  # fmt: skip
        with bar, open(out, "a", encoding="utf-8") as handle:
            for number, result in outcomes(_next_frame, tasks, workers, scheduler):
                if isinstance(result, Failure):
                    failures[number] = result.reason
                    bar.write(f"trajectory {number}: {result.reason}")
                    continue
                lines = result.lines()
                handle.write("\n".join([str(len(result.symbols)), *lines, ""]))
                handle.flush()
                # What follows starts from the digits in the file, as it would after a restart.
                ask_for(number, _Frame.parse(lines), trajectories[number])
                written += 1
                bar.update()
    except OSError as error:
        raise DatasetError(cannot_write(out, error)) from error
    return written, failures


@dataclass
class _Frame:
    """A frame as the file has it: comment, chemical symbols, positions and velocities."""

    info: dict[str, str]
    symbols: list[str]
    state: State

    @classmethod
    def parse(cls, lines: Sequence[str]) -> _Frame:
        rows = [line.split() for line in lines[1:]]
        values = np.array([[float(x) for x in row[1:7]] for row in rows])
        state = values[:, :3], values[:, 3:]
        return cls(parse_comment(lines[0]), [row[0] for row in rows], state)

    @property
    def number(self) -> int:
        return int(self.info["frame"])

    def lines(self) -> list[str]:
        """Comment and atoms, without the number of atoms."""
        comment = " ".join(f"{key}={shlex.quote(value)}" for key, value in self.info.items())
        atoms = [
            f"{symbol:2s}" + "".join(f" {x:13.8f}" for x in r) + "".join(f" {x:13.10f}" for x in v)
            for symbol, r, v in zip(self.symbols, *self.state, strict=True)
        ]
        return [f"Properties={_COLUMNS} {comment}", *atoms]


@dataclass
class _Plan:
    """How every trajectory of a file is made."""

    engine: Engine
    temperature: float
    seed: int

    def __post_init__(self) -> None:
        self.between = self._steps("interval")
        self.equilibration = self._steps("equilibration")
        origin = {"kind": "md", "temperature": self.temperature, "engine": self.engine.name,
                  "seed": self.seed, **asdict(self.engine)}  # fmt: skip
        self.made_by = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in origin.items()}

    def _steps(self, name: str) -> int:
        time, timestep = getattr(self.engine, name), self.engine.timestep
        steps = round(time / timestep) if timestep > 0 else -1
        if steps < 0 or abs(steps * timestep - time) > 1e-6 * timestep:
            raise ConfigError(f"{name} ({time:g} fs) is no multiple of timestep ({timestep:g} fs)")
        return steps

    def frame(self, start: Geometry, trajectory: int, last: _Frame | None) -> _Frame:
        """The frame that follows ``last``; the first one if that is None."""
        start.check_closed_shell()
        number = last.number + 1 if last else 0
        rng = np.random.default_rng([self.seed, trajectory, number])
        if last:
            state, steps = last.state, self.between
        else:
            velocities = thermal_velocities(start.numbers, self.temperature, rng)
            state, steps = (start.positions, velocities), self.equilibration + self.between
        state = self.engine.advance(
            start.numbers, state, steps, self.temperature, rng, start.charge
        )
        if not np.isfinite(state).all():
            raise ArithmeticError(f"the trajectory diverged before frame {number}")
        info = {
            "id": str(_IDS_PER_TRAJECTORY * (trajectory + 1) + number),
            **_of_molecule(start.info),
            "trajectory": str(trajectory),
            "frame": str(number),
            **self.made_by,
        }
        return _Frame(info, _symbols(start), centred(start.numbers, state))


def _next_frame(plan: _Plan, start: Geometry, trajectory: int, last: _Frame | None) -> _Frame:
    return plan.frame(start, trajectory, last)


def _numbered(starts: Sequence[Geometry]) -> dict[int, Geometry]:
    numbered: dict[int, Geometry] = {}
    for place, geometry in zip(places(starts), starts, strict=True):
        number = place if geometry.qm9_id is None else geometry.qm9_id
        if number in numbered:
            raise DatasetError(f"two start geometries are of molecule {number}: keep one of them")
        numbered[number] = geometry
    return numbered


def _with_molecule(start: Geometry) -> Geometry:
    """With what splits know the molecule by: the ``id`` of a frame is one of its own."""
    if start.molecule is None:
        return start
    return replace(start, info={**start.info, "qm9_id": str(start.molecule)})


def _last_frames(path: Path) -> tuple[int, dict[int, _Frame]]:
    """Where the last complete frame ends, and the last complete frame of each trajectory."""
    end, last = 0, {}
    try:
        for end, lines in complete_frames(path, _COLUMNS):  # noqa: B007
            last[int(lines[0].split(" trajectory=")[1].split()[0])] = lines
        return end, {number: _Frame.parse(lines) for number, lines in last.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise foreign_file(path, end, error) from error


def _resume(
    path: Path, made_by: dict[str, str], trajectories: dict[int, Geometry]
) -> dict[int, _Frame]:
    """The last frame of each trajectory; a frame that was being written is cut off. Starts know
    their molecule where these do."""
    if not path.exists():
        return {}
    end, last = _last_frames(path)
    for number, frame in last.items():
        # A frame says what it is, too.
        if changed := differences({key: frame.info.get(key) for key in made_by}, made_by):
            raise DatasetError(
                f"{path} was made with other settings ({', '.join(changed)}); "
                "write to another file or repeat its settings"
            )
        start = trajectories.get(number)
        if start and "qm9_id" in frame.info:  # it began beside others
            start = trajectories[number] = _with_molecule(start)
        if start and frame.symbols != _symbols(start):
            raise DatasetError(f"{path}: trajectory {number} there is of another molecule")
        if start and (changed := differences(_of_molecule(frame.info), _of_molecule(start.info))):
            raise DatasetError(
                f"{path}: trajectory {number} there is of another molecule, or began alone, with "
                f"frames that are split one by one ({', '.join(changed)}); write to another file"
            )
    os.truncate(path, end)
    return last


def _of_molecule(info: dict[str, str]) -> dict[str, str]:
    """What a comment line says of the molecule, for all of its frames."""
    return {key: info[key] for key in ("name", "qm9_id", "smiles", "charge") if key in info}


def _symbols(geometry: Geometry) -> list[str]:
    return [elements.ELEMENTS[z] for z in geometry.numbers]
