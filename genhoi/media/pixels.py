"""Pixels as a codec takes them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pixel_values"]


def pixel_values(frames: Tensor) -> Tensor:
    """Return frames as float32 in [-1, 1].

    Args:
        frames: uint8, 0 to 255; or floating, in [-1, 1] already.

    Raises:
        TypeError: another dtype. ValueError: values outside.
    """
    if frames.dtype == torch.uint8:
        return frames.float() / 127.5 - 1
    if not frames.is_floating_point():
        raise TypeError(f"frames: got {frames.dtype}, wanted torch.uint8 or a floating type")
    if frames.numel() and float(frames.abs().max()) > 1:
        raise ValueError(
            f"frames: got values from {float(frames.min()):g} to {float(frames.max()):g}, wanted "
            f"-1 to 1"
        )
    return frames.float()
