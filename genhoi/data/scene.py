"""The scene of a synthetic clip: a hand turns a product before a photograph out of focus.

Everything is drawn from one generator's numbers in a fixed order, so the order of the lines in
`Scene.__init__` is part of what a clip looks like: product, camera, motion, light, hand,
background, exposure, and the view of the object's picture.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from genhoi.data.hand import make_hand
from genhoi.data.motion import as_tensor, light_from, smooth_path, turned
from genhoi.data.painting import (
    ANY,
    CHANNELS,
    HAND,
    OBJECT,
    Capsules,
    Posed,
    paint_capsules,
    paint_product,
)
from genhoi.data.photographs import Split, background
from genhoi.data.products import Product, some_product
from genhoi.data.raycast import Camera, Canvas
from genhoi.media.image import BACKGROUND

__all__ = ["Scene"]

# Where in a pixel, and when in a frame, a sample is taken: (x, y) in pixels, time in frames.
_SHIFTS = ((-0.125, -0.375), (0.375, -0.125), (0.125, 0.375), (-0.375, 0.125))
_MOMENTS = (-0.22, 0.08, -0.08, 0.22)
_SAMPLES = len(_SHIFTS)
_CHUNK = 1_000_000  # samples that are drawn at once: what the processor's cache likes
_PICTURE = 112  # pixels, the longer side of the object in its own picture
_MARGIN = 8
_SPAN = 48  # frames of a whole motion; a shorter clip shows its beginning, a longer one is slower
_MOST_TURNED = np.radians(32)  # beyond this the object's picture hides the motif


class Scene:
    """Draws one clip from its random numbers.

    Args:
        rng: of the clip.
        split: whose photographs and products are used.
        frames: of the clip.
        size: (height, width) in pixels.
    """

    def __init__(self, rng: Generator, split: Split, frames: int, size: tuple[int, int]) -> None:
        self.size, self.frames = size, frames
        height, width = size
        side = min(size)
        moments = (np.arange(frames)[:, None] + np.array(_MOMENTS)).reshape(-1)
        span = max(frames - 1, _SPAN)
        path = partial(smooth_path, rng, moments / span)

        self.product = product = some_product(rng, split)
        self.focal = float(0.5 * side / np.tan(np.radians(rng.uniform(30, 50)) / 2))
        unit = _unit_in_pixels(rng, product, side)
        self.texture = product.texture(4.4 * unit)

        distance = self.focal / unit * path(0.92, 1.12)
        x, y = width * path(0.36, 0.64), height * path(0.38, 0.58)
        yaw = np.radians(rng.uniform(-8, 8) + path(-32, 32))
        pitch, roll = np.radians(8 + path(-14, 14)), np.radians(path(-16, 16))
        center = np.stack(
            [(x - width / 2) / self.focal, (y - height / 2) / self.focal, np.ones_like(x)], -1
        )
        self.posed = Posed(
            turn=turned(yaw, pitch, roll),
            center=as_tensor(center * distance[:, None]),
            light=light_from(path(-0.6, 0.6), path(-0.9, -0.3)),
        )

        hand_size = float(np.clip(side * rng.uniform(0.225, 0.275) / unit, 0.75, 1.4))
        self.left = bool(rng.random() < 0.5)
        self.hand = make_hand(rng, path, product.solid, grip=product.grip, size=hand_size)
        # Round things turn in the hand.
        self.grip_turn = turned(yaw if product.solid.square else 0.5 * yaw, pitch, roll)
        lean = float(rng.uniform(-0.3, 0.3))
        away = (1.2 + lean, 3.6, 0.9) if self.hand.down else (3.4, 2.3 + lean, 0.6)
        self.elbow = self.posed.center + self._mirror() * torch.tensor(away) * max(1.0, hand_size)

        self.photo = background(rng, split)
        still = partial(smooth_path, rng, np.arange(frames) / span)
        self.zoom, self.camera_turn = as_tensor(still(0.5, 0.8)), as_tensor(still(-0.06, 0.06))
        self.window = as_tensor(np.stack([still(-0.2, 0.2), still(-0.2, 0.2)], -1))
        tint = np.stack([still(0.94, 1.06) for _ in range(3)], -1)
        self.exposure = as_tensor(still(0.85, 1.15)[:, None] * tint)

        self.yaw = yaw
        self.picture_angles = _other_view(rng, float(yaw[0]))
        self.picture_light = light_from(rng.uniform(-0.6, 0.6, 1), rng.uniform(-0.9, -0.3, 1))

    def draw(self, *, hand: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw the clip.

        Args:
            hand: False leaves the hand and its arm away.

        Returns:
            Frames, uint8 [F, H, W, 3]; the object's and the hand's pixels, bool [F, H, W] each;
            and the object's boxes, fingers or not, float32 [F, 4]: left, top, right, bottom.
        """
        height, width = self.size
        step = max(1, _CHUNK // (height * width * _SAMPLES))
        limbs = self._limbs() if hand else []
        pictures, wholes = [], []
        for start in range(0, self.frames, step):
            count = min(step, self.frames - start)
            views = slice(start * _SAMPLES, (start + count) * _SAMPLES)
            canvas = Canvas(count * _SAMPLES, self.size, CHANNELS)
            camera = _camera(self.focal, self.size, count)
            posed = self.posed[views]
            self._paint(canvas, camera, posed, self.texture)
            samples = canvas.views().view(count, _SAMPLES, height, width, CHANNELS)
            wholes.append(samples[..., OBJECT].mean(1))
            for capsules in limbs:
                paint_capsules(canvas, camera, capsules[views], posed.light)
            pictures.append(samples.mean(1))
        picture = torch.cat(pictures)
        whole = torch.cat(wholes) >= 0.5
        seen = picture[..., OBJECT] + picture[..., HAND] >= 0.5
        object_ = seen & whole & (picture[..., OBJECT] >= picture[..., HAND])
        return self._finished(picture), object_, seen & ~object_, _boxes(whole)

    def picture(self) -> Tensor:
        """Draw the object alone from another side, on grey: uint8 [h, w, 3]."""
        half = self.product.solid.half
        reach = max(half[1] + 0.15, half[0] + (0.3 if self.product.handle is not None else 0.0))
        away = 7.0
        side = 3 * _PICTURE // 2  # more than it needs, whatever its shape
        canvas = Canvas(_SAMPLES, (side, side), CHANNELS)
        camera = _camera(_PICTURE / 2 / reach * away, (side, side), 1)
        posed = Posed(
            turn=turned(*(np.array([angle]) for angle in self.picture_angles)),
            center=torch.tensor([[0.0, 0.0, away]]),
            light=self.picture_light,
        )
        posed = posed[[0] * _SAMPLES]
        self._paint(canvas, camera, posed, self.product.texture(2.2 * _PICTURE))
        picture = canvas.views().mean(0)
        image = picture[..., :3] + (1 - picture[..., ANY:]) * (BACKGROUND / 255)
        left, top, right, bottom = _boxes(picture[None, ..., OBJECT] >= 0.5)[0].long().tolist()
        cut = image[top - _MARGIN : bottom + _MARGIN, left - _MARGIN : right + _MARGIN]
        return _bytes(cut)

    def _paint(self, canvas: Canvas, camera: Camera, posed: Posed, texture: Tensor) -> None:
        paint_product(canvas, camera, posed, self.product, texture=texture, mirrored=self.left)

    def _mirror(self) -> Tensor:
        return torch.tensor([-1.0 if self.left else 1.0, 1.0, 1.0])

    def _limbs(self) -> list[Capsules]:
        """Give hand, wrist and sleeve in the camera's frame, for all views."""

        def placed(points: np.ndarray) -> Tensor:
            local = as_tensor(points) * self._mirror()
            turned_ = torch.einsum("tij,...tj->...ti", self.grip_turn, local)
            return turned_ + self.posed.center

        skin, sleeve = as_tensor(self.hand.skin), as_tensor(self.hand.sleeve)
        wrist = placed(self.hand.wrist)
        cuff = torch.lerp(wrist, self.elbow, 0.16)
        radius = self.hand.wrist_radius
        bare, clothed = (radius, 1.1 * radius), (1.3 * radius, 1.8 * radius)
        ends = torch.stack([placed(capsule.ends) for capsule in self.hand.hand])
        return [
            Capsules(ends, [capsule.radii for capsule in self.hand.hand], skin, HAND),
            Capsules(torch.stack([wrist, cuff])[None], [bare], skin, ANY),
            Capsules(torch.stack([cuff, self.elbow])[None], [clothed], sleeve, ANY),
        ]

    def _finished(self, picture: Tensor) -> Tensor:
        """Put what was drawn before the photograph and expose it: uint8 [F, H, W, 3]."""
        before = picture[..., :3] * self._contact(picture)
        behind = self._photograph().permute(0, 2, 3, 1)
        image = before + (1 - picture[..., ANY:]) * behind
        return _bytes(image * self.exposure[:, None, None])

    def _contact(self, picture: Tensor) -> Tensor:
        """Darken the object near the hand: factors [F, H, W, 1]."""
        reach = 2 * max(1, min(self.size) // 42) + 1
        near = F.avg_pool2d(picture[:, None, ..., HAND], reach, 1, reach // 2)[:, 0]
        return (1 - 0.55 * near * picture[..., OBJECT]).unsqueeze(-1)

    def _photograph(self) -> Tensor:
        """Draw the background, [F, 3, H, W]."""
        height, width = self.size
        x = (2 * (torch.arange(width) + 0.5) - width) / max(self.size)
        y = (2 * (torch.arange(height)[:, None] + 0.5) - height) / max(self.size)
        cos, sin = (f(self.camera_turn)[:, None, None] for f in (torch.cos, torch.sin))
        zoom, window = self.zoom[:, None, None], self.window[:, :, None, None]
        grid = torch.stack(
            [window[:, 0] + zoom * (cos * x - sin * y), window[:, 1] + zoom * (sin * x + cos * y)],
            -1,
        )
        photos = self.photo.expand(len(grid), -1, -1, -1)
        return F.grid_sample(photos, grid, align_corners=False, padding_mode="reflection")


def _camera(focal: float, size: tuple[int, int], frames: int) -> Camera:
    return Camera(focal, size, torch.tensor(_SHIFTS).repeat(frames, 1))


def _unit_in_pixels(rng: Generator, product: Product, side: int) -> float:
    """Choose how large a product looks, so that all have about the same area."""
    width, height, _ = product.solid.half
    area = float(rng.uniform(0.11, 0.17)) * side * side
    unit = np.sqrt(area / (4 * width * height * 0.88))
    return float(min(unit, 0.58 * side / (2 * height)))


def _other_view(rng: Generator, yaw: float) -> tuple[float, float, float]:
    """Choose yaw, pitch and roll of the object's picture, 15 to 40 degrees off the clip's start."""
    if abs(yaw) > np.radians(5):
        side = -np.sign(yaw)
    else:
        side = 1.0 if rng.random() < 0.5 else -1.0
    away = rng.uniform(np.radians(15), min(np.radians(40), _MOST_TURNED - side * yaw))
    pitch, roll = np.radians(rng.uniform(0, 14)), np.radians(rng.uniform(-5, 5))
    return float(yaw + side * away), float(pitch), float(roll)


def _boxes(inside: Tensor) -> Tensor:
    """Give the rectangles round masks [F, H, W]: float32 [F, 4], left, top, right, bottom."""
    sides = []
    for cells in (inside.any(1), inside.any(2)):
        first = cells.float().argmax(1)
        last = cells.shape[1] - cells.flip(1).float().argmax(1)
        sides.append((first, last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float()


def _bytes(image: Tensor) -> Tensor:
    return image.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous()
