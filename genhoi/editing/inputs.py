"""What goes into an edit: clip, masks, pictures, read from files and made to fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from genhoi.conditioning.grid import STRIDES
from genhoi.editing.crop import scaled_down
from genhoi.media import (
    Clip,
    count_frames,
    digest,
    read_clip,
    read_image,
    read_mask,
    resize_clip,
    resize_image,
    resize_mask,
    same_shape,
)

__all__ = ["EditInputs", "read_clip_and_masks", "read_inputs"]


@dataclass(frozen=True)
class EditInputs:
    """What an edit works on, all of the clip's own length and size.

    Args:
        clip: at least 5 frames.
        masks: bool [F, H, W] for each object.
        objects: uint8 [h, w, 3] each.
        first_frame, last_frame: uint8 [H, W, 3] or None.
        notes: sentences on what differs from the files.
        files: name of the input -> path and SHA-256.
        video: the clip's file, for its sound.
    """

    clip: Clip
    masks: list[Tensor]
    objects: list[Tensor]
    first_frame: Tensor | None
    last_frame: Tensor | None
    notes: tuple[str, ...]
    files: dict[str, dict[str, str]]
    video: Path


def read_inputs(
    video: Path,
    masks: Sequence[Path],
    objects: Sequence[Path],
    *,
    first_frame: Path | None = None,
    last_frame: Path | None = None,
    frames: int | None = None,
) -> EditInputs:
    """Read all inputs.

    Args:
        video: of at least 5 frames.
        masks: one for each object, as long as the video or a single frame.
        objects: pictures.
        first_frame, last_frame: pictures of the video's size, or of the same shape.
        frames: so many from the start. None: all.

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: something does not fit, or cannot be read; a mask is black or white throughout.
    """
    if len(masks) != len(objects):
        raise ValueError(
            f"--mask: got {len(masks)}, want {len(objects)}, one for each --object in "
            f"the same order"
        )
    length = _common_length(video, masks)
    if frames is not None and not STRIDES.pixel_frames(2) <= frames <= length:
        raise ValueError(
            f"--frames: got {frames}, want {STRIDES.pixel_frames(2)} to {length}, the length of "
            f"{video}"
        )
    images = [read_image(path) for path in objects]
    clip = read_clip(video, max_frames=frames or length)
    notes: list[str] = []
    finished = [
        None if path is None else _finished(name, path, clip, notes)
        for name, path in (("--first-frame", first_frame), ("--last-frame", last_frame))
    ]
    inside = [_drawn(path, read_mask(path, like=clip, max_frames=frames)) for path in masks]
    if clip.num_frames != length:
        notes.append(f"Frames: the first {clip.num_frames} of {length}.")
    named = {"video": video, "first_frame": first_frame, "last_frame": last_frame}
    named |= {f"mask {i + 1}": path for i, path in enumerate(masks)}
    named |= {f"object {i + 1}": path for i, path in enumerate(objects)}
    return EditInputs(
        clip=clip,
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
        video=video,
    )


def read_clip_and_masks(
    video: Path,
    masks: Sequence[Path],
    *,
    frames: int | None = None,
    most_frames: int | None = None,
    size: tuple[int, int] | None = None,
    long_side: int = 832,
) -> tuple[Clip, list[Tensor]]:
    """Read a clip and its masks, cut to 1 + 4 n frames and resized alike.

    Args:
        video, masks: as for `read_inputs`.
        frames: so many from the start, 1 + 4 n. None: as many as there are, at most `most_frames`,
            rounded down to that.
        most_frames: for that; None: no limit.
        size: (height, width), multiples of 16. None: the video's, scaled down to `long_side`.
        long_side: for that.

    Returns:
        The clip, and bool [F, H, W] for each mask.

    Raises:
        FileNotFoundError, ValueError: as `read_inputs`.
    """
    length = _common_length(video, masks)
    taken = _frames_to_take(video, length, frames, most_frames)
    clip = read_clip(video, max_frames=taken)
    size = scaled_down((clip.height, clip.width), long_side) if size is None else size
    inside = [resize_mask(read_mask(path, like=clip, max_frames=taken), size) for path in masks]
    return resize_clip(clip, size), inside


def _common_length(video: Path, masks: Sequence[Path]) -> int:
    """Count the clip's frames; raise ValueError for too few, or a mask of another length."""
    length = count_frames(video)
    if length < (least := STRIDES.pixel_frames(2)):
        raise ValueError(f"--video: {video} has {length} frames, want at least {least}")
    for path in masks:
        if (mask_length := count_frames(path)) not in (1, length):
            raise ValueError(
                f"--mask: {path} has {mask_length} frames, but the clip {video} has {length}; want "
                f"{length}, or a single image for all"
            )
    return length


def _frames_to_take(
    video: Path, length: int, frames: int | None, most_frames: int | None = None
) -> int:
    if frames is None:
        return STRIDES.longest(min(length, most_frames or length))
    if not STRIDES.is_clip(frames):
        raise ValueError(f"--frames: got {frames}, want 1 + 4 n: 5, 9, ..., 81, ...")
    if frames > length:
        raise ValueError(f"--frames: got {frames}, but the clip {video} has only {length}")
    return frames


def _drawn(path: Path, mask: Tensor) -> Tensor:
    """Raise ValueError for a mask that is black or white in every pixel of every frame."""
    if mask.all() or not mask.any():
        raise ValueError(
            f"--mask: {path} is {'white' if mask.all() else 'black'} throughout; want white where "
            f"to generate, hand and object, and black where the clip stays as it is"
        )
    return mask


def _finished(name: str, path: Path, clip: Clip, notes: list[str]) -> Tensor:
    """Read a finished frame; resize one of the clip's shape, and say so."""
    image = read_image(path)
    height, width = image.shape[:2]
    if (height, width) == (clip.height, clip.width):
        return image
    if not same_shape((height, width), (clip.height, clip.width)):
        raise ValueError(
            f"{name}: {path} is {width}x{height}, want {clip.width}x{clip.height} like the clip's "
            f"frames, or the same shape"
        )
    notes.append(f"{name}: resized from {width}x{height} to {clip.width}x{clip.height}.")
    return resize_image(image, (clip.height, clip.width))
