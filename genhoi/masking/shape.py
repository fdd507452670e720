"""Masks made wider, or into boxes."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["boxed", "grown"]

_SMOOTH = 4  # frames on each side that a box is averaged over


def grown(mask: Tensor, pixels: int) -> Tensor:
    """Widen a mask by so many pixels in every direction.

    Args:
        mask: bool [F, H, W].
        pixels: 0 or more.

    Raises:
        ValueError: `pixels` is negative.
    """
    if pixels < 0:
        raise ValueError(f"pixels: got {pixels}, want 0 or more")
    if pixels == 0:
        return mask
    planes = []
    for plane in mask.cpu().numpy():
        if not plane.any():  # there is no distance to nothing
            planes.append(plane)
            continue
        outside = (~plane).astype(np.uint8)
        planes.append(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= pixels)
    return torch.from_numpy(np.stack(planes))


def boxed(mask: Tensor) -> Tensor:
    """Fill the rectangle around each frame's mask, smoothly over frames.

    A side of the rectangle is the mean, over neighbouring frames, of the farthest that it reaches
    within as many frames around each, so it never cuts into the mask. Where there is no mask there
    is no rectangle.

    Args:
        mask: bool [F, H, W].
    """
    out = torch.zeros_like(mask)
    frames = mask.flatten(1).any(1).nonzero()[:, 0].tolist()
    if not frames:
        return out
    sides = np.array([_around(mask[frame]) for frame in frames], float)
    for low, column in ((True, 0), (True, 1), (False, 2), (False, 3)):
        sides[:, column] = _smooth(frames, sides[:, column], low=low)
    lows, highs = np.floor(sides[:, :2]).astype(int), np.ceil(sides[:, 2:]).astype(int)
    for frame, (left, top), (right, bottom) in zip(frames, lows, highs, strict=True):
        out[frame, top:bottom, left:right] = True
    return out


def _around(plane: Tensor) -> tuple[int, int, int, int]:
    """Give left, top, right and bottom of what is in a frame."""
    left, top, width, height = cv2.boundingRect(plane.cpu().numpy().astype(np.uint8))
    return left, top, left + width, top + height


def _smooth(frames: list[int], side: np.ndarray, *, low: bool) -> np.ndarray:
    numbers = np.array(frames)

    def near(i: int) -> np.ndarray:
        return np.abs(numbers - numbers[i]) <= _SMOOTH

    farthest = np.array([(np.min if low else np.max)(side[near(i)]) for i in range(len(numbers))])
    return np.array([farthest[near(i)].mean() for i in range(len(numbers))])
