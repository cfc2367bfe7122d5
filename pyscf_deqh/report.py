"""What happened in a guess, and at the points of a scan."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of a guess by stage.

    Attributes:
        start: overlap, fitted integrals and reference; without a network all of the start.
        integrals: PySCF's own, made first so that there is room for them in its SCF.
        network: its fixed point.
        cycles: density-fitted ones.
        density: diagonalization and density matrix.
        total: all of the guess.
    """

    start: float = 0.0
    integrals: float = 0.0
    network: float = 0.0
    cycles: float = 0.0
    density: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Report:
    """What a guess did; on an SCF object as ``mf.deqh_report``, None before its first guess.

    Attributes:
        start: where the cycles began, ``network`` for example.
        model: name or folder of the network's model; None without one.
        device: where network and fitted Fock matrices were computed.
        iterations, residual: of the network's fixed point; the residual is relative.
        fitted_gradients: norm of the orbital gradient (hartree) in each density-fitted cycle.
        fitted_builds: fitted Fock matrices, that of the start included.
        seconds: by stage.
        states: energies (hartree) of all states that were found, in fitted matrices, if the lowest
            was looked for.
        notes: what was done differently from what was asked, one sentence each.
        fallback: why minao's density was used instead; None where it was not.
    """

    start: str
    model: str | None = None
    device: str | None = None
    iterations: int = 0
    residual: float = float("nan")
    fitted_gradients: tuple[float, ...] = ()
    fitted_builds: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    states: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    fallback: str | None = None

    def __str__(self) -> str:
        """One line, as PySCF's log has it at verbose 4."""
        seconds = self.seconds
        origin = self.start
        if self.model is not None:
            origin = (
                f"model {self.model}: iterations {self.iterations}, residual {self.residual:.1e}"
            )
        text = (
            f"{origin}; {len(self.fitted_gradients)} density-fitted cycles on {self.device}; "
            f"{seconds.total:.2f} s (overlap and reference {seconds.start:.2f}, PySCF's "
            f"integrals {seconds.integrals:.2f}, network {seconds.network:.2f}, cycles "
            f"{seconds.cycles:.2f}, density {seconds.density:.2f})"
        )
        if self.fallback is not None:
            text = f"minao's density, because {self.fallback}; {text}"
        return text


@dataclass
class Scan:
    """What happened at the points of a scanner so far; on it and on the SCF object that it was made
    of as ``mf.deqh_scan``. Geometry optimizations, dynamics and finite differences use one.

    Attributes:
        points: SCFs.
        builds: full Fock matrices of PySCF's; those of ``newton()`` are not counted.
        seconds: of these SCFs, their guesses included.
        starts: how many points began where.
        not_converged: numbers of points, from 1 on, whose SCF did not converge.
        switched: numbers of points that are in another state than the one before, where no atom
            has moved by more than 1 bohr.
    """

    points: int = 0
    builds: int = 0
    seconds: float = 0.0
    starts: dict[str, int] = field(default_factory=dict)
    not_converged: list[int] = field(default_factory=list)
    switched: list[int] = field(default_factory=list)

    def add(self, start: str, builds: int, seconds: float, converged: bool) -> None:
        """One more point."""
        self.points += 1
        self.builds += builds
        self.seconds += seconds
        self.starts[start] = self.starts.get(start, 0) + 1
        if not converged:
            self.not_converged.append(self.points)

    def __str__(self) -> str:
        """One line."""
        starts = ", ".join(f"{name} {count}" for name, count in self.starts.items())
        each = f" ({self.builds / self.points:.1f} a point)" if self.points else ""
        text = (
            f"{self.points} points, {self.builds} full Fock matrices{each}, "
            f"{self.seconds:.1f} s; starts: {starts or 'none'}"
        )
        if self.not_converged:
            text += f"; not converged: {_numbers(self.not_converged)}"
        if self.switched:
            text += f"; another state than before: {_numbers(self.switched)}"
        return text


def _numbers(points: list[int]) -> str:
    shown = ", ".join(map(str, points[:10]))
    return f"{shown} … ({len(points)} in all)" if len(points) > 10 else shown
