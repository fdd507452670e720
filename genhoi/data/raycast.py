"""Ray casting for the synthetic clips: a camera, its rays, and the pictures that are filled.

Axes: x to the right, y down, z away from the viewer; the camera is at the origin and looks along z.
A solid's front faces the viewer, at negative z of its own frame; its top is at negative y. All is
float32, and T views (frames and what lies between them) are drawn at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Camera", "Canvas", "Hits", "Rays", "Vector", "Window", "inner", "unit"]

Vector = tuple[Tensor, Tensor, Tensor]  # x, y and z apart


class Rays(NamedTuple):
    """Rays from one point per view: start [T, 1, 1] and unit direction [T, h, w] by component."""

    start: Vector
    along: Vector


class Hits(NamedTuple):
    """Where rays first meet a solid, [T, h, w] each.

    Args:
        distance: along the ray, infinite where it misses.
        normal: outward, of length 1.
        u: -1 to 1 once round the solid, 0 in the middle of its front.
        v: -1 at the top to 1 at the bottom.
        end: -1 where the top's end face is hit, 1 the bottom's, 0 the label between them.
    """

    distance: Tensor
    normal: Vector
    u: Tensor
    v: Tensor
    end: Tensor


class Window(NamedTuple):
    """A part of the picture, of one size and a place for every view: top and left [T]."""

    top: Tensor
    left: Tensor
    height: int
    width: int


@dataclass(frozen=True)
class Camera:
    """A pinhole camera for T views of one size.

    Args:
        focal: focal length in pixels.
        size: (height, width) in pixels.
        shift: float32 [T, 2], where in a pixel its ray goes through: (x, y), 0 its middle.
    """

    focal: float
    size: tuple[int, int]
    shift: Tensor

    def window(self, points: Tensor, radii: Tensor) -> Window:
        """Find the part of the picture that holds balls round points.

        Args:
            points: [n, T, 3], in front of the camera.
            radii: [n, T] or broadcastable.
        """
        depth = (points[..., 2] - radii).clamp(min=1e-3)
        grow = self.focal * radii / depth * 1.1 + 1
        lows, highs = [], []
        for axis, extent in ((1, self.size[0]), (0, self.size[1])):
            at = self.focal * points[..., axis] / points[..., 2] + extent / 2
            lows.append((at - grow).amin(0).floor().clamp(0, extent - 1).long())
            highs.append((at + grow).amax(0).ceil().clamp(1, extent).long())
        height, width = (
            min(int((high - low).max().clamp(min=1)), extent)
            for low, high, extent in zip(lows, highs, self.size, strict=True)
        )
        top, left = (
            torch.minimum(low, torch.tensor(extent - part))
            for low, extent, part in zip(lows, self.size, (height, width), strict=True)
        )
        return Window(top, left, height, width)

    def rays(self, window: Window) -> Vector:
        """Give the unit directions of a window's rays: [T, h, w] by component."""
        x = window.left[:, None] + torch.arange(window.width) + 0.5 + self.shift[:, :1]
        y = window.top[:, None] + torch.arange(window.height) + 0.5 + self.shift[:, 1:]
        x = ((x - self.size[1] / 2) / self.focal)[:, None]
        y = ((y - self.size[0] / 2) / self.focal)[:, :, None]
        inverse = torch.rsqrt(x.square() + y.square() + 1)
        return x * inverse, y * inverse, inverse


class Canvas:
    """Pictures that are being filled, the nearest surface on top.

    Args:
        views: T.
        size: (height, width) in pixels.
        channels: of a pixel.
    """

    def __init__(self, views: int, size: tuple[int, int], channels: int) -> None:
        self.shape = (views, *size)
        count = views * size[0] * size[1]
        self.distance = torch.full((count,), torch.inf)
        self.pixels = torch.zeros(count, channels)

    def paint(self, window: Window, distance: Tensor, values: Tensor) -> None:
        """Put what is nearer than what is there.

        Args:
            window: where.
            distance: [T, h, w], infinite where nothing is.
            values: [T, h, w, channels].
        """
        _, height, width = self.shape
        views = torch.arange(len(window.top)) * (height * width)
        first = views + window.top * width + window.left
        step = torch.arange(window.height)[:, None] * width + torch.arange(window.width)
        at = first[:, None, None] + step
        at, distance = at.flatten(), distance.flatten()
        near = (distance < self.distance[at]).nonzero()[:, 0]
        chosen = at[near]
        self.distance[chosen] = distance[near]
        self.pixels[chosen] = values.flatten(0, 2)[near]

    def views(self) -> Tensor:
        """Give the pixels, [T, H, W, channels]."""
        return self.pixels.view(*self.shape, -1)


def inner(a: Vector, b: Vector) -> Tensor:
    """Give the inner product of vectors by component."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(vector: Vector) -> Vector:
    """Make vectors by component as long as 1."""
    inverse = torch.rsqrt(inner(vector, vector) + 1e-12)
    return vector[0] * inverse, vector[1] * inverse, vector[2] * inverse
