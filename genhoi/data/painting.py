"""Paints the surfaces of a synthetic scene, lit, into a canvas: the product and capsules."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product as combinations

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.data.capsules import cast_capsule
from genhoi.data.products import Product
from genhoi.data.raycast import Camera, Canvas, Rays, Vector, inner

__all__ = [
    "ANY",
    "CHANNELS",
    "HAND",
    "OBJECT",
    "Capsules",
    "Posed",
    "paint_capsules",
    "paint_product",
]

OBJECT, HAND, ANY, CHANNELS = 3, 4, 5, 6
"""Channels of a canvas after red, green and blue: 1 where the object, the hand, anything is."""


@dataclass(frozen=True)
class Posed:
    """Where the product is, and the light, in T views.

    Args:
        turn: float32 [T, 3, 3], from the product's frame to the camera's.
        center: float32 [T, 3], of the product, in the camera's frame.
        light: float32 [T, 3], unit direction towards the light.
    """

    turn: Tensor
    center: Tensor
    light: Tensor

    def __getitem__(self, views: slice | list[int]) -> Posed:
        return Posed(self.turn[views], self.center[views], self.light[views])

    def placed(self, points: Tensor) -> Tensor:
        """Take points [n, 3] of the product's frame to the camera's: [n, T, 3]."""
        return torch.einsum("tij,nj->nti", self.turn, points) + self.center


@dataclass(frozen=True)
class Capsules:
    """Capsules of one colour.

    Args:
        ends: float32 [n, 2, T, 3], in the camera's frame.
        radii: of both ends of each.
        color: float32 [3], 0 to 1.
        channel: `OBJECT` or `HAND`, whose pixels these are, or `ANY`.
        shine: strength of the highlights, 0 to 1.
    """

    ends: Tensor
    radii: list[tuple[float, float]]
    color: Tensor
    channel: int
    shine: float = 0.08

    def __getitem__(self, views: slice) -> Capsules:
        return Capsules(self.ends[:, :, views], self.radii, self.color, self.channel, self.shine)


def paint_product(
    canvas: Canvas,
    camera: Camera,
    posed: Posed,
    product: Product,
    *,
    texture: Tensor,
    mirrored: bool = False,
) -> None:
    """Paint a product and its handle.

    Args:
        canvas: for T views.
        camera: for as many.
        posed: where the product is.
        product: what it is.
        texture: its label, float32 [1, 3, h, w].
        mirrored: its handle is on the right.
    """
    solid = product.solid
    corners = torch.tensor(list(combinations((-1.0, 1.0), repeat=3))) * torch.tensor(solid.half)
    window = camera.window(posed.placed(corners), torch.tensor(0.0))
    back = posed.turn.transpose(1, 2)
    start = -(back @ posed.center[:, :, None])[..., None]
    hits = solid.cast(Rays(_parts(start), _rotated(camera.rays(window), back)))
    views, _, width = hits.u.shape
    grid = torch.stack([hits.u, hits.v], -1).nan_to_num_(0, 0, 0).view(1, -1, width, 2)
    color = F.grid_sample(texture, grid, align_corners=False, padding_mode="border")[0]
    color = color.view(3, views, -1, width).permute(1, 2, 3, 0)
    for side, end in zip((-1, 1), product.ends, strict=True):
        color = torch.where((hits.end == side)[..., None], torch.tensor(end) / 255, color)
    bright, shine = _lit(_rotated(hits.normal, posed.turn), posed.light, product.shine)
    values = _values(color * bright[..., None] + shine[..., None], OBJECT)
    canvas.paint(window, hits.distance, values)
    if product.handle is not None:
        points = posed.placed(product.handle.at * torch.tensor([-1.0 if mirrored else 1.0, 1, 1]))
        handle = Capsules(
            ends=torch.stack([points[:-1], points[1:]], 1),
            radii=[(product.handle.radius, product.handle.radius)] * (len(points) - 1),
            color=torch.tensor(product.handle.color) / 255,
            channel=OBJECT,
            shine=product.shine,
        )
        paint_capsules(canvas, camera, handle, posed.light)


def paint_capsules(canvas: Canvas, camera: Camera, capsules: Capsules, light: Tensor) -> None:
    """Paint capsules, lit from directions [T, 3]."""
    for ends, radii in zip(capsules.ends, capsules.radii, strict=True):
        window = camera.window(ends, torch.tensor(radii)[:, None])
        distance, normal = cast_capsule(camera.rays(window), ends, radii)
        bright, shine = _lit(normal, light, capsules.shine)
        color = bright[..., None] * capsules.color + shine[..., None]
        canvas.paint(window, distance, _values(color, capsules.channel))


def _values(color: Tensor, channel: int) -> Tensor:
    """Join colours [..., 3] and whose they are: [..., 6]."""
    whose = torch.zeros(CHANNELS - 3)
    whose[channel - 3] = whose[ANY - 3] = 1
    return torch.cat([color.clamp(0, 1.2), whose.expand(color.shape)], -1)


def _lit(normal: Vector, light: Tensor, shine: float) -> tuple[Tensor, Tensor]:
    """Light a surface: soft light from a direction [T, 3], a highlight, less where it turns away.

    Returns:
        What the colour is multiplied by, and what is added to it.
    """

    def towards(direction: Tensor) -> Tensor:
        return inner(normal, _parts(direction[:, :, None, None]))

    facing = (-normal[2]).clamp(0, 1)
    bright = 0.36 + 0.44 * (0.5 + 0.5 * towards(light)) + 0.3 * facing
    between = F.normalize(light + torch.tensor([0.0, 0.0, -1.0]), dim=-1)
    glint = towards(between).clamp(0, 1)
    for _ in range(5):  # to the 32nd power; `pow` takes ten times as long
        glint = glint.square()
    return bright, 0.6 * shine * glint


def _rotated(vector: Vector, turn: Tensor) -> Vector:
    """Turn vectors [T, h, w] by component with matrices [T, 3, 3]."""
    x, y, z = (inner(_parts(row[:, :, None, None]), vector) for row in turn.unbind(1))
    return x, y, z


def _parts(vector: Tensor) -> Vector:
    x, y, z = vector.unbind(1)
    return x, y, z
