"""Backgrounds and objects of the flat clips: photographs, and sprites with a texture each.

Training and test draw from photographs and letters that have nothing in common.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genhoi.data.photographs import PHOTO_SIDE, Split, photograph

__all__ = ["LETTERS", "SPRITE_SIDE", "background", "sprite"]

Color = tuple[int, int, int]

LETTERS: dict[Split, str] = {"train": "ABCDEFGHIJKLMNOPQR", "test": "STUVWXYZ"}

SPRITE_SIDE = 64


def background(rng: Generator, split: Split) -> Tensor:
    """Choose a photograph, colours shuffled or kept: float32 [3, 256, 256], 0 to 1."""
    pixels = np.asarray(photograph(rng, split), np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[..., rng.permutation(3)]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def sprite(rng: Generator, split: Split) -> tuple[Tensor, float]:
    """Draw an object, upright.

    Returns:
        float32 [4, 64, 64], colours and opacity from 0 to 1, over a square from -1 to 1; and the
        object's height over its width.
    """
    kinds = (_logo, _stripes, _letter, _photo)
    texture = kinds[rng.integers(len(kinds))](rng, split)
    rgb = torch.from_numpy(np.asarray(texture, np.float32) / 255).permute(2, 0, 1)
    alpha, round_ = _silhouette(rng)
    # Lit from the upper left, darker where a round body turns away.
    u = _raster()[0]
    rgb = rgb * (1 - 0.3 * round_ * u.square() - 0.06 * u)
    return torch.cat([rgb.clamp(0, 1), alpha[None]]), float(rng.uniform(0.85, 1.4))


def _raster() -> tuple[Tensor, Tensor]:
    """Give u [64], to the right, and v [64, 1], downwards; both from -1 to 1."""
    u = (torch.arange(SPRITE_SIDE) + 0.5) / SPRITE_SIDE * 2 - 1
    return u, u[:, None]


def _silhouette(rng: Generator) -> tuple[Tensor, float]:
    """Draw the opacity [64, 64] of a box, can, cup or bottle; tell how round it is, from 0 to 1."""
    u, v = _raster()
    power = float(rng.uniform(2.5, 9))
    width = 1 + float(rng.uniform(-0.25, 0.25)) * v
    if rng.random() < 0.3:  # a neck
        top = float(rng.uniform(-0.6, -0.2))
        width = width * (1 - float(rng.uniform(0.3, 0.5)) * torch.sigmoid((top - v) * 14))
    width = (width / width.max()).clamp(min=0.1)
    inside = (u / width).abs() ** power + v.abs() ** power
    return torch.sigmoid((1 - inside) * 12), float(rng.random())


# ----------------------------------------------------------------------------------------- textures


def _color(rng: Generator) -> Color:
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.35, 1), rng.uniform(0.3, 1))
    return tuple(int(255 * c) for c in rgb)  # type: ignore[return-value]


def _far_color(rng: Generator, from_: Color) -> Color:
    """Draw a colour that can be told from another."""
    while True:
        color = _color(rng)
        if sum(abs(a - b) for a, b in zip(color, from_, strict=True)) > 180:
            return color


def _plain(rng: Generator) -> tuple[Image.Image, ImageDraw.ImageDraw, Color]:
    color = _color(rng)
    image = Image.new("RGB", (SPRITE_SIDE, SPRITE_SIDE), color)
    return image, ImageDraw.Draw(image), color


def _logo(rng: Generator, split: Split) -> Image.Image:
    """Draw two or three large shapes."""
    image, draw, color = _plain(rng)
    for _ in range(rng.integers(2, 4)):
        x, y = (int(i) for i in rng.integers(8, 56, 2))
        r, fill = int(rng.integers(12, 24)), _far_color(rng, color)
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        elif kind == 1:
            draw.rectangle([x - r, y - r // 2, x + r, y + r // 2], fill=fill)
        else:
            draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    return image


def _stripes(rng: Generator, split: Split) -> Image.Image:
    first = _color(rng)
    colors = np.array([first, _far_color(rng, first)], np.float32)
    u, v = _raster()
    turn, period = rng.uniform(0, np.pi), rng.uniform(0.5, 1.1)
    along = (np.cos(turn) * u + np.sin(turn) * v).numpy() / period + rng.random()
    return Image.fromarray(colors[(along % 1 < 0.5).astype(int)].astype(np.uint8))


def _letter(rng: Generator, split: Split) -> Image.Image:
    image, draw, color = _plain(rng)
    letter = LETTERS[split][rng.integers(len(LETTERS[split]))]
    font = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans-Bold.ttf")
    half = SPRITE_SIDE / 2
    draw.text(
        (half, half),
        letter,
        fill=_far_color(rng, color),
        font=ImageFont.truetype(str(font), int(rng.integers(44, 56))),
        anchor="mm",
    )
    return image


def _photo(rng: Generator, split: Split) -> Image.Image:
    photo = photograph(rng, split)
    side = int(rng.integers(60, 140))
    left, top = (int(i) for i in rng.integers(0, PHOTO_SIDE - side, 2))
    crop = photo.resize(
        (SPRITE_SIDE, SPRITE_SIDE), Image.Resampling.BOX, box=(left, top, left + side, top + side)
    )
    return Image.fromarray(np.asarray(crop)[..., rng.permutation(3)].copy())
