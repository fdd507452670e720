"""Whether frames, regions and pictures have the type and shape that a metric takes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_frames", "check_picture", "check_region"]


def check_frames(name: str, frames: Tensor) -> None:
    """Raise TypeError or ValueError unless the frames are uint8 [F, H, W, 3]."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"{name}: got {frames.dtype}, want torch.uint8")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{name}: got {tuple(frames.shape)}, want [F, H, W, 3] with no size zero")


def check_region(region: Tensor, shape: tuple[int, ...], name: str = "region") -> None:
    """Raise TypeError or ValueError unless the region is bool of this shape."""
    if region.dtype != torch.bool:
        raise TypeError(f"{name}: got {region.dtype}, want torch.bool")
    if tuple(region.shape) != shape:
        raise ValueError(f"{name}: got {tuple(region.shape)}, want {shape}")


def check_picture(picture: Tensor) -> None:
    """Raise TypeError or ValueError unless the picture is uint8 [h, w, 3]."""
    if picture.dtype != torch.uint8:
        raise TypeError(f"picture: got {picture.dtype}, want torch.uint8")
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"picture: got {tuple(picture.shape)}, want [h, w, 3] with no size zero")
