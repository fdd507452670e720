"""What several commands share: reading a clip with its mask, refusals in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from genhoi.inspection.inspect import PATCH
from genhoi.media.media import (
    Clip,
    check_target,
    count_frames,
    read_clip,
    read_mask,
    resize_clip,
    resize_mask,
)

__all__ = [
    "DTYPES",
    "PATH",
    "clip_length",
    "default_size",
    "parse_size",
    "free_targets",
    "need_matplotlib",
    "plain_errors",
    "progress_bar",
    "read_inputs",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PATH = click.Path(path_type=Path)
_DEFAULT_FRAMES = 81
_DEFAULT_LONG_SIDE = 480


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what bad input raises into one sentence and exit code 1."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error


def progress_bar(console: Console, *fields: str, disable: bool = False) -> Progress:
    """A bar with its share, the time so far, the description, and more fields of the task."""
    return Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        *(TextColumn(f"{{task.fields[{field}]}}") for field in fields),
        console=console,
        transient=True,
        disable=disable,
    )


def free_targets(folder: Path, *names: str, force: bool) -> tuple[Path, ...]:
    """Where results go, after checking that they can: before the long work, not after.

    Raises:
        IsADirectoryError: a folder has the name of a result.
        FileExistsError: there is a result, and `force` is False.
    """
    targets = tuple(folder / name for name in names)
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(f"--out: {target} is a folder, want a free file name")
        if target.exists() and not force:
            raise FileExistsError(f"--out: {target} exists already; --force overwrites it")
        check_target(target, overwrite=force)
    return targets


def need_matplotlib() -> None:
    """Raises ImportError with what to do unless figures can be drawn."""
    if find_spec("matplotlib") is None:
        raise ImportError("drawing needs matplotlib: pip install matplotlib")


def read_inputs(
    video: Path, mask: Path, frames: int | None, size: str | None
) -> tuple[Clip, Tensor]:
    """Read clip and mask, cut to 1 + 4 n frames and resized alike."""
    length, mask_length = count_frames(video), count_frames(mask)
    if mask_length not in (1, length):
        raise ValueError(
            f"--mask: {mask} has {mask_length} frames, but the clip {video} has {length}; "
            f"want {length}, or a single image for all"
        )
    wanted = clip_length(length, frames, video)
    clip = read_clip(video, max_frames=wanted)
    inside = read_mask(mask, like=clip, max_frames=wanted)
    height_width = default_size(clip) if size is None else parse_size(size)
    return resize_clip(clip, height_width), resize_mask(inside, height_width)


def clip_length(length: int, frames: int | None, video: Path) -> int:
    if length < 5:
        raise ValueError(f"--video: {video} has {length} frames, want at least 5")
    if frames is None:
        return 1 + (min(length, _DEFAULT_FRAMES) - 1) // 4 * 4
    if (frames - 1) % 4:
        raise ValueError(f"--frames: got {frames}, want 1 + 4 n: 5, 9, ..., 81, ...")
    if frames > length:
        raise ValueError(f"--frames: got {frames}, but the clip {video} has only {length}")
    return frames


def parse_size(size: str) -> tuple[int, int]:
    """(height, width) of "WIDTHxHEIGHT"."""
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size: got {size!r}, want WIDTHxHEIGHT, for example 480x272")
    if int(width) < PATCH or int(height) < PATCH or int(width) % PATCH or int(height) % PATCH:
        raise ValueError(f"--size: got {size}, want both sides multiples of {PATCH}")
    return int(height), int(width)


def default_size(clip: Clip) -> tuple[int, int]:
    scale = min(1.0, _DEFAULT_LONG_SIDE / max(clip.height, clip.width))
    height, width = (
        max(PATCH, int(side * scale) // PATCH * PATCH) for side in (clip.height, clip.width)
    )
    return height, width
