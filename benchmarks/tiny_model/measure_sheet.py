"""Contact sheets of edits, every pixel as it is: no scaling hides or makes a fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from genhoi.conditioning.condition import paint_grey
from genhoi.data.sample import HOISample
from genhoi.media import fit_image, write_image

__all__ = ["draw_sheet"]

_FRAMES = 8
_STRIP = 14  # pixels, for a row's name
_WHITE = 255


def draw_sheet(path: Path, sample: HOISample, edited: Tensor, without: Tensor) -> None:
    """Draw the source, what was hidden, the edit, and the edit without a reference, as a PNG.

    The object's picture, fitted into a frame, stands at the left of the edit.

    Args:
        path: of the PNG; an existing one is replaced.
        sample: the clip.
        edited, without: uint8 [F, H, W, 3].
    """
    frames = sample.clip.frames
    picks = sorted({round(i) for i in np.linspace(0, len(frames) - 1, _FRAMES)})
    picture = fit_image(sample.object, (sample.clip.height, sample.clip.width))
    blank = torch.full_like(picture, _WHITE)
    rows = [
        _row(f"true clip {sample.name}, frames {', '.join(map(str, picks))}", blank, frames[picks]),
        _row("hidden", blank, paint_grey(frames[picks], sample.mask[picks])),
        _row("edit with the object", picture, edited[picks]),
        _row("edit without the object", blank, without[picks]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, torch.cat(rows), overwrite=True)


def _row(name: str, first: Tensor, frames: Tensor) -> Tensor:
    """Lay pictures side by side below their name."""
    line = torch.cat([first, *frames], dim=1)
    strip = Image.new("RGB", (line.shape[1], _STRIP), "white")
    ImageDraw.Draw(strip).text((2, 1), name, fill="black")
    return torch.cat([torch.from_numpy(np.array(strip)), line])
