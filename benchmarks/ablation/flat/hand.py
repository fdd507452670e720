"""An articulated hand, drawn as shaded capsules: palm and arm behind the object, fingers before it.

Everything is given in the held object's own frame, whose unit is half the object's width: u to the
right, v downwards. The hand comes from the right; a left one is its mirror image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

__all__ = ["Hand", "draw_capsules", "make_hand"]

_SKINS = ((236, 188, 160), (222, 170, 136), (198, 142, 106), (160, 106, 76), (112, 74, 54))
_FINGERS = 4


@dataclass(frozen=True)
class Hand:
    """Capsules over time: float32, in the object's frame.

    Args:
        behind: [K, F, 2, 2], start and end (u, v) of palm and thumb's root.
        behind_radii: [K, 2], at start and end.
        front: [K, F, 2, 2], two for each finger, two for the thumb.
        front_radii: [K, 2].
        arm: [1, F, 2, 2]; it belongs to the background.
        arm_radii: [1, 2].
        skin, sleeve: [3], 0 to 1.
    """

    behind: Tensor
    behind_radii: Tensor
    front: Tensor
    front_radii: Tensor
    arm: Tensor
    arm_radii: Tensor
    skin: Tensor
    sleeve: Tensor


def make_hand(
    rng: Generator, path: Callable[[float, float], np.ndarray], aspect: float, *, left: bool
) -> Hand:
    """Make a hand that holds an object of a given height over width.

    Args:
        rng: for its proportions and skin.
        path: (low, high) -> [F], a smooth random function of time within these bounds.
        aspect: the object's half height in its half widths.
        left: mirrored.
    """
    ones = np.ones_like(path(0, 0))
    size = float(rng.uniform(0.85, 1.1))
    palm_v = float(rng.uniform(0.0, 0.35)) * aspect
    root = _point(1.12 * ones, palm_v * ones)
    wrist = root + _point(0.55 * size * ones, 0.5 * size + path(-0.06, 0.06))
    elbow = wrist + _point(4.0 * ones, 3.6 + path(-0.3, 0.3))
    behind = [(root - _point(0.25 * ones, 0.1 * ones), wrist)]
    behind_radii = [(0.52 * size, 0.42 * size)]

    front: list[tuple[np.ndarray, np.ndarray]] = []
    front_radii: list[tuple[float, float]] = []
    for i in range(_FINGERS):
        thick = (0.155 - 0.012 * abs(i - 1.2)) * size
        base = root + _point(-0.02 * ones, (-0.42 + 0.29 * i) * size * ones)
        reach = size * (0.50 - 0.05 * abs(i - 1))
        bend = path(-0.25, 0.25)  # of all joints of this finger, in radians
        knuckle = base + _polar(reach, np.pi - 0.10 * (i - 1.5) + bend)
        tip = knuckle + _polar(0.62 * reach, np.pi - 0.05 * (i - 1.5) + 1.8 * bend)
        front += [(base, knuckle), (knuckle, tip)]
        front_radii += [(thick, 0.92 * thick), (0.92 * thick, 0.75 * thick)]
    lift = path(-0.2, 0.2)
    thumb = root + _point(0.02 * ones, -0.55 * size * ones)
    joint = thumb + _polar(0.45 * size, 1.22 * np.pi + lift)
    front += [(thumb, joint), (joint, joint + _polar(0.36 * size, 1.08 * np.pi + 1.5 * lift))]
    front_radii += [(0.19 * size, 0.17 * size), (0.17 * size, 0.13 * size)]

    mirror = torch.tensor([-1.0 if left else 1.0, 1.0])

    def stacked(capsules: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
        ends = np.stack([np.stack(pair, axis=1) for pair in capsules])
        return torch.from_numpy(ends.astype(np.float32)) * mirror

    skin = np.array(_SKINS[rng.integers(len(_SKINS))]) / 255 * rng.uniform(0.92, 1.06, 3)
    return Hand(
        behind=stacked(behind),
        behind_radii=torch.tensor(behind_radii),
        front=stacked(front),
        front_radii=torch.tensor(front_radii),
        arm=stacked([(wrist, elbow)]),
        arm_radii=torch.tensor([[0.46 * size, 0.75 * size]]),
        skin=torch.from_numpy(skin.clip(0, 1).astype(np.float32)),
        sleeve=torch.from_numpy(rng.uniform(0.1, 0.8, 3).astype(np.float32)),
    )


def _point(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.stack([u, v], axis=-1)


def _polar(length: float, angle: np.ndarray) -> np.ndarray:
    return length * _point(np.cos(angle), np.sin(angle))


def draw_capsules(
    x: Tensor, y: Tensor, ends: Tensor, radii: Tensor, color: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw tapered capsules, each like a tube lit from above, the nearest one on top.

    Args:
        x: float32 [W], pixel centres.
        y: float32 [H, 1].
        ends: float32 [K, F, 2, 2], start and end (x, y) in pixels.
        radii: float32 [K, F, 2], in pixels.
        color: [3].

    Returns:
        Colours [F, 3, H, W] and opacity [F, 1, H, W] with edges one pixel soft.
    """
    frames, height, width = ends.shape[1], y.shape[0], x.shape[0]
    nearest = torch.full((frames, height, width), torch.inf)
    light = torch.zeros(frames, height, width)
    cover = torch.zeros(frames, height, width)
    for (start, end), (r0, r1) in zip(
        (pair.unbind(1) for pair in ends), (pair.unbind(1) for pair in radii), strict=True
    ):
        dx, dy = (x - start[:, 0, None, None]), (y - start[:, 1, None, None])
        along = (end - start)[:, :, None, None]
        length = along.square().sum(1).clamp(min=1e-6)
        part = ((dx * along[:, 0] + dy * along[:, 1]) / length).clamp(0, 1)
        radius = (r0[:, None, None] + part * (r1 - r0)[:, None, None]).clamp(min=0.5)
        dx, dy = (dx - part * along[:, 0]) / radius, (dy - part * along[:, 1]) / radius
        distance = torch.sqrt(dx.square() + dy.square())
        shade = 0.62 + 0.4 * torch.sqrt((1 - distance.square()).clamp(0, 1)) - 0.16 * dy
        light = torch.where(distance < nearest, shade, light)
        cover = torch.maximum(cover, ((1 - distance) * radius + 0.5).clamp(0, 1))
        nearest = torch.minimum(nearest, distance)
    return (color.view(1, 3, 1, 1) * light[:, None]).clamp(0, 1), cover[:, None]
