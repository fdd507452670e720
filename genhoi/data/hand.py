"""A hand that holds a product: capsules in three dimensions that follow the product's outline.

Digits run along the outline that a cut at their height has, a little outside it. The way along
that outline starts at the right (the hand's side; a left hand is the mirror image) and grows
towards the front.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from genhoi.data.motion import Path
from genhoi.data.solids import Solid

__all__ = ["Capsule", "Hand", "make_hand"]

_SKINS = ((236, 188, 160), (222, 170, 136), (198, 142, 106), (160, 106, 76), (112, 74, 54))
_LENGTHS = (0.92, 1.0, 0.97, 0.8)  # of the four fingers, the longest is 1
_THICK = (1.0, 1.03, 0.98, 0.86)
_PHALANGES = (0.52, 0.38, 0.3)
_THUMB = (0.42, 0.34, 0.26)


class Capsule(NamedTuple):
    """Two balls and what is between them: ends float64 [2, T, 3] in the grip's frame, two radii."""

    ends: np.ndarray
    radii: tuple[float, float]


@dataclass(frozen=True)
class Hand:
    """Capsules over T views.

    Args:
        hand: palm, fingers and thumb.
        wrist: where the arm begins, [T, 3] in the grip's frame.
        wrist_radius: of the arm there.
        down: whether the arm comes from below rather than from the side.
        skin, sleeve: [3], 0 to 1.
    """

    hand: list[Capsule]
    wrist: np.ndarray
    wrist_radius: float
    down: bool
    skin: np.ndarray
    sleeve: np.ndarray


class _Outline:
    """The way round a solid for something of a given thickness."""

    def __init__(self, solid: Solid, grow: float) -> None:
        self.solid, self.grow = solid, grow
        self.power = 0.28 if solid.square else 1.0
        self.angles = np.linspace(-1.75 * np.pi, 1.75 * np.pi, 421)
        x, _, z = self._at(self.angles, np.full_like(self.angles, 0.15)).T
        steps = np.hypot(np.diff(x), np.diff(z))
        self.ways = np.concatenate([[0], np.cumsum(steps)])
        self.ways -= np.interp(0, self.angles, self.ways)

    def _at(self, angle: np.ndarray, y: np.ndarray) -> np.ndarray:
        width, depth = self.solid.widths(y)
        cos, sin = np.cos(angle), np.sin(angle)
        x = (width + self.grow) * np.sign(cos) * np.abs(cos) ** self.power
        z = -(depth + self.grow) * np.sign(sin) * np.abs(sin) ** self.power
        return np.stack([x, y, z], axis=-1)

    def point(self, way: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Give the point [T, 3] at a way [T] from the right and a height [T]."""
        return self._at(np.interp(way, self.ways, self.angles), y)

    def way(self, angle: float) -> float:
        """Give the way to an angle."""
        return float(np.interp(angle, self.angles, self.ways))


def make_hand(
    rng: Generator, path: Path, solid: Solid, *, grip: tuple[float, float], size: float
) -> Hand:
    """Make a right hand that holds a solid.

    Args:
        rng: for the grip, the proportions and the skin.
        path: for what moves.
        solid: what is held.
        grip: heights from and to, where it may be held.
        size: of the hand; 1 is right for a can two units high.
    """
    ones = np.ones_like(path(0, 0))
    fingers_in_front = bool(rng.random() < 0.5)
    middle = float(rng.uniform(*grip))
    thick = 0.165 * size
    outline = _Outline(solid, 0.8 * thick)
    slope = float(rng.uniform(0.1, 0.4))  # of the fingers, upwards
    width, depth = (float(half[0]) for half in solid.widths(np.array([middle])))
    front = outline.way(0.5 * np.pi)
    if fingers_in_front:  # the palm is behind, the arm comes from below
        knuckle, turn = front - width * rng.uniform(0.3, 0.75) - sum(_PHALANGES) * size, 1.0
        wrist = (0.45 * width + 0.2 * size, middle + 1.05 * size, depth + 0.25 * size)
        root, thumb_turn = outline.way(-0.6 * np.pi), -1.0
    else:  # the palm is at the side, the thumb in front
        knuckle, turn = outline.way(-0.3 * np.pi), -1.0
        wrist = (width + 0.85 * size, middle + 0.6 * size, 0.25 * depth)
        root = front - width * rng.uniform(0.2, 0.65) - sum(_THUMB) * size
        root, thumb_turn = max(outline.way(-0.2 * np.pi), root), 1.0
    at_wrist = ones[:, None] * np.array(wrist) + np.stack([path(-0.05, 0.05)] * 3, axis=-1)
    hand: list[Capsule] = []
    for i in range(4):
        radius = thick * _THICK[i]
        bend = path(-0.06, 0.06) * size
        first = middle + (i - 1.5) * 0.31 * size
        points = [at_wrist + np.array([0.0, 0.08 * (i - 1.5) * size, 0.0])]
        way, rise = knuckle * ones, 0.0
        points.append(outline.point(way, first * ones))
        for j, length in enumerate(_PHALANGES):
            way = way + turn * (length * _LENGTHS[i] * size + (j > 0) * bend)
            rise += slope * length * size * (1.4 - 0.4 * i)
            points.append(outline.point(way, (first - rise) * ones))
        radii = (1.35 * thick, 1.12 * radius, radius, 0.93 * radius, 0.76 * radius)
        hand += _chain(points, radii)
    hand += _thumb(path, outline, at_wrist, root, thumb_turn, middle, size)
    skin = np.array(_SKINS[rng.integers(len(_SKINS))]) / 255 * rng.uniform(0.94, 1.06, 3)
    return Hand(
        hand=hand,
        wrist=at_wrist,
        wrist_radius=0.35 * size,
        down=fingers_in_front,
        skin=skin.clip(0, 1),
        sleeve=rng.uniform(0.1, 0.8, 3),
    )


def _thumb(
    path: Path,
    outline: _Outline,
    wrist: np.ndarray,
    root: float,
    turn: float,
    middle: float,
    size: float,
) -> list[Capsule]:
    """Make the ball of the thumb and the thumb, above the fingers."""
    lift, bend = path(-0.06, 0.06) * size, path(-0.08, 0.08) * size
    way, y = root + 0 * lift, middle - 0.3 * size + lift
    points = [wrist, outline.point(way, y)]
    for length in _THUMB:
        way, y = way + turn * (length * size + bend), y - 0.16 * size
        points.append(outline.point(way, y))
    thick = 0.185 * size
    return _chain(points, (1.5 * thick, 1.25 * thick, 1.05 * thick, thick, 0.76 * thick))


def _chain(points: list[np.ndarray], radii: tuple[float, ...]) -> list[Capsule]:
    return [
        Capsule(np.stack(ends), both)
        for ends, both in zip(pairwise(points), pairwise(radii), strict=True)
    ]
