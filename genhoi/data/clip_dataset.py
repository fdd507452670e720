"""Clips that lie on a disk, as samples.

    clips = find_clips("clips")  # or "clips.csv"; see `genhoi.data.folders`
    dataset = ClipDataset(clips, frames=81, size=(480, 832))
    print("\\n".join(dataset.notes))  # what is left out

All files are checked at once; a clip is read when its sample is asked for.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genhoi.conditioning.grid import STRIDES
from genhoi.data.clip_decoding import DecodedClip, decode_clip
from genhoi.data.folders import ClipFiles
from genhoi.data.sample import HOISample
from genhoi.media import (
    Clip,
    ResizeMode,
    count_frames,
)

__all__ = ["ClipDataset"]

_VERSION = 1  # of how samples are made of files
_SHORTEST = STRIDES.pixel_frames(2)


@dataclass(frozen=True)
class _Window:
    """Frames `start` to `stop` (without it) of clip number `clip` are one sample."""

    clip: int
    start: int
    stop: int
    name: str


class ClipDataset:
    """Makes samples of clips' files, as a `HOIDataset`: ordered, always the same.

    The mask is white where the mean of red, green and blue is above 127 (`read_mask`). Pictures
    with transparency go onto grey 128; an opaque background stays what it is. A cut-out, of a
    picture or of a frame, is its mask's bounding box with grey 128 outside the mask.

    Args:
        clips: of `find_clips`, or made by hand. Names have to differ.
        frames: frames of a sample, 1 + 4 n, at least 5. None: as many as the clip has, rounded
            down to that. Shorter clips are left out, which `notes` says.
        windows: "first": a clip gives one sample, its first `frames`. "all": as many as fit, one
            after another without overlap, with the first frame's number in their names. Then a
            clip is decoded as a whole, which takes frames * stored height * stored width * 3 bytes.
        size: (height, width), multiples of 16. None: the clip's, rounded down to these.
        resize: "crop" or "exact", as in `resize_clip`.
        object_from_mask: where no picture of the object is given, cut it out of the clip with
            `object_mask`, else with `mask` (then the hand is in it): from the frame in which most
            pixels are masked, the first of several, of all frames that the clip's samples have.
        cache: how many clips to keep decoded, for neighbouring windows or repeated epochs.

    Raises:
        FileNotFoundError: files are missing; all of them are named.
        ValueError: an argument is wrong; clips have no picture of the object and
            `object_from_mask` is False; files can't be read or a mask has another length than its
            clip (all of them are named); or no clip is long enough.
    """

    def __init__(
        self,
        clips: Sequence[ClipFiles],
        *,
        frames: int | None = None,
        windows: Literal["first", "all"] = "first",
        size: tuple[int, int] | None = None,
        resize: ResizeMode = "crop",
        object_from_mask: bool = False,
        cache: int = 1,
    ) -> None:
        _check_options(frames, windows, size, resize, cache)
        self._clips = list(clips)
        self._size, self._resize, self._cache = size, resize, cache
        _check_files(self._clips, object_from_mask)
        self._windows, notes = _lay_windows(self._clips, _lengths(self._clips), frames, windows)
        to = "rounded down to multiples of 16" if size is None else f"{size[1]}x{size[0]}"
        how = "stretched" if resize == "exact" else "aspect kept, the rest cut off the sides"
        self._notes = [*(c.note for c in self._clips if c.note), *notes, f"Size: {to}, {how}."]
        self._notes += [
            f"{c.name}: the object's picture is cut out of the clip."
            for c in self._clips
            if c.object is None
        ]
        self._seen: dict[int, str] = {}
        self._decoded: OrderedDict[int, DecodedClip] = OrderedDict()

    @property
    def notes(self) -> tuple[str, ...]:
        """Say in sentences what samples leave out of the files.

        Lengths and files are known from the start. That a mask is empty, or was partly cut off by
        the resizing, is known, and added, once this process has read the clip.
        """
        return (*self._notes, *(note for _, note in sorted(self._seen.items()) if note))

    def __len__(self) -> int:
        """Count the samples. Nothing is decoded."""
        return len(self._windows)

    def fingerprint(self) -> str:
        """Say all that the samples depend on: files, their sizes and times of change, options."""
        roles = ("video", "mask", "object", "object_cutout", "object_mask")
        clips = [
            (clip.name, clip.prompt, *(_file_states(getattr(clip, role)) for role in roles))
            for clip in self._clips
        ]
        windows = [(part.name, part.clip, part.start, part.stop) for part in self._windows]
        return json.dumps([_VERSION, clips, windows, self._size, self._resize])

    def __iter__(self) -> Iterator[HOISample]:
        """Give all samples in order."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> HOISample:
        """Read sample `index`.

        Raises:
            IndexError: it is not one of 0 to len - 1.
            ValueError: a file is broken, or the object is to be cut out by an empty mask.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index: got {index}, want 0 to {len(self) - 1}")
        window = self._windows[index]
        whole = self._read(window.clip)
        part = slice(window.start, window.stop)
        # Clones: what a caller writes into a sample shall not be in the next one.
        return HOISample(
            name=window.name,
            clip=Clip(whole.clip.frames[part].clone(), whole.clip.fps),
            mask=whole.mask[part].clone(),
            object=whole.object.clone(),
            prompt=self._clips[window.clip].prompt,
            object_mask=None if whole.object_mask is None else whole.object_mask[part].clone(),
        )

    def _read(self, number: int) -> DecodedClip:
        """Decode a clip, or take it from the cache."""
        if number in self._decoded:
            self._decoded.move_to_end(number)
            return self._decoded[number]
        stop = max(window.stop for window in self._windows if window.clip == number)
        decoded, self._seen[number] = decode_clip(
            self._clips[number], stop, self._size, resize=self._resize
        )
        if self._cache:
            self._decoded[number] = decoded
            if len(self._decoded) > self._cache:
                self._decoded.popitem(last=False)
        return decoded


# ------------------------------------------------------------------------- samples, the inner parts


def _file_states(path: Path | None) -> list[tuple[str, int, int]]:
    """Give name, size and time of change of a file, or of all files in a folder of images."""
    if path is None:
        return []
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    states = ((p, p.stat()) for p in files)
    return [(str(p.resolve()), state.st_size, state.st_mtime_ns) for p, state in states]


def _check_options(
    frames: int | None, windows: str, size: tuple[int, int] | None, resize: str, cache: int
) -> None:
    if frames is not None and not STRIDES.is_clip(frames):
        raise ValueError(f"frames: got {frames}, want 1 + 4 n: 5, 9, ..., 81, ...")
    if windows not in ("first", "all"):
        raise ValueError(f'windows: got {windows!r}, want "first" or "all"')
    if size is not None and (len(size) != 2 or any(s < 1 or s % STRIDES.token for s in size)):
        raise ValueError(
            f"size: got {tuple(size)}, want (height, width), both positive multiples of "
            f"{STRIDES.token}"
        )
    if resize not in ("crop", "exact"):
        raise ValueError(f'resize: got {resize!r}, want "crop" or "exact"')
    if cache < 0:
        raise ValueError(f"cache: got {cache}, want at least 0")


def _check_files(clips: Sequence[ClipFiles], object_from_mask: bool) -> None:
    """Refuse missing files, and clips without a picture of their object, all at once."""
    if twice := [name for name, n in Counter(c.name for c in clips).items() if n > 1]:
        raise ValueError(f"clips: got {', '.join(twice)} more than once, want names that differ")
    roles = ("video", "mask", "object", "object_cutout", "object_mask")
    paths = [(c.name, role, getattr(c, role)) for c in clips for role in roles]
    missing = [
        f"  {name}: {role}: {p}" for name, role, p in paths if p is not None and not p.exists()
    ]
    bare = [c.name for c in clips if c.object is None and not object_from_mask]
    lacking = [
        f"  {name}: no picture of the object (object_from_mask=True cuts it out)" for name in bare
    ]
    if missing:
        raise FileNotFoundError(
            "\n".join([f"clips: {len(missing)} files are missing:", *missing, *lacking])
        )
    if lacking:
        raise ValueError("\n".join([f"clips: {len(lacking)} of {len(clips)} lack it:", *lacking]))


def _lengths(clips: Sequence[ClipFiles]) -> list[int]:
    """Count every clip's frames; refuse masks of another length, all at once."""
    lengths, wrong = [], []
    for files in clips:
        length = 0
        try:
            length = count_frames(files.video)
            for role, path in (("mask", files.mask), ("object_mask", files.object_mask)):
                if path is not None and (count := count_frames(path)) not in (1, length):
                    wrong.append(
                        f"  {files.name}: {role}: {path} has {count} frames, want {length} like "
                        f"{files.video.name}, or a single image for all"
                    )
        except ValueError as error:
            wrong.append(f"  {files.name}: {error}")
        lengths.append(length)
    if wrong:
        raise ValueError("\n".join([f"clips: {len(wrong)} files do not fit:", *wrong]))
    return lengths


def _lay_windows(
    clips: Sequence[ClipFiles], lengths: Sequence[int], frames: int | None, windows: str
) -> tuple[list[_Window], list[str]]:
    """Lay windows over the clips, and say what they leave out."""
    samples: list[_Window] = []
    notes = []
    for number, (files, length) in enumerate(zip(clips, lengths, strict=True)):
        each = frames if frames is not None else STRIDES.longest(length)
        if length < max(each, _SHORTEST):
            want = max(each, _SHORTEST)
            notes.append(f"{files.name}: left out, {length} frames where {want} are wanted.")
            continue
        count = length // each if windows == "all" else 1
        for start in range(0, count * each, each):
            name = f"{files.name}_{start:05}" if windows == "all" else files.name
            samples.append(_Window(number, start, start + each, name))
        if rest := length - count * each:
            notes.append(f"{files.name}: the first {count * each} of {length} frames, {rest} cut.")
    if not samples:
        raise ValueError("\n".join(["data: got none that is long enough:", *notes]))
    return samples, notes
