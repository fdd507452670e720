"""Clips, masks and pictures in the forms that diffusers knows, as GenHOI's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor

from genhoi.media import Clip
from genhoi.media.image import on_grey

__all__ = ["frames_of", "masks_of", "picture_of"]

_WANTED = (
    "a list of PIL images, a genhoi.Clip, uint8 [F, H, W, 3], or what diffusers' pipelines return: "
    "floating-point numbers from 0 to 1, arrays [F, H, W, 3] or tensors [F, 3, H, W]"
)


# diffusers reads what it knows; sizes and ranges stay.
_AS_IT_IS = VideoProcessor(do_resize=False, do_normalize=False)
_GREY = VideoProcessor(do_resize=False, do_normalize=False, do_convert_grayscale=True)


def frames_of(video: Any, name: str = "video") -> Tensor:
    """Bring a clip to uint8 [F, H, W, 3].

    Args:
        video: a list of PIL images; a `Clip`; uint8 [F, H, W, 3], array or tensor; or
            floating-point numbers from 0 to 1, an array [F, H, W, 3] or a tensor [F, 3, H, W].
        name: of the argument, for errors.

    Raises:
        TypeError, ValueError: something else.
    """
    if isinstance(video, Clip):
        video = video.frames
    if isinstance(video, np.ndarray) and video.dtype == np.uint8:
        video = torch.from_numpy(video)
    if isinstance(video, Tensor) and video.dtype == torch.uint8:
        frames = video
    elif isinstance(video, (list, tuple)) and video and isinstance(video[0], Image.Image):
        _check_one_size(video, name)
        frames = torch.stack([torch.from_numpy(on_grey(frame)) for frame in video])
    else:
        frames = (_values(video, name, _AS_IT_IS) * 255).round().to(torch.uint8)
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"{name}: got shape {tuple(frames.shape)}, wanted {_WANTED}")
    return frames.cpu()


def picture_of(image: Any, name: str) -> Tensor:
    """Bring a picture to uint8 [H, W, 3]; it comes in the forms of a clip's frame.

    Raises:
        TypeError, ValueError: something else.
    """
    is_uint8 = getattr(image, "dtype", None) in (torch.uint8, np.uint8)
    return frames_of(image[None] if is_uint8 else [image], name)[0]


def masks_of(mask: Any) -> list[Tensor]:
    """Bring one mask, or a list of masks, to bool [F, H, W] each.

    Args:
        mask: bool [F, H, W]; or in the forms of a clip, white or 1 where to generate; or a list of
            such lists and tensors.

    Raises:
        TypeError, ValueError: something else.
    """
    several = isinstance(mask, (list, tuple)) and all(
        isinstance(x, (list, tuple)) or _is_mask(x) for x in mask
    )
    return [_mask(x) for x in mask] if several and mask else [_mask(mask)]


def _is_mask(x: Any) -> bool:
    return getattr(x, "dtype", None) in (torch.bool, np.bool_) and x.ndim == 3


def _mask(mask: Any) -> Tensor:
    if _is_mask(mask):
        return torch.as_tensor(mask).cpu()
    if isinstance(mask, (list, tuple)) and mask and isinstance(mask[0], Image.Image):
        _check_one_size(mask, "mask")
    return _values(mask, "mask", _GREY).mean(-1) > 0.5


def _check_one_size(images: Sequence[Any], name: str) -> None:
    kinds = {x.size if isinstance(x, Image.Image) else type(x).__name__ for x in images}
    if len(kinds) > 1:
        raise ValueError(f"{name}: got frames of {kinds}, wanted images of one size")


def _values(video: Any, name: str, processor: VideoProcessor) -> Tensor:
    """Let diffusers read what it knows; return float32 [F, H, W, channels], 0 to 1."""
    try:
        values = processor.preprocess_video(video)
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise TypeError(f"{name}: got {type(video).__name__}, wanted {_WANTED}") from error
    if len(values) != 1 or values.min() < 0 or values.max() > 1:
        raise ValueError(
            f"{name}: got {len(values)} clips with values from {values.min():.3g} to "
            f"{values.max():.3g}, wanted one from 0 to 1"
        )
    return values[0].permute(1, 2, 3, 0).float()
