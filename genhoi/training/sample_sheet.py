"""The sheet of samples: what a model in training was given, and what it made, with titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genhoi.extras import needed_for
from genhoi.media import fit_image

__all__ = ["SheetRow", "draw_sheet"]

_TITLES = ("object", "source", "what the model was given", "what it made")
_FRAMES = 4  # of a clip
_LEAST_SIDE, _MOST_SIDE = 96, 160  # of a frame's long side, in pixels; titles need room
_GAP = 8
_HEAD, _NAME = 24, 22  # height of the titles, and of a row's name
_INK, _QUIET = (20, 20, 20), (90, 90, 90)


@dataclass(frozen=True)
class SheetRow:
    """One clip of the sheet.

    Args:
        name: of the clip.
        picture: uint8 [h, w, 3], of the object.
        source, given, made: uint8 [F, H, W, 3], of one length and size.
    """

    name: str
    picture: Tensor
    source: Tensor
    given: Tensor
    made: Tensor


def draw_sheet(rows: Sequence[SheetRow]) -> Tensor:
    """Draw a row for each clip, below the titles of its columns.

    A row is the object's picture, then four frames, evenly spaced, of the source, of what the model
    was given, and of what it made. Above it are the clip's name and the frames' numbers.

    Args:
        rows: at least one, all of one size.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ImportError: Pillow is not installed.
    """
    with needed_for("drawing"):
        from PIL import Image, ImageDraw, ImageFont
    width, height = _cell(rows[0].source)
    lefts = [_GAP]
    for count in (1, _FRAMES, _FRAMES, _FRAMES):
        lefts.append(lefts[-1] + count * width + _GAP)
    sheet = Image.new("RGB", (lefts[-1], _HEAD + len(rows) * (_NAME + height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    title, small = ImageFont.load_default(size=13), ImageFont.load_default(size=11)
    for text, left in zip(_TITLES, lefts, strict=False):
        draw.text((left, 6), text, fill=_INK, font=title)
    for number, row in enumerate(rows):
        top = _HEAD + number * (_NAME + height + _GAP)
        places = torch.linspace(0, len(row.source) - 1, _FRAMES).round().long().tolist()
        frames = f"{row.name}: frames {', '.join(map(str, places))}"
        draw.text((lefts[0], top + 5), frames, fill=_QUIET, font=small)
        clips = (row.source, row.given, row.made)
        groups = [[row.picture], *([clip[i] for i in places] for clip in clips)]
        for left, group in zip(lefts, groups, strict=False):
            fitted = torch.cat([fit_image(x.cpu(), (height, width)) for x in group], dim=1)
            sheet.paste(Image.fromarray(fitted.numpy()), (left, top + _NAME))
    return torch.from_numpy(np.array(sheet))


def _cell(frames: Tensor) -> tuple[int, int]:
    """Choose a frame's width and height in the sheet."""
    height, width = frames.shape[1:3]
    long = max(height, width)
    scale = min(max(long, _LEAST_SIDE), _MOST_SIDE) / long
    return max(1, round(width * scale)), max(1, round(height * scale))
