"""The scene of a flat clip: a hand that moves an object before a drifting photograph.

Everything is drawn from one generator's numbers in a fixed order, so the order of the lines in
`Scene.__init__` is part of what a clip looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ablation.flat.hand import Hand, draw_capsules, make_hand
from benchmarks.ablation.flat.sprites import background, sprite
from genhoi.data.photographs import Split
from genhoi.media.image import BACKGROUND

__all__ = ["Pose", "Scene"]

_OBJECT_PICTURE = 96


@dataclass
class Pose:
    """Says where the object is in every frame: [F] each; pixels, radians."""

    x: Tensor
    y: Tensor
    half_width: Tensor
    turn: Tensor
    lean: Tensor  # [F, 2], of the perspective

    def to_pixels(self, points: Tensor) -> Tensor:
        """Turn points [K, F, n, 2] of the object's frame, in its half widths, into pixels."""
        u, v = points.unbind(-1)
        cos, sin, half = (
            t[:, None] for t in (torch.cos(self.turn), torch.sin(self.turn), self.half_width)
        )
        x = self.x[:, None] + half * (cos * u - sin * v)
        y = self.y[:, None] + half * (sin * u + cos * v)
        return torch.stack([x, y], -1)

    def to_object(self, x: Tensor, y: Tensor, aspect: float) -> Tensor:
        """Turn pixel centres into (u, v), -1 to 1 over the sprite: [F, H, W, 2]."""
        dx, dy = x - self.x[:, None, None], y - self.y[:, None, None]
        cos, sin = torch.cos(self.turn)[:, None, None], torch.sin(self.turn)[:, None, None]
        half = self.half_width[:, None, None]
        u, v = (cos * dx + sin * dy) / half, (cos * dy - sin * dx) / half
        w = 1 + self.lean[:, 0, None, None] * u + self.lean[:, 1, None, None] * v
        w = w.clamp(min=0.3)
        return torch.stack([u / w, v / (w * aspect)], -1)


class Scene:
    """Draws one clip from its random numbers.

    Args:
        rng: of the clip.
        split: whose photographs and objects are used.
        frames: of the clip.
        size: (height, width) in pixels.
    """

    def __init__(self, rng: Generator, split: Split, frames: int, size: tuple[int, int]) -> None:
        self.size = size
        height, width = size
        side = min(size)
        path = partial(_path, rng, frames)

        def moving(low: float, high: float) -> Tensor:
            return torch.from_numpy(path(low, high).astype(np.float32))

        self.sprite, self.aspect = sprite(rng, split)
        self.pose = Pose(
            x=width * moving(0.33, 0.67),
            y=height * moving(0.32, 0.62),
            half_width=side * moving(0.15, 0.21),
            turn=moving(-0.3, 0.3),
            lean=torch.stack([moving(-0.15, 0.15), moving(-0.15, 0.15)], -1),
        )
        self.hand = make_hand(rng, path, self.aspect, left=bool(rng.random() < 0.5))
        self.photo = background(rng, split)
        self.zoom, turn = moving(0.5, 0.8), moving(-0.06, 0.06)
        self.window = torch.stack([moving(-0.2, 0.2), moving(-0.2, 0.2)], -1)
        self.camera_turn = turn
        gain = torch.stack([moving(0.8, 1.2)] * 3, -1)
        tint = torch.stack([moving(0.93, 1.07) for _ in range(3)], -1)
        self.light = (gain * tint)[:, :, None, None]
        self.x = torch.arange(width) + 0.5
        self.y = torch.arange(height)[:, None] + 0.5

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the clip.

        Returns:
            Frames, uint8 [F, H, W, 3]; the object's and the hand's pixels, bool [F, H, W] each.
        """
        image = self._photograph()
        hand: Hand = self.hand
        arm, cover = self._capsules(hand.arm, hand.arm_radii, hand.sleeve)
        image = torch.lerp(image, arm, cover)
        palm, behind = self._capsules(hand.behind, hand.behind_radii, hand.skin)
        image = torch.lerp(image, palm, behind)
        body = self._object()
        image = torch.lerp(image, body[:, :3], body[:, 3:])
        fingers, before = self._capsules(hand.front, hand.front_radii, hand.skin)
        image = torch.lerp(image, fingers, before)
        pixels = (image * self.light).clamp(0, 1).mul(255).round().to(torch.uint8)
        fingers_seen = before[:, 0] > 0.5
        object_seen = (body[:, 3] > 0.5) & ~fingers_seen
        hand_seen = fingers_seen | ((behind[:, 0] > 0.5) & ~object_seen)
        return pixels.permute(0, 2, 3, 1).contiguous(), object_seen, hand_seen

    def picture(self) -> Tensor:
        """Draw the object alone, upright, on grey: uint8 [h, w, 3]."""
        h = round(_OBJECT_PICTURE * min(1, self.aspect))
        w = round(_OBJECT_PICTURE * min(1, 1 / self.aspect))
        whole = F.interpolate(self.sprite[None], (h, w), mode="bilinear", antialias=True)[0]
        rgb = torch.lerp(torch.tensor(BACKGROUND / 255), whole[:3], whole[3:])
        return rgb.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()

    def boxes(self) -> Tensor:
        """Give the object's box in each frame, cut at its edges.

        Returns:
            float32 [F, 4]: left, top, right, bottom.
        """
        inside = self._object()[:, 3] > 0.5
        height, width = self.size
        out = []
        for cells, extent in ((inside.any(1), width), (inside.any(2), height)):
            first = cells.float().argmax(1)
            last = extent - cells.flip(1).float().argmax(1)
            out.append((first, last))
        (left, right), (top, bottom) = out
        return torch.stack([left, top, right, bottom], 1).float()

    def _photograph(self) -> Tensor:
        """Draw the background, [F, 3, H, W]."""
        height, width = self.size
        x, y = (2 * self.x - width) / max(self.size), (2 * self.y - height) / max(self.size)
        cos, sin = (f(self.camera_turn)[:, None, None] for f in (torch.cos, torch.sin))
        zoom, window = self.zoom[:, None, None], self.window[:, :, None, None]
        grid = torch.stack(
            [window[:, 0] + zoom * (cos * x - sin * y), window[:, 1] + zoom * (sin * x + cos * y)],
            -1,
        )
        photos = self.photo.expand(len(grid), -1, -1, -1)
        return F.grid_sample(photos, grid, align_corners=False, padding_mode="reflection")

    def _object(self) -> Tensor:
        """Draw the object with its opacity, [F, 4, H, W]."""
        uv = self.pose.to_object(self.x, self.y, self.aspect)
        sprites = self.sprite.expand(len(uv), -1, -1, -1)
        return F.grid_sample(sprites, uv, align_corners=False, padding_mode="zeros")

    def _capsules(self, ends: Tensor, radii: Tensor, color: Tensor) -> tuple[Tensor, Tensor]:
        radii = radii[:, None] * self.pose.half_width[:, None]
        return draw_capsules(self.x, self.y, self.pose.to_pixels(ends), radii, color)


def _path(rng: Generator, frames: int, low: float, high: float) -> np.ndarray:
    """Move smoothly between two random values, with a swing on the way, within bounds: [frames]."""
    time = np.linspace(0, 1, frames)
    start, end = rng.uniform(low, high, 2)
    swing = 0.15 * (high - low) * np.sin(2 * np.pi * (rng.uniform(0.5, 1.5) * time + rng.random()))
    return np.clip(start + (end - start) * (time - np.sin(2 * np.pi * time) / 8) + swing, low, high)
