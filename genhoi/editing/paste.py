"""Takes the box of a crop out of a clip, and puts what became of it back."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.editing.crop import Crop
from genhoi.media import resize_image, resize_mask

__all__ = ["cut_boxes", "cut_frames", "cut_masks", "paste", "soft_mask"]

_LEAST, _MOST = 2, 8
_OF_SIDE = 60


def cut_boxes(frames: Tensor, crop: Crop) -> Tensor:
    """Cut the box out of [F, H, W, ...], as it is."""
    return torch.stack([frame[at] for frame, at in zip(frames, crop.regions(), strict=True)])


def cut_frames(frames: Tensor, crop: Crop) -> Tensor:
    """Cut the box out of frames, uint8 [F, H, W, 3], at the size that the model works at."""
    if crop.is_whole and crop.frame == crop.size:
        return frames
    return torch.stack([resize_image(box, crop.size) for box in cut_boxes(frames, crop)])


def cut_masks(mask: Tensor, crop: Crop) -> Tensor:
    """Cut the box out of a mask, bool [F, H, W], as `cut_frames` does, by nearest neighbour."""
    return resize_mask(cut_boxes(mask, crop), crop.size, mode="exact")


def paste(
    source: Tensor, edited: Tensor, mask: Tensor, crop: Crop, *, keep_background: bool
) -> Tensor:
    """Put edited boxes into the frames that they were cut from.

    Args:
        source: uint8 [F, H, W, 3].
        edited: uint8 [F, *crop.size, 3].
        mask: bool [F, H, W], what was generated.
        crop: where the boxes lie.
        keep_background: take only the mask out of them, with a soft edge: the source's exact bytes
            stay wherever the edge doesn't reach. Else the whole box, with a soft edge to the rest
            of the frame.

    Returns:
        uint8 [F, H, W, 3].
    """
    if crop.is_whole and crop.frame == crop.size and not keep_background:
        return edited
    out = source.clone()
    feather = min(_MOST, max(_LEAST, min(crop.frame) // _OF_SIDE))
    for frame, new, inside, corner, region in zip(
        out, edited, mask, crop.corners.tolist(), crop.regions(), strict=True
    ):
        share = _ramp(crop, corner, feather)
        if keep_background:
            share = share * soft_mask(inside[region], feather)
        resized = resize_image(new, crop.box).float()
        frame[region] = torch.lerp(frame[region].float(), resized, share[..., None]).round().byte()
    return out


def soft_mask(inside: Tensor, feather: int) -> Tensor:
    """Grow a mask by a number of pixels and blur it as far; it stays 1 inside.

    Args:
        inside: bool [H, W].
        feather: pixels; the edge is twice as wide.

    Returns:
        float32 [H, W], 0 to 1.
    """
    side = 2 * feather + 1
    share = inside[None].float()
    # Rows, then columns: the same, and ten times as fast.
    for pool in (F.max_pool2d, partial(F.avg_pool2d, count_include_pad=False)):
        for window, padding in (((side, 1), (feather, 0)), ((1, side), (0, feather))):
            share = pool(share, window, stride=1, padding=padding)
    return share[0]


def _ramp(crop: Crop, corner: list[int], feather: int) -> Tensor:
    """Rise from 0 to 1 over the first pixels of a box, except where it ends with the frame."""
    axes = []
    for begin, side, whole in zip(corner, crop.box, crop.frame, strict=True):
        rise = torch.ones(side)
        steps = (torch.arange(2 * feather) + 1) / (2 * feather + 1)
        steps = steps[:side]
        if begin > 0:
            rise[: len(steps)] *= steps
        if begin + side < whole:
            rise[side - len(steps) :] *= steps.flip(0)
        axes.append(rise)
    return axes[0][:, None] * axes[1]
