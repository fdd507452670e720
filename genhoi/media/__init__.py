"""Clips, masks and images: in and out of files, and resized.

A clip is a `Clip`: uint8 frames [F, H, W, 3] and a frame rate. A mask is a bool tensor [F, H, W].
An image is a uint8 tensor [H, W, 3].
"""

from genhoi.media.clip import Clip
from genhoi.media.clip_files import count_frames, read_clip, write_clip, write_side_by_side
from genhoi.media.files import atomic_path, check_target, digest
from genhoi.media.image import read_image, write_image
from genhoi.media.mask_files import read_mask, write_mask
from genhoi.media.pixels import pixel_values
from genhoi.media.resize import (
    ResizeMode,
    fit_image,
    resize_clip,
    resize_image,
    resize_mask,
    same_shape,
)
from genhoi.media.sound import has_sound

__all__ = [
    "Clip",
    "ResizeMode",
    "atomic_path",
    "check_target",
    "count_frames",
    "digest",
    "fit_image",
    "has_sound",
    "pixel_values",
    "read_clip",
    "read_image",
    "read_mask",
    "resize_clip",
    "resize_image",
    "resize_mask",
    "same_shape",
    "write_clip",
    "write_image",
    "write_mask",
    "write_side_by_side",
]
