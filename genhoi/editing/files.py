"""An edit's files: what goes in, read and made to fit; what comes out, written as a whole.

`genhoi.editing.pipeline` does the work in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genhoi.media.media import (
    Clip,
    atomic_path,
    check_target,
    count_frames,
    digest,
    read_clip,
    read_image,
    read_mask,
    resize_clip,
    resize_mask,
    write_clip,
)

__all__ = ["EditInputs", "Targets", "read_inputs", "write_results"]

_PATCH = 16


@dataclass(frozen=True)
class EditInputs:
    """What an edit works on, all of one size.

    Args:
        clip: 1 + 4 n frames.
        masks: bool [F, H, W] for each object.
        objects: uint8 [h, w, 3] each.
        first_frame, last_frame: uint8 [H, W, 3] or None.
        notes: sentences on what differs from the files: length, size.
        files: name of the input -> path and SHA-256.
    """

    clip: Clip
    masks: list[Tensor]
    objects: list[Tensor]
    first_frame: Tensor | None
    last_frame: Tensor | None
    notes: tuple[str, ...]
    files: dict[str, dict[str, str]]


def read_inputs(
    video: Path,
    masks: Sequence[Path],
    objects: Sequence[Path],
    *,
    first_frame: Path | None = None,
    last_frame: Path | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    long_side: int = 832,
) -> EditInputs:
    """Read all inputs; clip, masks and finished frames are cut and resized alike.

    Args:
        video: of at least 5 frames.
        masks: one for each object, as long as the video or a single frame.
        objects: pictures.
        first_frame, last_frame: pictures of the video's size, or of `size`.
        frames: so many from the start, 1 + 4 n. None: as many as there are, rounded down to that.
        size: (height, width), multiples of 16. None: the video's, scaled down to `long_side`.
        long_side: for that.

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: something does not fit, or cannot be read.
    """
    if len(masks) != len(objects):
        raise ValueError(
            f"--mask: got {len(masks)}, want {len(objects)}, one for each --object in "
            f"the same order"
        )
    length = count_frames(video)
    for path in masks:
        if (mask_length := count_frames(path)) not in (1, length):
            raise ValueError(
                f"--mask: {path} has {mask_length} frames, but the clip {video} has {length}; want "
                f"{length}, or a single image for all"
            )
    wanted = _length(length, frames, video)
    images = [read_image(path) for path in objects]
    clip = read_clip(video, max_frames=wanted)
    stored = (clip.height, clip.width)
    size = _default_size(stored, long_side) if size is None else size
    finished = [
        None if path is None else _finished(name, path, stored, size)
        for name, path in (("--first-frame", first_frame), ("--last-frame", last_frame))
    ]
    inside = [resize_mask(read_mask(path, like=clip, max_frames=wanted), size) for path in masks]
    notes = []
    if wanted != length:
        notes.append(f"Frames: the first {wanted} of {length}.")
    if size != stored:
        notes.append(
            f"Size: {size[1]}x{size[0]}, scaled from {stored[1]}x{stored[0]}; what is left over at "
            f"the sides is cut off."
        )
    named = {"video": video, "first_frame": first_frame, "last_frame": last_frame}
    named |= {f"mask {i + 1}": path for i, path in enumerate(masks)}
    named |= {f"object {i + 1}": path for i, path in enumerate(objects)}
    return EditInputs(
        clip=resize_clip(clip, size),
        masks=inside,
        objects=images,
        first_frame=finished[0],
        last_frame=finished[1],
        notes=tuple(notes),
        files={
            name: {"path": str(path), "sha256": digest(path)}
            for name, path in named.items()
            if path is not None
        },
    )


class Targets:
    """The files of an edit in a folder, and whether they may be written.

    Args:
        folder: made when something is written.
        overwrite: replace results that are there.

    Raises:
        FileExistsError: there are results and `overwrite` is False.
        IsADirectoryError: a folder has the name of a result.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        self.folder = folder
        self.edited = folder / "edited.mp4"
        self.side_by_side = folder / "side_by_side.mp4"
        self.sheet = folder / "sheet.png"
        self.attention = folder / "attention.png"
        self.record = folder / "edit.json"
        self.parts = folder / ".unfinished"
        # The record comes last: without it, results beside unfinished windows are of a program that
        # was killed while writing them. Parts are compared with this job's before anything is done.
        killed = self.parts.is_dir() and not self.record.exists()
        self.overwrite = overwrite or killed
        for path in (self.edited, self.side_by_side, self.sheet, self.attention, self.record):
            if path.is_dir():
                raise IsADirectoryError(f"--out: {path} is a folder, want a free file name")
            if path.exists() and not self.overwrite:
                raise FileExistsError(f"--out: {path} exists already; --force overwrites it")
            check_target(path, overwrite=self.overwrite)
            if killed:
                for left in folder.glob(f".{path.stem}.*.tmp{path.suffix}"):
                    left.unlink()


def write_results(targets: Targets, source: Clip, edited: Clip, record: Mapping[str, Any]) -> None:
    """Write the edited clip, source and result side by side, and the record, in this order."""
    write_clip(targets.edited, edited, overwrite=targets.overwrite)
    both = torch.cat([source.frames, edited.frames], dim=2)
    write_clip(targets.side_by_side, Clip(both, source.fps), overwrite=targets.overwrite)
    with atomic_path(targets.record, overwrite=targets.overwrite) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _length(length: int, frames: int | None, video: Path) -> int:
    if length < 5:
        raise ValueError(f"--video: {video} has {length} frames, want at least 5")
    if frames is None:
        return 1 + (length - 1) // 4 * 4
    if frames < 5 or (frames - 1) % 4:
        raise ValueError(f"--frames: got {frames}, want 1 + 4 n: 5, 9, ..., 81, ...")
    if frames > length:
        raise ValueError(f"--frames: got {frames}, but the clip {video} has only {length}")
    return frames


def _default_size(stored: tuple[int, int], long_side: int) -> tuple[int, int]:
    scale = min(1.0, long_side / max(stored))
    height, width = (max(_PATCH, int(side * scale) // _PATCH * _PATCH) for side in stored)
    return height, width


def _finished(name: str, path: Path, stored: tuple[int, int], size: tuple[int, int]) -> Tensor:
    image = read_image(path)
    came = (image.shape[0], image.shape[1])
    if came == stored:
        return resize_clip(Clip(image[None]), size).frames[0]
    if came == size:
        return image
    raise ValueError(
        f"{name}: {path} is {came[1]}x{came[0]}, want {stored[1]}x{stored[0]} like the clip's "
        f"frames" + (f", or {size[1]}x{size[0]} like the result's" if size != stored else "")
    )
