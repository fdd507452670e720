"""Photographs for the synthetic clips' backgrounds and labels; scikit-image carries the files.

Training and test draw from photographs that have nothing in common.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageFilter
from torch import Tensor

from genhoi.extras import needed_for

__all__ = ["PHOTOGRAPHS", "PHOTO_SIDE", "Split", "background", "photograph"]

Split = Literal["train", "test"]

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "chelsea.png",
        "retina.jpg",
        "ihc.png",
        "brick.png",
        "grass.png",
        "motorcycle_left.png",
        "camera.png",
        "coins.png",
        "page.png",
    ),
    "test": ("coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "gravel.png"),
}
PHOTO_SIDE = 256
_BLUR = (3.5, 7.0)  # standard deviation, in pixels of the photograph


@cache
def _read(name: str) -> Image.Image:
    """Read a photograph's middle, square, RGB."""
    with needed_for("data synthetic"):
        folder = files("skimage") / "data"
    image = Image.open(str(folder / name)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BOX, box=box)


def photograph(rng: Generator, split: Split) -> Image.Image:
    """Choose a photograph of a split, mirrored or not: RGB, 256 x 256."""
    names = PHOTOGRAPHS[split]
    photo = _read(names[rng.integers(len(names))])
    return photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else photo


def background(rng: Generator, split: Split) -> Tensor:
    """Choose a photograph as seen out of focus, its colours shuffled or kept.

    Returns:
        float32 [3, 256, 256], 0 to 1.
    """
    photo = photograph(rng, split).filter(ImageFilter.GaussianBlur(float(rng.uniform(*_BLUR))))
    pixels = np.asarray(photo, np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[..., rng.permutation(3)]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()
