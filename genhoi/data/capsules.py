"""Rays that meet capsules: two balls and the cone that touches both."""

from __future__ import annotations

import torch
from torch import Tensor

from genhoi.data.raycast import Vector, inner, unit

__all__ = ["cast_capsule"]


def cast_capsule(along: Vector, ends: Tensor, radii: tuple[float, float]) -> tuple[Tensor, Vector]:
    """Find where rays from the origin first meet a capsule.

    Args:
        along: unit directions, [T, h, w] by component.
        ends: float32 [2, T, 3], the balls' centres.
        radii: of the balls; the smaller one is not inside the larger.

    Returns:
        The distance [T, h, w], infinite where a ray misses, and the normal by component.
    """
    first, last = ends
    axis = last - first
    r0, r1 = radii
    shrink = r0 - r1
    m0, m1 = _dots(axis, axis), -_dots(axis, first)
    m5, m7 = _dots(first, first), _dots(last, last)
    m2, m3, m6 = _along(axis, along), -_along(first, along), -_along(last, along)
    d2 = m0 - shrink * shrink
    k2 = d2 - m2.square()
    k1 = d2 * m3 - (m1 - shrink * r0) * m2
    k0 = d2 * m5 - m1.square() + 2 * m1 * shrink * r0 - m0 * r0 * r0
    # The square roots are of absolute values: that of a negative number is slow to find.
    square = k1.square() - k0 * k2
    side = (-square.abs().sqrt() - k1) / k2
    height = m1 - r0 * shrink + side * m2
    on_side = (height > 0) & (height < d2) & (square > 0)
    balls = []
    for to, far, radius in ((m3, m5, r0), (m6, m7, r1)):
        square = to.square() - far + radius * radius
        balls.append(torch.where(square > 0, -to - square.abs().sqrt(), torch.inf))
    on_last = balls[1] < balls[0]
    distance = torch.where(on_side, side, torch.minimum(balls[0], balls[1]))
    # The point of the axis that the surface is round, as a part of the axis.
    part = torch.where(on_side, height / d2, on_last.float())
    x, y, z = (
        distance * a - f - part * by
        for a, f, by in zip(along, _parts(first), _parts(axis), strict=True)
    )
    return distance, unit((x, y, z))


def _parts(vector: Tensor) -> Vector:
    x, y, z = vector[:, :, None, None].unbind(1)
    return x, y, z


def _dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)[:, None, None]


def _along(vector: Tensor, along: Vector) -> Tensor:
    return inner(_parts(vector), along)
