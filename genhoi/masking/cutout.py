"""The picture of an object, cut out onto the grey that the model expects around it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from genhoi.conditioning.condition import GREY
from genhoi.masking.graph_cut import Seeds, cut_boxes
from genhoi.masking.pictures import work_size

__all__ = ["CutOut", "cut_out"]

_ASSUMED = 0.08  # of each side: the margin around the box that is assumed
_MARGIN = 0.04  # of the object's long side, left around it
_SOLID = 127  # an alpha above it is the object
_NOTHING, _EVERYTHING = 0.02, 0.95  # of the box, or of a picture with transparency


@dataclass(frozen=True)
class CutOut:
    """An object on grey.

    Args:
        image: uint8 [h, w, 3], cropped to the object with a margin.
        mask: bool [H, W], the object in the photograph.
        notes: sentences for the user: what was assumed, and what looks wrong.
    """

    image: Tensor
    mask: Tensor
    notes: tuple[str, ...]


def cut_out(
    photo: Tensor,
    *,
    alpha: Tensor | None = None,
    box: tuple[float, float, float, float] | None = None,
) -> CutOut:
    """Cut an object out of a photograph, onto grey 128.

    Transparency says what the object is, where there is some; else GrabCut looks for it in the box.

    Example:
        >>> import torch
        >>> from genhoi.masking.cutout import cut_out
        >>> photo = torch.full((60, 80, 3), 200, dtype=torch.uint8)
        >>> photo[20:40, 30:50] = torch.tensor([10, 40, 160], dtype=torch.uint8)
        >>> found = cut_out(photo, box=(26, 16, 28, 28))
        >>> bool(found.mask[30, 40]), bool(found.mask[10, 10]), found.notes
        (True, False, ())

    Args:
        photo: uint8 [H, W, 3].
        alpha: uint8 [H, W], 255 where it is opaque; None or all opaque: there is no transparency.
        box: x, y, width, height around the object, in pixels. None: the whole photograph but for a
            margin, which the notes say.

    Raises:
        TypeError: `photo` is not uint8.
        ValueError: a shape is wrong, the box reaches outside, or there is no object at all.
    """
    if photo.dtype != torch.uint8:
        raise TypeError(f"photo: got {photo.dtype}, want torch.uint8")
    if photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
        raise ValueError(f"photo: got shape {tuple(photo.shape)}, want [H, W, 3]")
    height, width = photo.shape[:2]
    notes = []
    if box is not None:
        _check_box(box, height, width)
    if alpha is not None and bool((alpha < 255).any()):
        soft = alpha.numpy().astype(np.float32) / 255
        if box is not None:
            notes.append("The box counts for nothing: the picture's transparency cuts it out.")
        whole = 1.0
    else:
        if box is None:
            box = _assumed(height, width)
            sides = ",".join(f"{side:g}" for side in box)
            notes.append(f"No box was given, so {sides} was assumed; --box x,y,w,h says it.")
        soft = _searched(photo.numpy(), box)
        whole = box[2] * box[3] / (height * width)
    mask = soft > _SOLID / 255
    if not mask.any():
        raise ValueError("photo: found no object in it; a box around the object helps")
    share = float(mask.mean()) / whole
    if share < _NOTHING:
        notes.append(f"The cut-out is nearly nothing: {share:.1%} of where it was looked for.")
    if share > _EVERYTHING:
        notes.append(f"The cut-out is nearly everything: {share:.1%} of where it was looked for.")
    return CutOut(_on_grey(photo.numpy(), soft, mask), torch.from_numpy(mask), tuple(notes))


def _check_box(box: tuple[float, float, float, float], height: int, width: int) -> None:
    x, y, w, h = box
    if w < 2 or h < 2 or x < 0 or y < 0 or x + w > width or y + h > height:
        sides = ",".join(f"{side:g}" for side in box)
        raise ValueError(
            f"box: got {sides}, want x,y,width,height within the picture's {width}x{height} pixels"
        )


def _assumed(height: int, width: int) -> tuple[float, float, float, float]:
    x, y = round(_ASSUMED * width), round(_ASSUMED * height)
    return x, y, width - 2 * x, height - 2 * y


def _searched(photo: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """Find the object in a box: float32 [H, W], 0 to 1."""
    height, width = photo.shape[:2]
    scale, small = work_size(height, width)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(photo, small, interpolation=kind)
    left, top = int(box[0] * scale), int(box[1] * scale)
    right, bottom = round((box[0] + box[2]) * scale), round((box[1] + box[3]) * scale)
    right, bottom = min(small[0], max(left + 1, right)), min(small[1], max(top + 1, bottom))
    outside = np.ones(picture.shape[:2], bool)
    outside[top:bottom, left:right] = False
    nothing = Seeds(np.zeros_like(outside), outside)
    mask = cut_boxes(picture, [(left, top, right, bottom)], None, nothing).astype(np.float32)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.7)
    return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR))


def _on_grey(photo: np.ndarray, soft: np.ndarray, mask: np.ndarray) -> Tensor:
    """Put the object onto grey, and crop."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    margin = round(_MARGIN * max(w, h))
    blended = GREY + (photo.astype(np.float32) - GREY) * soft[..., None]
    crop = blended[y : y + h, x : x + w].round().clip(0, 255).astype(np.uint8)
    sides = ((margin, margin), (margin, margin), (0, 0))
    return torch.from_numpy(np.pad(crop, sides, constant_values=GREY))
