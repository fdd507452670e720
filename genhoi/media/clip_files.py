"""Clips in and out of files: a video, a GIF, a folder of images or a single image."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from genhoi.media.clip import DEFAULT_FPS, Clip
from genhoi.media.files import IMAGE_SUFFIXES, PathLike, atomic_path, existing
from genhoi.media.image import BACKGROUND, image_paths, load_rgb
from genhoi.media.video import (
    MAX_GIF_FPS,
    count_packets,
    decode,
    frame_rate,
    write_gif,
    write_video,
)

__all__ = [
    "count_frames",
    "is_video",
    "read_clip",
    "same_sizes",
    "write_clip",
    "write_side_by_side",
]


def read_clip(
    path: PathLike, *, max_frames: int | None = None, fps: Fraction | float | None = None
) -> Clip:
    """Read a clip from a video, a GIF, a folder of images or a single image.

    A folder's images are taken in natural order of their names (frame_2 before frame_10). A video's
    stored rotation is applied. A clip with a varying frame rate keeps all its frames and gets the
    average rate.

    Args:
        path: the file or folder.
        max_frames: read no more than so many frames from the start.
        fps: the rate to give the clip; default: the file's own, or 24 for images.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not readable, holds no frame, or its images differ in size.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.zeros(5, 32, 48, 3, dtype=torch.uint8), fps=25)
        >>> path = genhoi.write_clip("black.mp4", clip)
        >>> genhoi.read_clip(path)
        Clip(5 frames, 48x32, 25 fps)
    """
    path = existing(path, "clip")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames: got {max_frames}, want at least 1")
    if is_video(path):
        stored, frames = _read_video(path, max_frames)
    else:
        stored, frames = DEFAULT_FPS, _read_images(path, max_frames)
    return Clip(torch.from_numpy(frames), fps if fps is not None else stored)


def count_frames(path: PathLike) -> int:
    """Count the frames of a video, GIF, folder of images or single image without decoding them.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: it is not readable.
    """
    path = existing(path, "clip")
    if not is_video(path):
        return len(image_paths(path))
    return count_packets(path)


def write_clip(
    path: PathLike, clip: Clip, *, sound: PathLike | None = None, overwrite: bool = False
) -> Path:
    """Write a clip as a video, a GIF or a folder of images.

    The name chooses: .mp4 (H.264), .webm (VP9), .gif, or no suffix for a folder of PNG files.
    Every format reads back with the size that went in. Videos with even sides use yuv420p, which
    every player shows; yuv420p cannot hold an odd side, so those use yuv444p. GIFs hold 256 colours
    and at most 50 frames a second.

    Args:
        path: the target; its suffix chooses the format.
        clip: what to write.
        sound: a video whose sound goes with it, in place and without loss where the format takes
            it; one without sound gives none.
        overwrite: replace an existing target. A folder is replaced only if it holds nothing but
            images.

    Returns:
        The target as a `Path`.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        ValueError: the suffix is unknown, the rate does not fit the format, or the format has no
            sound.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.zeros(5, 32, 48, 3, dtype=torch.uint8), fps=25)
        >>> genhoi.write_clip("clip.gif", clip)
        PosixPath('clip.gif')
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".mp4", ".webm", ".gif", ""):
        raise ValueError(
            f"path: got {path}, want a name ending in .mp4, .webm or .gif, or none for a folder"
        )
    if sound is not None:
        sound = existing(sound, "sound")
        if suffix in (".gif", ""):
            raise ValueError(f"sound: got {sound} for {path}, which holds none; want none, or .mp4")
    if suffix == ".gif" and Fraction(clip.fps) > MAX_GIF_FPS:
        raise ValueError(f"clip.fps: got {float(clip.fps):g}, want at most {MAX_GIF_FPS} for a GIF")
    with atomic_path(path, overwrite=overwrite) as temporary:
        if suffix == "":
            _write_folder(temporary, clip)
        elif suffix == ".gif":
            write_gif(temporary, clip)
        else:
            write_video(temporary, clip, sound=sound)
    return path


def write_side_by_side(
    path: PathLike,
    left: Clip,
    right: Clip,
    *,
    sound: PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Write two clips of one length, size and rate beside each other, as an .mp4 or .webm.

    Both are never joined in memory, where a long clip has no room for it.

    Args:
        path, sound, overwrite: as for `write_clip`.
        left, right: the clips.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        ValueError: the clips differ in length, size or rate, or the suffix is another.
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".webm"):
        raise ValueError(f"path: got {path}, want a name ending in .mp4 or .webm")
    if left.frames.shape != right.frames.shape or left.fps != right.fps:
        raise ValueError(f"right: got {right!r}, want {left!r} as left")
    sound = None if sound is None else existing(sound, "sound")
    with atomic_path(path, overwrite=overwrite) as temporary:
        write_video(temporary, left, right, sound=sound)
    return path


def is_video(path: Path) -> bool:
    """Tell whether a path is a video or GIF, and no image or folder of images."""
    return path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES


def _read_video(path: Path, max_frames: int | None) -> tuple[Fraction, np.ndarray]:
    rate = frame_rate(path)
    frames = list(decode(path, max_frames))
    same_sizes(path, [frame.shape for frame in frames])
    return rate, np.stack(frames)


def _read_images(path: Path, max_frames: int | None) -> np.ndarray:
    paths = image_paths(path)[:max_frames]
    frames = [load_rgb(p, background=BACKGROUND) for p in paths]
    for other, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise ValueError(
                f"{other}: {_size_words(frame)}, want {_size_words(frames[0])} like {paths[0].name}"
            )
    return np.stack(frames)


def same_sizes(path: Path, shapes: list[tuple[int, ...]]) -> None:
    """Raise ValueError unless all frames of a file have one size."""
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"{path}: frame {i} is {shape[1]}x{shape[0]}, want {shapes[0][1]}x{shapes[0][0]} "
                "like the first"
            )


def _size_words(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]} pixels"


def _write_folder(path: Path, clip: Clip) -> None:
    path.mkdir()
    digits = max(5, len(str(clip.num_frames - 1)))
    for i, frame in enumerate(clip.frames):
        Image.fromarray(frame.cpu().numpy()).save(path / f"{i:0{digits}}.png")
