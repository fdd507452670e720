"""The things that a synthetic hand holds: a solid, what is printed on it, and how it shines.

A product is about two units high, upright, its front towards the viewer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from genhoi.data.labels import LABEL_HEIGHT, Band, Color, draw_label, far_color, some_color
from genhoi.data.motion import as_tensor
from genhoi.data.photographs import Split
from genhoi.data.solids import Ball, Box, Revolved, Ring, Solid

__all__ = ["PRODUCTS", "Handle", "Product", "some_product"]

_METAL: Color = (188, 190, 196)


class Handle(NamedTuple):
    """A bent rod on a product's left: points float32 [n, 3] along it, radius, colour."""

    at: Tensor
    radius: float
    color: Color


@dataclass(frozen=True)
class Product:
    """One thing to hold.

    Args:
        solid: its shape.
        label: what goes round it, RGB.
        ends: colours of its top and bottom.
        grip: where the hand may hold it: heights from and to, down is positive.
        shine: strength of the highlights, 0 to 1.
        handle: None without.
    """

    solid: Solid
    label: Image.Image
    ends: tuple[Color, Color]
    grip: tuple[float, float] = (-0.1, 0.35)
    shine: float = 0.25
    handle: Handle | None = None

    def texture(self, height: float) -> Tensor:
        """Give the label, shrunk to what `height` pixels can show: float32 [1, 3, h, w], 0 to 1."""
        rows = int(np.clip(round(height), 8, LABEL_HEIGHT))
        size = (max(8, round(self.label.width * rows / LABEL_HEIGHT)), rows)
        pixels = np.asarray(self.label.resize(size, Image.Resampling.BOX), np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def some_product(rng: Generator, split: Split) -> Product:
    """Draw one of the kinds in `PRODUCTS`."""
    kinds = tuple(PRODUCTS.values())
    return kinds[rng.integers(len(kinds))](rng, split)


def _straight(*points: tuple[float, float]) -> list[Ring]:
    """Join (height, radius) points by cones."""
    rings = []
    for (y0, r0), (y1, r1) in pairwise(points):
        slope = (r1 - r0) / (y1 - y0)
        rings.append(Ring((y0, y1), (r0, r1), (slope, slope)))
    return rings


def _curve(start: tuple[float, float], stop: tuple[float, float], parts: int = 4) -> list[Ring]:
    """Go from one (height, radius) to another in an S, shaded as if it were smooth."""
    (y0, r0), (y1, r1) = start, stop
    time = np.linspace(0, 1, parts + 1)
    y = y0 + (y1 - y0) * time
    r = r0 + (r1 - r0) * (0.5 - 0.5 * np.cos(np.pi * time))
    slope = (r1 - r0) / (y1 - y0) * np.pi / 2 * np.sin(np.pi * time)
    pairs = (pairwise(values.tolist()) for values in (y, r, slope))
    return [Ring(*both) for both in zip(*pairs, strict=True)]


def _revolved(*parts: list[Ring], flat: float = 1.0) -> Revolved:
    return Revolved(tuple(ring for part in parts for ring in part), flat=flat)


def _row(y: float) -> float:
    """Turn a height, -1 to 1, into a label's row, 0 to 1."""
    return (y + 1) / 2


def _labelled(
    rng: Generator,
    split: Split,
    solid: Solid,
    printed: tuple[float, float],
    base: Color,
    bands: tuple[Band, ...] = (),
) -> Image.Image:
    """Draw the label of a solid between two heights."""
    height = 2 * solid.half[1]
    return draw_label(
        rng,
        split,
        around=solid.around / height,
        front=solid.front / height,
        printed=(_row(printed[0]), _row(printed[1])),
        base=base,
        bands=bands,
    )


def _dark(color: Color, part: float) -> Color:
    return tuple(int(part * c) for c in color)  # type: ignore[return-value]


def _box(rng: Generator, split: Split) -> Product:
    solid = Box((float(rng.uniform(0.5, 0.85)), 1.0, float(rng.uniform(0.2, 0.5))))
    base = some_color(rng)
    label = _labelled(rng, split, solid, (-1.0, 1.0), base)
    return Product(solid, label, (base, base), shine=0.1)


def _can(rng: Generator, split: Split) -> Product:
    r = float(rng.uniform(0.46, 0.6))
    solid = _revolved(
        _straight((-1.0, 0.84 * r), (-0.9, r), (0.92, r), (1.0, 0.86 * r)),
    )
    base = some_color(rng)
    bands = ((0.0, _row(-0.9), _METAL), (_row(0.93), 1.0, _METAL))
    label = _labelled(rng, split, solid, (-0.88, 0.9), base, bands)
    return Product(solid, label, (_dark(_METAL, 0.85), _METAL), shine=0.5)


def _bottle(rng: Generator, split: Split) -> Product:
    r, flat = float(rng.uniform(0.36, 0.5)), float(rng.choice([1.0, 0.65]))
    neck, shoulder = r * float(rng.uniform(0.34, 0.5)), float(rng.uniform(-0.4, -0.15))
    cap = float(rng.uniform(-0.8, -0.72))
    solid = _revolved(
        _straight((-1.0, 1.1 * neck), (cap, 1.1 * neck), (cap + 0.02, neck)),
        _straight((cap + 0.02, neck), (cap + 0.08, neck)),
        _curve((cap + 0.08, neck), (shoulder, r)),
        _straight((shoulder, r), (0.94, r), (1.0, 0.88 * r)),
        flat=flat,
    )
    base = some_color(rng)
    lid = far_color(rng, base)
    label = _labelled(rng, split, solid, (shoulder + 0.03, 0.88), base, ((0.0, _row(cap), lid),))
    return Product(solid, label, (lid, base), grip=(0.1, 0.45), shine=0.6)


def _jar(rng: Generator, split: Split) -> Product:
    r, lid_bottom = float(rng.uniform(0.66, 0.85)), float(rng.uniform(-0.72, -0.6))
    solid = _revolved(
        _straight((-1.0, 0.84 * r), (-0.96, 0.88 * r), (lid_bottom, 0.88 * r)),
        _curve((lid_bottom, 0.8 * r), (lid_bottom + 0.2, r), 3),
        _straight((lid_bottom + 0.2, r), (0.9, r), (1.0, 0.9 * r)),
    )
    base = some_color(rng)
    lid = far_color(rng, base)
    label = _labelled(
        rng, split, solid, (lid_bottom + 0.2, 0.88), base, ((0.0, _row(lid_bottom), lid),)
    )
    return Product(solid, label, (lid, base), grip=(0.05, 0.35), shine=0.4)


def _mug(rng: Generator, split: Split) -> Product:
    r = float(rng.uniform(0.68, 0.85))
    foot = r * float(rng.uniform(0.8, 1.0))
    solid = _revolved(_straight((-1.0, r), (0.93, foot + 0.02), (1.0, 0.92 * foot)))
    base = some_color(rng)
    label = _labelled(rng, split, solid, (-0.95, 0.9), base)
    turn = np.linspace(-0.5 * np.pi, 0.5 * np.pi, 6)
    reach = float(rng.uniform(0.42, 0.55))
    handle = np.stack(
        [-0.9 * r - reach * np.cos(turn), 0.55 * np.sin(turn) - 0.05, np.zeros(6)], axis=-1
    )
    return Product(
        solid,
        label,
        (_dark(base, 0.35), base),
        shine=0.4,
        handle=Handle(as_tensor(handle), float(rng.uniform(0.1, 0.13)), base),
    )


def _tube(rng: Generator, split: Split) -> Product:
    r, cap = float(rng.uniform(0.46, 0.58)), float(rng.uniform(0.62, 0.72))
    low = r * float(rng.uniform(0.66, 0.8))
    solid = _revolved(
        _straight((-1.0, r), (cap - 0.12, 1.02 * low)),
        _curve((cap - 0.12, 1.02 * low), (cap, 0.8 * low), 2),
        _straight((cap, 0.8 * low), (1.0, 0.72 * low)),
        flat=float(rng.uniform(0.45, 0.6)),
    )
    base = some_color(rng)
    lid = far_color(rng, base)
    bands = ((0.0, _row(-0.9), _dark(base, 0.8)), (_row(cap), 1.0, lid))
    label = _labelled(rng, split, solid, (-0.85, cap - 0.14), base, bands)
    return Product(solid, label, (base, lid), grip=(-0.15, 0.2), shine=0.35)


def _ball(rng: Generator, split: Split) -> Product:
    width = float(rng.uniform(0.9, 1.05))
    solid = Ball((width, 1.0, width))
    base = some_color(rng)
    label = _labelled(rng, split, solid, (-0.62, 0.62), base)
    return Product(solid, label, (base, base), grip=(0.0, 0.3), shine=0.4)


PRODUCTS: dict[str, Callable[[Generator, Split], Product]] = {
    "box": _box,
    "can": _can,
    "bottle": _bottle,
    "jar": _jar,
    "mug": _mug,
    "tube": _tube,
    "ball": _ball,
}
