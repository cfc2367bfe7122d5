"""Direct minimization: a way down where DIIS goes nowhere.

Quasi-Newton steps along rotations of occupied into virtual orbitals (geometric direct minimization;
Van Voorhis and Head-Gordon, Mol. Phys. 100, 1713, 2002). DIIS looks for any density whose
commutator with its Fock matrix vanishes, and on a flat way past a saddle point it wanders; these
steps follow the slope of the energy. They take more Fock matrices, and are for cheap ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Rotation = list[np.ndarray]  # (n_virtual, n_occupied) of each spin

# Fock matrices that a way down may take; most ways take 20 to 60.
MAX_DESCENT = 150

_HISTORY = 10
# Least curvature of the preconditioner, hartree, and the longest step, norm of a rotation.
_SOFTEST, _LONGEST = 0.05, 0.4
# A step ends where the slope along it has changed to within this part of the first one; what it may
# grow by at once, and how many lengths are tried.
_FLAT, _GROWTH, _LENGTHS = 0.7, 4.0, 4
# Cosine of a step and the change of the gradient below which there is nothing to learn.
_CURVED = 1e-4


def _dot(a: Rotation, b: Rotation) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def _times(a: float, x: Rotation) -> Rotation:
    return [a * part for part in x]


def _plus(x: Rotation, a: float, y: Rotation) -> Rotation:
    return [p + a * q for p, q in zip(x, y, strict=True)]


def occupied_first(
    coefficients: Sequence[np.ndarray], occupations: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Orbitals (nao, n) and occupations (n,) by spin in this order, and the numbers of occupied
    ones."""
    order = [np.argsort(o == 0, kind="stable") for o in occupations]
    columns = [c[:, i] for c, i in zip(coefficients, order, strict=True)]
    filled = [o[i] for o, i in zip(occupations, order, strict=True)]
    return columns, filled, [int((o > 0).sum()) for o in filled]


def rotated(coefficients: np.ndarray, occupied: int, rotation: np.ndarray) -> np.ndarray:
    """Orbitals C exp(K), K = [[0, -X^T], [X, 0]].

    Args:
        coefficients: (nao, n), the occupied ones first.
        occupied: their number.
        rotation: X, (n - occupied, occupied).
    """
    if not rotation.size:
        return coefficients
    u, angles, vt = np.linalg.svd(rotation, full_matrices=False)
    filled, empty = coefficients[:, :occupied], coefficients[:, occupied:]
    turned, into = filled @ vt.T, empty @ u
    less, sine = np.cos(angles) - 1, np.sin(angles)
    return np.hstack([
        filled + (turned * less + into * sine) @ vt,
        empty + (into * less - turned * sine) @ u.T,
    ])  # fmt: skip


@dataclass
class Point:
    """Orbitals on the way.

    Attributes:
        coefficients: (nao, n) of each spin, the occupied ones first.
        occupied: their numbers.
        focks: (nao, nao) of each spin, hartree.
        gradient: occupied-virtual elements of these, hartree.
    """

    coefficients: list[np.ndarray]
    occupied: list[int]
    focks: list[np.ndarray]

    def __post_init__(self) -> None:
        pairs = zip(self.coefficients, self.focks, strict=True)
        self._blocks = [c.T @ f @ c for c, f in pairs]
        blocks = zip(self._blocks, self.occupied, strict=True)
        self.gradient: Rotation = [block[k:, :k] for block, k in blocks]

    def canonical(self) -> tuple[Point, Rotation, Callable[[Rotation], Rotation]]:
        """The same with orbitals that diagonalize the Fock matrices among the occupied and among
        the virtual ones, differences of their energies, and how rotations change with them."""
        coefficients, differences, turns = [], [], []
        for c, block, k in zip(self.coefficients, self._blocks, self.occupied, strict=True):
            low, filled = np.linalg.eigh(block[:k, :k])
            high, empty = np.linalg.eigh(block[k:, k:])
            coefficients.append(np.hstack([c[:, :k] @ filled, c[:, k:] @ empty]))
            differences.append(high[:, None] - low)
            turns.append((empty, filled))

        def turn(x: Rotation) -> Rotation:
            return [v.T @ part @ o for part, (v, o) in zip(x, turns, strict=True)]

        return Point(coefficients, self.occupied, self.focks), differences, turn

    def hamiltonians(self, overlap: np.ndarray) -> list[np.ndarray]:
        """Fock matrices whose orbitals are these: without what mixes occupied and virtual ones."""
        found = []
        for c, f, g, k in zip(
            self.coefficients, self.focks, self.gradient, self.occupied, strict=True
        ):
            mixing = overlap @ c[:, k:] @ g @ c[:, :k].T @ overlap
            found.append(f - mixing - mixing.T)
        return found


class _Memory:
    """Earlier steps and what they changed of the gradient, in the present orbitals (L-BFGS; Liu and
    Nocedal, Math. Program. 45, 503, 1989)."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Rotation, Rotation]] = []

    def turn(self, turn: Callable[[Rotation], Rotation]) -> None:
        self._pairs = [(turn(s), turn(y)) for s, y in self._pairs]

    def learn(self, step: Rotation, change: Rotation) -> None:
        least = _CURVED * np.sqrt(_dot(step, step) * _dot(change, change))
        if _dot(step, change) > least:
            self._pairs = [*self._pairs[1 - _HISTORY :], (step, change)]

    def forget(self) -> None:
        self._pairs = []

    def direction(self, gradient: Rotation, curvatures: Rotation) -> Rotation:
        """Minus the gradient over the curvature, as far as it is known."""
        q, weights = gradient, []
        for s, y in reversed(self._pairs):
            weights.append(_dot(s, q) / _dot(s, y))
            q = _plus(q, -weights[-1], y)
        r = [part / d for part, d in zip(q, curvatures, strict=True)]
        if self._pairs:
            s, y = self._pairs[-1]
            weighted = [part / d for part, d in zip(y, curvatures, strict=True)]
            r = _times(_dot(s, y) / _dot(y, weighted), r)
        for (s, y), weight in zip(self._pairs, reversed(weights), strict=True):
            r = _plus(r, weight - _dot(y, r) / _dot(s, y), s)
        return _times(-1.0, r)


def descend(
    build: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    start: Point,
    norm: Callable[[Rotation], float],
    max_builds: int,
    tolerance: float,
) -> tuple[Point, list[float]]:
    """Steps down from orbitals, until the gradient is small.

    Args:
        build: Fock matrices (nao, nao) by spin of orbitals (nao, n) by spin, the occupied ones
            first; hartree.
        start: where to begin.
        norm: of a gradient, in the unit of ``tolerance``.
        max_builds: limit of Fock matrices, which the last step may exceed by a few.
        tolerance: stop once the norm of the gradient is below this.

    Returns:
        The point of the smallest gradient, and its norm at each Fock matrix.
    """
    point = best = start
    least = norm(start.gradient)
    memory, gradients = _Memory(), []

    def along(origin: Point, step: Rotation) -> Point:
        parts = zip(origin.coefficients, origin.occupied, step, strict=True)
        coefficients = [rotated(c, k, x) for c, k, x in parts]
        reached = Point(coefficients, origin.occupied, build(coefficients))
        gradients.append(norm(reached.gradient))
        return reached

    while len(gradients) < max_builds:
        point, differences, turn = point.canonical()
        memory.turn(turn)
        curvatures = [np.maximum(d, _SOFTEST) for d in differences]
        direction = memory.direction(point.gradient, curvatures)
        if _dot(direction, point.gradient) >= 0:
            memory.forget()
            direction = memory.direction(point.gradient, curvatures)
        length, reached = _line_search(point, direction, along)
        step = _times(length, direction)
        memory.learn(step, _plus(reached.gradient, -1.0, point.gradient))
        point, here = reached, norm(reached.gradient)
        if here < least:
            best, least = point, here
        if least < tolerance:
            break
    return best, gradients


def _line_search(
    point: Point, direction: Rotation, along: Callable[[Point, Rotation], Point]
) -> tuple[float, Point]:
    """How far to go, in units of the direction, and the point there. It goes by slopes alone: there
    is no energy of fitted matrices with the defect of full ones."""
    first = -_dot(direction, point.gradient)
    longest = _LONGEST / np.sqrt(_dot(direction, direction))
    length = min(1.0, longest)
    low: tuple[float, float] = (0.0, -first)
    high: tuple[float, float] | None = None
    found: list[tuple[float, float, Point]] = []
    for _ in range(_LENGTHS):
        reached = along(point, _times(length, direction))
        slope = _dot(direction, reached.gradient)
        found.append((abs(slope), length, reached))
        if slope > _FLAT * first:
            high = (length, slope)
        elif slope < -_FLAT * first and length < longest:
            low = (length, slope)
        else:
            break
        if high:  # where a line through the slopes meets zero
            part = low[1] / (low[1] - high[1])
            length = low[0] + min(max(part, 0.1), 0.9) * (high[0] - low[0])
        else:
            part = first / (first + slope) if slope > -first else _GROWTH
            length = min(length * min(part, _GROWTH), longest)
    _, length, reached = min(found, key=lambda trial: trial[0])
    return length, reached
