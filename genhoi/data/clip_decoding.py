"""One clip's files decoded: in the samples' size, with the picture of its object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genhoi.conditioning.grid import STRIDES
from genhoi.data.folders import ClipFiles
from genhoi.media import (
    Clip,
    ResizeMode,
    read_clip,
    read_image,
    read_mask,
    resize_clip,
    resize_mask,
)
from genhoi.media.image import BACKGROUND

__all__ = ["DecodedClip", "decode_clip"]


@dataclass(frozen=True)
class DecodedClip:
    """A clip from its first frame on, in the samples' size.

    Args:
        clip: F frames.
        mask: bool [F, H, W].
        object_mask: bool [F, H, W], or None.
        object: uint8 [h, w, 3].
    """

    clip: Clip
    mask: Tensor
    object_mask: Tensor | None
    object: Tensor


def decode_clip(
    files: ClipFiles, stop: int, size: tuple[int, int] | None, *, resize: ResizeMode
) -> tuple[DecodedClip, str]:
    """Read a clip's first frames and all that belongs to them.

    Args:
        files: of the clip.
        stop: number of frames.
        size: (height, width); None: the clip's, rounded down to whole tokens.
        resize: "crop" or "exact", as in `resize_clip`.

    Returns:
        The clip, and a sentence on its mask, "" where nothing is to be said.

    Raises:
        ValueError: a file is broken, or the object is to be cut out by an empty mask.
    """
    clip = read_clip(files.video, max_frames=stop)
    if clip.num_frames != stop:
        raise ValueError(f"{files.video}: broken, {clip.num_frames} of {stop} frames can be read")
    if size is None:
        size = (STRIDES.side(clip.height), STRIDES.side(clip.width))
    mask = read_mask(files.mask, like=clip, max_frames=stop)
    inside = None
    if files.object_mask is not None:
        inside = read_mask(files.object_mask, like=clip, max_frames=stop)
    decoded = DecodedClip(
        clip=resize_clip(clip, size, mode=resize),
        mask=resize_mask(mask, size, mode=resize),
        object_mask=None if inside is None else resize_mask(inside, size, mode=resize),
        object=_picture(files, clip, mask if inside is None else inside),
    )
    return decoded, _mask_note(files.name, mask, decoded.mask, resize)


def _mask_note(name: str, stored: Tensor, resized: Tensor, resize: ResizeMode) -> str:
    """Say that a mask is empty, or how much of it was cut off (above the rounding of edges)."""
    if not stored.any():
        return f"{name}: the mask is empty."
    if resize == "exact":
        return ""
    scale = max(new / old for new, old in zip(resized.shape[1:], stored.shape[1:], strict=True))
    lost = 1 - int(resized.sum()) / (int(stored.sum()) * scale**2)
    return f"{name}: {lost:.0%} of the mask cut off with the sides." if lost > 0.02 else ""


def _picture(files: ClipFiles, clip: Clip, inside: Tensor) -> Tensor:
    """Read the object's picture, or cut it out of the frame with the most masked pixels."""
    if files.object is None:
        areas = inside.sum((1, 2))
        best = int((areas == areas.max()).nonzero()[0])
        return _cut_out(clip.frames[best], inside[best], files.object_mask or files.mask)
    if files.object.is_dir():
        picture = read_clip(files.object, max_frames=1).frames[0]
    else:
        picture = read_image(files.object)
    if files.object_cutout is None:
        return picture
    mask = read_mask(files.object_cutout, like=Clip(picture[None]), max_frames=1)[0]
    return _cut_out(picture, mask, files.object_cutout)


def _cut_out(picture: Tensor, mask: Tensor, path: Path) -> Tensor:
    """Cut uint8 [H, W, 3] to the bounding box of a bool mask [H, W], grey outside the mask."""
    if not mask.any():
        raise ValueError(f"{path}: empty where the object is to be cut out")
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    box = (
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )
    grey = torch.full_like(picture, BACKGROUND)
    return torch.where(mask[..., None], picture, grey)[box].contiguous()
