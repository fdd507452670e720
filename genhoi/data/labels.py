"""Labels of the synthetic products: what is printed round them, with the main motif in front.

A label is one picture wrapped round a product: its columns go once round, from the middle of the
back over the left side, the front (its middle) and the right side; its rows go from top to bottom.
"""

from __future__ import annotations

import colorsys
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from genhoi.data.photographs import Split, photograph

__all__ = ["LABEL_HEIGHT", "LETTERS", "Band", "Color", "draw_label", "far_color", "some_color"]

Color = tuple[int, int, int]
Band = tuple[float, float, Color]  # top and bottom, 0 to 1 of the height

LETTERS: dict[Split, str] = {"train": "ABCDEFGHIJKLMNOPQR", "test": "STUVWXYZ"}
LABEL_HEIGHT = 256
_STRETCH = 1.6  # how much wider or taller than it is a letter may become
_WHITE, _BLACK = (244, 242, 236), (22, 22, 26)


def some_color(rng: Generator) -> Color:
    """Draw a colour, rarely a dull one."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.45, 1), rng.uniform(0.35, 1))
    return tuple(int(255 * c) for c in rgb)  # type: ignore[return-value]


def far_color(rng: Generator, from_: Color) -> Color:
    """Draw white, black or a colour that can be told from another by its brightness."""
    bright = _brightness(from_)
    if rng.random() < 0.5:
        return _WHITE if bright < 128 else _BLACK
    for _ in range(50):
        color = some_color(rng)
        if abs(_brightness(color) - bright) > 90:
            return color
    return _WHITE if bright < 128 else _BLACK


def _brightness(color: Color) -> float:
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def draw_label(
    rng: Generator,
    split: Split,
    *,
    around: float,
    front: float,
    printed: tuple[float, float],
    base: Color,
    bands: tuple[Band, ...] = (),
) -> Image.Image:
    """Draw what goes round a product.

    Args:
        rng: for all choices.
        split: whose letters and photographs are used.
        around: the way once round, in heights of the product.
        front: the width that is seen from the front, in heights.
        printed: top and bottom of the label proper, 0 to 1 of the height.
        base: the product's own colour, above and below the label.
        bands: rings of other colours, as a cap.

    Returns:
        RGB, 256 pixels high.
    """
    width = round(LABEL_HEIGHT * around)
    image = Image.new("RGB", (width, LABEL_HEIGHT), base)
    draw = ImageDraw.Draw(image)
    top, bottom = (round(LABEL_HEIGHT * part) for part in printed)
    ground = base if rng.random() < 0.3 else far_color(rng, base)
    ink = far_color(rng, ground)
    draw.rectangle([0, top, width, bottom], fill=ground)
    half = min(front, around / 2) * LABEL_HEIGHT / 2
    box = (width / 2 - half, top + 6.0, width / 2 + half, bottom - 6.0)
    if rng.random() < 0.4:  # rings at the label's edges
        ring = max(8, (bottom - top) // 10)
        color = far_color(rng, ground)
        draw.rectangle([0, top, width, top + ring], fill=color)
        draw.rectangle([0, bottom - ring, width, bottom], fill=color)
        box = (box[0], box[1] + ring, box[2], box[3] - ring)
    _back(rng, draw, box, width, ink)
    kind = rng.choice(5, p=[0.38, 0.2, 0.2, 0.1, 0.12])
    if kind == 0:
        _text(image, box, ink, _some_letters(rng, split, 1))
    elif kind == 1:
        _text(image, box, ink, _some_letters(rng, split, int(rng.choice([2, 2, 3]))))
    elif kind == 2:
        _logo(rng, draw, box, ground)
    elif kind == 3:
        _stripes(rng, image, (0, round(box[1]), width, round(box[3])), ground, ink)
        _emblem(rng, draw, box, far_color(rng, ink))
    else:
        _photo(rng, split, image, box)
    for start, end, color in bands:
        draw.rectangle([0, LABEL_HEIGHT * start, width, LABEL_HEIGHT * end], fill=color)
    return image


Box = tuple[float, float, float, float]


def _back(rng: Generator, draw: ImageDraw.ImageDraw, box: Box, width: int, ink: Color) -> None:
    """Print lines, as of small text, on the back; the seam lies in their middle."""
    half = (box[2] - box[0]) / 2 * 0.7
    rows = np.linspace(box[1], box[3], 2 * int(rng.integers(3, 6)) + 1)
    for y0, y1 in zip(rows[1::2], rows[2::2], strict=False):
        length = half * float(rng.uniform(0.5, 1))
        draw.rectangle([0, y0, length, (y0 + y1) / 2], fill=ink)
        draw.rectangle([width - half, y0, width, (y0 + y1) / 2], fill=ink)


@cache
def _font() -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans-Bold.ttf")
    return ImageFont.truetype(str(path), 100)


def _some_letters(rng: Generator, split: Split, count: int) -> str:
    return "".join(LETTERS[split][i] for i in rng.integers(len(LETTERS[split]), size=count))


def _text(image: Image.Image, box: Box, ink: Color, text: str) -> None:
    """Print letters as large as they fit: side by side or one below the other, a bit stretched."""
    width, height = box[2] - box[0], box[3] - box[1]
    best, scales = Image.new("L", (1, 1)), (0.0, 0.0)
    for arranged in (text, "\n".join(text)):
        edges = ImageDraw.Draw(best).multiline_textbbox((0, 0), arranged, _font(), spacing=10)
        left, top, right, bottom = (round(edge) for edge in edges)
        x, y = width / (right - left), height / (bottom - top)
        x, y = min(x, _STRETCH * y), min(y, _STRETCH * x)
        if x * y > scales[0] * scales[1]:
            scales = (x, y)
            best = Image.new("L", (right - left, bottom - top))
            ImageDraw.Draw(best).multiline_text(
                (-left, -top), arranged, fill=255, font=_font(), spacing=10, align="center"
            )
    size = (max(1, round(best.width * scales[0])), max(1, round(best.height * scales[1])))
    place = (round((box[0] + box[2] - size[0]) / 2), round((box[1] + box[3] - size[1]) / 2))
    image.paste(ink, place, best.resize(size, Image.Resampling.BILINEAR))


def _logo(rng: Generator, draw: ImageDraw.ImageDraw, box: Box, ground: Color) -> None:
    """Draw two or three large shapes over one another."""
    width, height = box[2] - box[0], box[3] - box[1]
    radius = min(width, height) / 2
    for _ in range(rng.integers(2, 4)):
        x = (box[0] + box[2]) / 2 + float(rng.uniform(-0.3, 0.3)) * width
        y = (box[1] + box[3]) / 2 + float(rng.uniform(-0.35, 0.35)) * height
        _shape(rng, draw, (x, y), radius * float(rng.uniform(0.45, 0.8)), far_color(rng, ground))


def _emblem(rng: Generator, draw: ImageDraw.ImageDraw, box: Box, color: Color) -> None:
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    _shape(rng, draw, middle, 0.42 * min(box[2] - box[0], box[3] - box[1]), color)


def _shape(
    rng: Generator, draw: ImageDraw.ImageDraw, at: tuple[float, float], r: float, color: Color
) -> None:
    x, y = at
    kind = rng.integers(4)
    if kind == 0:
        draw.ellipse([x - r, y - r, x + r, y + r], fill=color)
    elif kind == 1:
        draw.rectangle([x - r, y - 0.5 * r, x + r, y + 0.5 * r], fill=color)
    elif kind == 2:
        draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=color)
    else:
        draw.polygon([(x, y - r), (x + 0.7 * r, y), (x, y + r), (x - 0.7 * r, y)], fill=color)


def _stripes(
    rng: Generator, image: Image.Image, box: tuple[int, int, int, int], a: Color, b: Color
) -> None:
    """Wind stripes round the label; they meet at the seam."""
    width, height = box[2] - box[0], box[3] - box[1]
    turns, rows = int(rng.integers(0, 9)), float(rng.uniform(0.8, 2.5))
    rows = 0.0 if turns > 5 else rows * float(rng.choice([-1, 1]))
    u = np.arange(width) / width
    v = np.arange(height)[:, None] / LABEL_HEIGHT
    first = (turns * u + rows * v) % 1 < 0.5
    pixels = np.where(first[..., None], np.array(a, np.uint8), np.array(b, np.uint8))
    image.paste(Image.fromarray(pixels), box[:2])


def _photo(rng: Generator, split: Split, image: Image.Image, box: Box) -> None:
    """Print a part of a photograph, its colours shuffled."""
    photo = photograph(rng, split)
    left, top, right, bottom = (round(edge) for edge in box)
    width, height = right - left, bottom - top
    side = int(rng.integers(60, 130))
    cut = (side * min(1, width / height), side * min(1, height / width))
    x, y = (float(rng.uniform(0, photo.width - part)) for part in cut)
    part = photo.resize((width, height), Image.Resampling.BILINEAR, (x, y, x + cut[0], y + cut[1]))
    pixels = np.asarray(part)[..., rng.permutation(3)]
    image.paste(Image.fromarray(pixels.copy()), (left, top))
