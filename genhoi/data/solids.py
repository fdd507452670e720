"""Solids that rays hit: boxes, balls, and surfaces of revolution; see `genhoi.data.raycast`.

All are upright round their own y axis, from about y = -1 (the top) to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

from genhoi.data.raycast import Hits, Rays, Vector, inner, unit

__all__ = ["Ball", "Box", "Revolved", "Ring", "Solid"]


class Solid(Protocol):
    """A closed body."""

    @property
    def half(self) -> tuple[float, float, float]:
        """Give half its width, height and depth."""

    @property
    def square(self) -> bool:
        """Say whether it has corners."""

    @property
    def around(self) -> float:
        """Say how long the way once round is."""

    @property
    def front(self) -> float:
        """Say how wide the part of that way is which is well seen from the front."""

    def cast(self, rays: Rays) -> Hits:
        """Find where rays first meet it."""

    def widths(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give half its width and half its depth at heights y."""


@dataclass(frozen=True)
class Box:
    """A box of half its width, height and depth."""

    half: tuple[float, float, float]
    square: bool = True

    @property
    def around(self) -> float:
        """Say how long the way once round is."""
        return 4 * (self.half[0] + self.half[2])

    @property
    def front(self) -> float:
        """Say how wide the front is."""
        return 2 * self.half[0] * 0.94

    def widths(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give half its width and half its depth at heights y."""
        return np.full_like(y, self.half[0]), np.full_like(y, self.half[2])

    def cast(self, rays: Rays) -> Hits:
        """Find where rays first meet it."""
        enters, leaves = [], []
        for start, along, half in zip(rays.start, rays.along, self.half, strict=True):
            inverse = 1 / torch.where(along.abs() < 1e-8, 1e-8, along)
            middle, reach = -start * inverse, half * inverse.abs()
            enters.append(middle - reach)
            leaves.append(middle + reach)
        enter = torch.maximum(torch.maximum(enters[0], enters[1]), enters[2])
        leave = torch.minimum(torch.minimum(leaves[0], leaves[1]), leaves[2])
        distance = torch.where((enter < leave) & (enter > 0), enter, torch.inf)
        faces = [enter == each for each in enters]
        normal: Vector = tuple(  # type: ignore[assignment]
            torch.where(face, -along.sign(), 0.0)
            for face, along in zip(faces, rays.along, strict=True)
        )
        x, y, z = (s + enter * a for s, a in zip(rays.start, rays.along, strict=True))
        width, height, depth = self.half
        way = torch.where(x < 0, -1.0, 1.0) * (width + depth + z)  # along a side
        way = torch.where(normal[2] < 0, x, way)
        back = torch.where(x < 0, -1.0, 1.0) * (2 * width + 2 * depth) - x
        way = torch.where(normal[2] > 0, back, way)
        return Hits(distance, normal, way / (2 * (width + depth)), y / height, normal[1])


@dataclass(frozen=True)
class Ball:
    """A ball or an ellipsoid of half its width, height and depth."""

    half: tuple[float, float, float]
    square: bool = False

    @property
    def around(self) -> float:
        """Say how long the way once round is."""
        return float(np.pi * (self.half[0] + self.half[2]))

    @property
    def front(self) -> float:
        """Say how wide the part of that way is which is well seen from the front."""
        return 1.7 * self.half[0]

    def widths(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give half its width and half its depth at heights y."""
        part = np.sqrt(np.clip(1 - (y / self.half[1]) ** 2, 0.05, 1))
        return self.half[0] * part, self.half[2] * part

    def cast(self, rays: Rays) -> Hits:
        """Find where rays first meet it."""
        start, along = _divided(rays.start, self.half), _divided(rays.along, self.half)
        a, b, c = inner(along, along), inner(start, along), inner(start, start) - 1
        root = b.square() - a * c
        distance = (-b - root.abs().sqrt()) / a
        x, y, z = (s + distance * d for s, d in zip(start, along, strict=True))
        distance = torch.where((root > 0) & (distance > 0), distance, torch.inf)
        normal = unit(_divided((x, y, z), self.half))
        u = torch.atan2(x, -z) / torch.pi
        v = torch.asin(y.clamp(-1, 1)) * (2 / torch.pi)
        return Hits(distance, normal, u, v, torch.zeros_like(u))


class Ring(NamedTuple):
    """A part of a surface of revolution, between two heights; `slopes` are dr/dy of its shading."""

    heights: tuple[float, float]
    radii: tuple[float, float]
    slopes: tuple[float, float]


@dataclass(frozen=True)
class Revolved:
    """A closed surface of revolution, made of rings from top to bottom; flat ends.

    Args:
        rings: each begins where the one above ends.
        flat: its depth over its width.
    """

    rings: tuple[Ring, ...]
    flat: float = 1.0
    square: bool = False
    half: tuple[float, float, float] = field(init=False)

    def __post_init__(self) -> None:
        """Find its extent."""
        radius = max(max(ring.radii) for ring in self.rings)
        height = max(-self.rings[0].heights[0], self.rings[-1].heights[1])
        object.__setattr__(self, "half", (radius, height, radius * self.flat))

    @property
    def around(self) -> float:
        """Say how long the way once round is."""
        return float(np.pi * (self.half[0] + self.half[2]))

    @property
    def front(self) -> float:
        """Say how wide the part of that way is which is well seen from the front."""
        return (1.6 if self.flat > 0.7 else 1.5) * self.half[0]

    def widths(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give half its width and half its depth at heights y."""
        heights = [ring.heights[0] for ring in self.rings] + [self.rings[-1].heights[1]]
        radii = [ring.radii[0] for ring in self.rings] + [self.rings[-1].radii[1]]
        radius = np.interp(y, heights, radii)
        return radius, radius * self.flat

    def cast(self, rays: Rays) -> Hits:
        """Find where rays first meet it."""
        (x0, y0, z0), (dx, dy, dz) = rays
        z0, dz = z0 / self.flat, dz / self.flat
        aa, bb = dx.square() + dz.square(), x0 * dx + z0 * dz
        cc, dydy = x0.square() + z0.square(), dy.square()
        best = torch.full_like(dy, torch.inf)
        slope, end = torch.zeros_like(dy), torch.zeros_like(dy)
        for (top, bottom), (r0, r1), (s0, s1) in self.rings:
            k = (r1 - r0) / (bottom - top)
            q = r0 + k * (y0 - top)
            a = aa - k * k * dydy if k else aa
            b = bb - (q * k) * dy if k else bb
            square = b.square() - a * (cc - q.square())
            root = square.abs().sqrt()  # that of a negative number is slow to find
            for t in ((-b - root) / a, (root - b) / a) if k else ((-b - root) / a,):
                y = y0 + t * dy
                near = (square > 0) & (y >= top) & (y <= bottom) & (t < best) & (t > 0)
                best = torch.where(near, t, best)
                slope = torch.where(near, s0 + (s1 - s0) / (bottom - top) * (y - top), slope)
        ends = (
            (-1.0, self.rings[0].heights[0], self.rings[0].radii[0]),
            (1.0, self.rings[-1].heights[1], self.rings[-1].radii[1]),
        )
        for side, height, radius in ends:
            t = (height - y0) / torch.where(dy.abs() < 1e-8, 1e-8, dy)
            far = (x0 + t * dx).square() + (z0 + t * dz).square()
            near = (far <= radius * radius) & (t < best) & (t > 0)
            best = torch.where(near, t, best)
            end = torch.where(near, side, end)
        x, y, z = x0 + best * dx, y0 + best * dy, z0 + best * dz
        round_ = end == 0
        inverse = torch.rsqrt(x.square() + z.square() + 1e-9)
        normal = unit(
            (
                torch.where(round_, x * inverse, 0.0),
                torch.where(round_, -slope, end),
                torch.where(round_, z * inverse / self.flat, 0.0),
            )
        )
        return Hits(best, normal, torch.atan2(x, -z) / torch.pi, y / self.half[1], end)


def _divided(vector: Vector, by: tuple[float, float, float]) -> Vector:
    x, y, z = vector
    return x / by[0], y / by[1], z / by[2]
