"""Clips, masks and images in another size."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genhoi.media.clip import Clip
from genhoi.media.image import BACKGROUND

__all__ = [
    "ResizeMode",
    "fit_image",
    "nearest",
    "resize_clip",
    "resize_image",
    "resize_mask",
    "same_shape",
]

ResizeMode = Literal["crop", "exact"]

_ROUNDED = 1.03


def resize_clip(clip: Clip, size: tuple[int, int], *, mode: ResizeMode = "crop") -> Clip:
    """Resize a clip to multiples of 16, as the model's token grid needs.

    Args:
        clip: the clip.
        size: (height, width) in pixels.
        mode: "crop" keeps the aspect and cuts what is too much off both ends alike; "exact"
            stretches.

    Raises:
        ValueError: a side is not a positive multiple of 16, or `mode` is unknown.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.zeros(5, 100, 200, 3, dtype=torch.uint8))
        >>> genhoi.resize_clip(clip, (48, 96))
        Clip(5 frames, 96x48, 24 fps)
    """
    _check_size(size, multiple=16)
    _check_mode(mode)
    if (clip.height, clip.width) == tuple(size):
        return clip
    scaled = _scaled_size((clip.height, clip.width), size, mode)
    frames = torch.stack([resize_image(frame, scaled) for frame in clip.frames])
    return Clip(_center_crop(frames, size).contiguous(), clip.fps)


def resize_mask(mask: Tensor, size: tuple[int, int], *, mode: ResizeMode = "crop") -> Tensor:
    """Resize a bool mask [F, H, W] as `resize_clip` resizes its clip, by nearest neighbour.

    Raises:
        TypeError: `mask` is not bool.
        ValueError: `mask` is not [F, H, W], a side is not a positive multiple of 16, or `mode` is
            unknown.

    Example:
        >>> import genhoi, torch
        >>> mask = torch.ones(5, 100, 200, dtype=torch.bool)
        >>> tuple(genhoi.resize_mask(mask, (48, 96)).shape)
        (5, 48, 96)
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, want torch.bool")
    if mask.ndim != 3:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, want [F, H, W]")
    _check_size(size, multiple=16)
    _check_mode(mode)
    scaled = _scaled_size((mask.shape[1], mask.shape[2]), size, mode)
    return _center_crop(nearest(mask, scaled)[..., None], size)[..., 0].contiguous()


def fit_image(image: Tensor, size: tuple[int, int], *, background: int = BACKGROUND) -> Tensor:
    """Scale an image, aspect kept, until it just fits into `size`; centre it on grey.

    This is how the model takes a picture of the object.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) in pixels.
        background: grey value around the image, 0 to 255.

    Raises:
        TypeError: `image` is not uint8.
        ValueError: a shape or size is wrong.

    Example:
        >>> import genhoi, torch
        >>> image = torch.full((10, 40, 3), 255, dtype=torch.uint8)
        >>> fitted = genhoi.fit_image(image, (32, 32))  # 8 rows of white between grey
        >>> tuple(fitted.shape), fitted[0, 0, 0].item(), fitted[16, 16, 0].item()
        ((32, 32, 3), 128, 255)
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"image: got {image.dtype}, want torch.uint8")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image: got shape {tuple(image.shape)}, want [H, W, 3]")
    _check_size(size, multiple=1)
    height, width = size
    scale = min(height / image.shape[0], width / image.shape[1])
    inner = (
        min(height, max(1, round(image.shape[0] * scale))),
        min(width, max(1, round(image.shape[1] * scale))),
    )
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    out = torch.full((height, width, 3), background, dtype=torch.uint8)
    out[top : top + inner[0], left : left + inner[1]] = resize_image(image, inner)
    return out


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether two sizes (height, width) have one aspect, but for rounding."""
    stretch = (one[1] / one[0]) / (other[1] / other[0])
    return max(stretch, 1 / stretch) <= _ROUNDED


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a bool mask [F, H, W] to (height, width) by nearest neighbour."""
    if tuple(mask.shape[1:]) == tuple(size):
        return mask
    resized = F.interpolate(mask[:, None].to(torch.uint8), size=size, mode="nearest-exact")
    return resized[:, 0].bool()


def _check_size(size: tuple[int, int], *, multiple: int) -> None:
    if len(size) != 2 or any(side < 1 or side % multiple for side in size):
        want = "positive" if multiple == 1 else f"positive multiples of {multiple}"
        raise ValueError(f"size: got {tuple(size)}, want (height, width), both {want}")


def _check_mode(mode: str) -> None:
    if mode not in ("crop", "exact"):
        raise ValueError(f'mode: got {mode!r}, want "crop" or "exact"')


def _scaled_size(old: tuple[int, int], new: tuple[int, int], mode: ResizeMode) -> tuple[int, int]:
    """Choose the size before the crop: at least `new` on both sides."""
    if mode == "exact":
        return new
    scale = max(new[0] / old[0], new[1] / old[1])
    return max(new[0], round(old[0] * scale)), max(new[1], round(old[1] * scale))


def _center_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = (frames.shape[1] - size[0]) // 2, (frames.shape[2] - size[1]) // 2
    return frames[:, top : top + size[0], left : left + size[1]]


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Stretch an image, uint8 [H, W, 3], to (height, width)."""
    if tuple(image.shape[:2]) == tuple(size):
        return image
    resized = Image.fromarray(image.cpu().numpy()).resize(
        (size[1], size[0]), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.array(resized))
