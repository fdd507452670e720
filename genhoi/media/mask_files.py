"""Masks in and out of files: black and white pictures of where to generate.

A mask is a bool tensor [F, H, W]. A file that is no such picture is refused: a threshold would make
some mask of anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genhoi.media.clip import DEFAULT_FPS, Clip
from genhoi.media.clip_files import is_video, same_sizes, write_clip
from genhoi.media.files import PathLike, existing
from genhoi.media.image import image_paths, load_rgb, load_rgba
from genhoi.media.resize import nearest, same_shape
from genhoi.media.video import decode

__all__ = ["read_mask", "write_mask"]

_THRESHOLD = 127
_BLACK, _WHITE = 56, 199  # between them is grey: video compression and soft edges make some
_COLOURED = 80  # that red, green and blue differ by
_MOST_GREY = 0.02  # of a frame, and
_GREY_A_WHITE = 0.5  # of what is white: a soft edge around it
_MOST_PIXELS = 1 << 15  # of a frame, that are looked at for this
_WANTED = "want white where to generate, hand and object, and black elsewhere"


def read_mask(path: PathLike, *, like: Clip | None = None, max_frames: int | None = None) -> Tensor:
    """Read a mask as bool [F, H, W]: True where it is white.

    White is a mean of red, green and blue above 127, which keeps out the faint noise that video
    compression leaves in black areas. An image with transparency is its own mask, whatever its
    colours: True where it is opaque; unless it is black and white, and then also white.

    Args:
        path: a video, GIF, folder of images or single image.
        like: the clip that the mask belongs to. A single frame is repeated for all its frames, and
            another size of the same shape is resized to the clip's (nearest neighbour).
        max_frames: read no more than so many frames from the start.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not readable; it is not black and white, such as a photograph with paint
            on it, or so dark that nothing counts as white; or it has neither one frame nor as many
            as `like`, or frames of another shape.

    Example:
        >>> import genhoi, torch
        >>> path = genhoi.write_mask("mask.mp4", torch.ones(5, 32, 48, dtype=torch.bool))
        >>> mask = genhoi.read_mask(path)
        >>> tuple(mask.shape), bool(mask.all())
        ((5, 32, 48), True)
    """
    path = existing(path, "mask")
    planes = []
    brightest = 0
    for i, (frame, alpha) in enumerate(_frames(path, max_frames)):
        bright = frame.astype(np.uint16).sum(axis=2)
        if alpha is None:
            _check_two_valued(path, i, frame)
            brightest = max(brightest, int(bright.max()) // 3)
            planes.append(bright > 3 * _THRESHOLD)
        else:
            planes.append(_opaque(frame, bright, alpha))
    same_sizes(path, [p.shape for p in planes])
    mask = torch.from_numpy(np.stack(planes))
    if 0 < brightest <= _THRESHOLD and not mask.any():
        raise ValueError(
            f"mask: {path} has nothing brighter than {brightest} of 255; {_WANTED}"
            + (": multiply its values by 255" if brightest == 1 else "")
        )
    return mask if like is None else _match(mask, like, path)


def write_mask(
    path: PathLike, mask: Tensor, *, fps: Fraction | float = DEFAULT_FPS, overwrite: bool = False
) -> Path:
    """Write a bool mask [F, H, W] as a black-and-white clip; formats and errors as in `write_clip`.

    Raises:
        TypeError: `mask` is not bool.
        ValueError: `mask` is not [F, H, W].

    Example:
        >>> import genhoi, torch
        >>> genhoi.write_mask("frames", torch.ones(5, 32, 48, dtype=torch.bool))  # PNG files
        PosixPath('frames')
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, want torch.bool")
    if mask.ndim != 3:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, want [F, H, W]")
    frames = (mask.to(torch.uint8) * 255)[..., None].expand(*mask.shape, 3).contiguous()
    return write_clip(path, Clip(frames, fps), overwrite=overwrite)


def _frames(path: Path, max_frames: int | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield frames, uint8 [H, W, 3], one by one, and their alpha [H, W] where it says something.

    One by one: 80 seconds of RGB would need three times the memory of the mask.
    """
    if is_video(path):
        for frame in decode(path, max_frames):
            yield frame, None
        return
    for image in image_paths(path)[slice(max_frames)]:
        rgba = load_rgba(image)
        if rgba is None or (rgba[..., 3] == rgba[0, 0, 3]).all():
            yield load_rgb(image, background=0), None
        else:
            yield rgba[..., :3], rgba[..., 3]


def _opaque(frame: np.ndarray, bright: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Take what an image with transparency draws: half as opaque as its most opaque, or more."""
    drawn = alpha > alpha.max() // 2
    white, grey = _white_and_grey(frame[drawn])
    is_black_and_white = 0 < white.mean() < 1 and grey.mean() <= _MOST_GREY
    return drawn & (bright > 3 * _THRESHOLD) if is_black_and_white else drawn


def _check_two_valued(path: Path, index: int, frame: np.ndarray) -> None:
    """Raise ValueError unless a frame is black and white, but for soft edges."""
    height, width = frame.shape[:2]
    step = max(1, math.isqrt(height * width // _MOST_PIXELS))
    white, grey = _white_and_grey(frame[::step, ::step])
    share = float(grey.mean())
    if share > max(_MOST_GREY, _GREY_A_WHITE * float(white.mean())):
        raise ValueError(
            f"mask: {path} is neither black nor white in {100 * share:.0f} % of frame {index}; "
            f"{_WANTED}. Paint on a picture of the clip belongs on a transparent layer of its own; "
            f"genhoi mask makes masks from boxes, points and drawings"
        )


def _white_and_grey(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell which pixels [..., 3] are white, and which are neither that nor black."""
    values = pixels.astype(np.int16)
    bright = values.sum(axis=-1)
    coloured = values.max(axis=-1) - values.min(axis=-1) > _COLOURED
    grey = ((bright > 3 * _BLACK) & (bright < 3 * _WHITE)) | coloured
    return (bright >= 3 * _WHITE) & ~coloured, grey


def _match(mask: Tensor, like: Clip, path: Path) -> Tensor:
    """Bring a mask to a clip's length and frame size."""
    if mask.shape[0] not in (1, like.num_frames):
        raise ValueError(
            f"mask {path}: has {mask.shape[0]} frames, but the clip has {like.num_frames}; "
            f"want {like.num_frames}, or a single frame for all"
        )
    height, width = mask.shape[1:]
    if not same_shape((height, width), (like.height, like.width)):
        raise ValueError(
            f"mask {path}: is {width}x{height}, another shape than the clip's "
            f"{like.width}x{like.height}; want a mask drawn over the clip's own frames"
        )
    mask = nearest(mask, (like.height, like.width))
    return mask.expand(like.num_frames, -1, -1).contiguous()
