"""Clips that lie on a disk, in folders or listed in a CSV file, as samples.

    clips = find_clips("clips")  # or "clips.csv"
    dataset = ClipDataset(clips, frames=81, size=(480, 832))
    print("\\n".join(dataset.notes))  # what is left out

`find_clips` says which file is what and opens none. `ClipDataset` checks all of them, and reads a
clip when its sample is asked for.

A sample is a clip *and the object that it shows*: where a folder holds a clip before and after an
edit, training wants the one with the object of the picture.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genhoi.data.sample import HOISample
from genhoi.media import (
    BACKGROUND,
    IMAGE_SUFFIXES,
    Clip,
    PathLike,
    ResizeMode,
    count_frames,
    read_clip,
    read_image,
    read_mask,
    resize_clip,
    resize_mask,
)

__all__ = [
    "PLAIN_COLUMNS",
    "SELF_SWAP_COLUMNS",
    "SWAP_COLUMNS",
    "ClipDataset",
    "ClipFiles",
    "Columns",
    "find_clips",
]

VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi", ".m4v"})
VIDEO_NAMES = ("video", "target", "source")

_VERSION = 1  # of how samples are made of files
_PATCH = 16
_SHORTEST = 5


@dataclass(frozen=True)
class ClipFiles:
    """The files of one clip. Every path but `object`'s image is whatever `genhoi.media` reads.

    Args:
        name: for people; unique in its set.
        video: the clip.
        mask: white where hand and object are, as long as the video or a single image.
        object: a picture of the object, or a folder of them, of which the first is taken. None: it
            is to be cut out of the clip.
        object_cutout: a mask of that picture, white where it shows the object; a folder as above.
        object_mask: white where the clip shows the object.
        prompt: what the clip shows.
        note: what was not taken, "" where everything was.
    """

    name: str
    video: Path
    mask: Path
    object: Path | None = None
    object_cutout: Path | None = None
    object_mask: Path | None = None
    prompt: str = ""
    note: str = ""


@dataclass(frozen=True)
class Columns:
    """Names of a CSV file's columns; None where there is no such column.

    Args:
        video, mask, object, object_cutout, object_mask: paths, as in `ClipFiles`.
        prompt: the prompt itself.
        name: the clip's name; without it, that is made from the video's path.
    """

    video: str
    mask: str
    object: str | None = None
    object_cutout: str | None = None
    object_mask: str | None = None
    prompt: str | None = None
    name: str | None = None


PLAIN_COLUMNS = Columns(video="video", mask="mask")
"""This project's own; see `find_clips` for what may stand beside these two."""

SWAP_COLUMNS = Columns(video="video_path", mask="obj_mask_path", object="ref_img")
"""The authors' release, swap: `ref_img` is the *new* object, which `video_path` does not show."""

SELF_SWAP_COLUMNS = Columns(
    video="video_path", mask="obj_mask_path", object="obj_path", object_cutout="mask_path"
)
"""The authors' release, self-swap: the object is the clip's own. What reconstruction wants."""


# ------------------------------------------------------------------------------------ which is what


def find_clips(
    path: PathLike,
    *,
    columns: Columns | None = None,
    root: PathLike | None = None,
    video_names: Sequence[str] = VIDEO_NAMES,
) -> list[ClipFiles]:
    """List the clips of a folder or of a CSV file. None is opened, and none is left out.

    **A folder** is one clip if it holds a video, mask or object of the names below; else each of
    its subfolders is one, in the order of their names. Hidden ones, and files beside them, are
    not looked at. In a clip's folder, each of these is a video file or image with any suffix that
    `genhoi.media` reads, or a folder of images:

    - `video`, else `target`, else `source`: where there are both, `target` is the edited clip,
      which shows the object of the picture. `video_names` says otherwise.
    - `mask`, and if there are such: `object`, `object_cutout`, `object_mask`, `prompt.txt` (UTF-8).

    **A CSV file** has a header. Relative paths start at `root`. Three layouts are recognised by
    their columns:

    - `PLAIN_COLUMNS`: video, mask.
    - `SWAP_COLUMNS`: video_path, obj_mask_path, ref_img (and input_path, which is not read: the
      source prepared for the edit).
    - `SELF_SWAP_COLUMNS`: video_path, obj_mask_path, obj_path, mask_path.

    In each, columns called object, object_cutout, object_mask, prompt or name are read where the
    layout has no other name for them. All other columns are not.

    What is known of the release's two: the names are in the header of its demo files and in the
    code that reads them, and their meaning is the one that code gives them. It takes `01.jpg` of
    the folders obj_path and mask_path, of which the first image is taken here, and its paths start
    at the folder in which it is run or at one written into it, never at the CSV file: give that
    as `root`. For self-swap it generates a square around the masked pixels, of one size for the
    whole clip; here the mask is taken as it is. Its training data and the CSV files of its test
    sets have not been seen. To train on a swap file, cut the object out of the clip:
    `columns=replace(SWAP_COLUMNS, object=None)` and `object_from_mask=True`.

    Args:
        path: a folder, or a file that ends in .csv.
        columns: for another CSV layout. All that are named have to be there.
        root: where a CSV's relative paths start. None: at the CSV file's folder.
        video_names: what the clip may be called in a folder, the first that is there wins.

    Returns:
        At least one clip. Files that are missing are named by the path where they were looked for:
        `ClipDataset` reports them together.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: there is no clip in it, a name stands for two files, or a CSV's columns are not
            known, or rows are faulty (all of them are named).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no file or folder {path}")
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise ValueError(f"path: got {path}, want a folder or a .csv file")
        return _csv_clips(path, columns, path.parent if root is None else Path(root))
    if columns is not None or root is not None:
        raise ValueError(f"columns, root: got {path}, a folder; they are for a .csv file")
    if not video_names:
        raise ValueError('video_names: got none, want at least one, e.g. ("video",)')
    if any(_entries(path, stem) for stem in (*video_names, "mask", "object")):
        return [_folder_clip(path, video_names)]
    folders = [p for p in path.iterdir() if p.is_dir() and p.name[0] != "."]
    if not folders:
        raise ValueError(
            f"path: {path} holds neither {', '.join(video_names)} or mask, nor folders that could"
        )
    return [_folder_clip(p, video_names) for p in sorted(folders, key=lambda p: p.name)]


def _entries(folder: Path, stem: str) -> list[Path]:
    """Give all files and folders that have the name and could be a clip or an image."""
    readable = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    return sorted(
        p
        for p in folder.iterdir()
        if (p.is_dir() and p.name == stem)
        or (p.is_file() and p.stem == stem and p.suffix.lower() in readable)
    )


def _entry(folder: Path, stem: str) -> Path | None:
    found = _entries(folder, stem)
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise ValueError(f"{folder}: got {names}, want only one called {stem}")
    return found[0] if found else None


def _folder_clip(folder: Path, video_names: Sequence[str]) -> ClipFiles:
    videos = [found for stem in video_names if (found := _entry(folder, stem)) is not None]
    prompt = folder / "prompt.txt"
    name = folder.resolve().name
    others = ", ".join(p.name for p in videos[1:])
    return ClipFiles(
        name=name,
        video=videos[0] if videos else folder / f"{video_names[0]}.mp4",
        mask=_entry(folder, "mask") or folder / "mask.mp4",
        object=_entry(folder, "object"),
        object_cutout=_entry(folder, "object_cutout"),
        object_mask=_entry(folder, "object_mask"),
        prompt=prompt.read_text("utf-8").strip() if prompt.is_file() else "",
        note=f"{name}: {videos[0].name} is the clip, {others} not read." if others else "",
    )


def _csv_clips(path: Path, columns: Columns | None, root: Path) -> list[ClipFiles]:
    rows = _rows(path, columns)
    names = [row.get("name") or _name_of(row["video"]) for _, row in rows]
    taken = Counter(names)
    return [
        ClipFiles(
            name=name if taken[name] == 1 else f"{name}_line{line}",
            video=root / row["video"],
            mask=root / row["mask"],
            object=_optional(root, row.get("object")),
            object_cutout=_optional(root, row.get("object_cutout")),
            object_mask=_optional(root, row.get("object_mask")),
            prompt=row.get("prompt", ""),
        )
        for name, (line, row) in zip(names, rows, strict=True)
    ]


def _rows(path: Path, columns: Columns | None) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV's line numbers and cells, by the part of a clip that they stand for."""
    with path.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened, skipinitialspace=True)
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        columns = _layout(header, path) if columns is None else columns
        wanted = {role: column for role, column in vars(columns).items() if column is not None}
        if absent := [column for column in wanted.values() if column not in header]:
            raise ValueError(f"columns: {path} has no {', '.join(absent)}; it has {header}")
        rows, wrong = [], []
        for row in reader:
            line = reader.line_num
            cells = {role: (row[column] or "").strip() for role, column in wanted.items()}
            rows.append((line, cells))
            wrong += [f"  line {line}: no {wanted[r]}" for r in ("video", "mask") if not cells[r]]
            if None in row:  # where DictReader puts what is too much
                wrong.append(f"  line {line}: more cells than columns (a comma without quotes?)")
    if wrong:
        raise ValueError("\n".join([f"{path}: {len(wrong)} faults:", *wrong]))
    if not rows:
        raise ValueError(f"{path}: a header without a row below it")
    return rows


def _name_of(video: str) -> str:
    """Make a name that could be a file's."""
    path = Path(video)
    parts = [part for part in path.parent.parts if part not in (path.anchor, "..")]
    return "_".join([*parts, path.stem])


def _layout(header: Sequence[str], path: Path) -> Columns:
    """Recognise a layout by its columns, and add the optional ones that are there."""
    layouts = (PLAIN_COLUMNS, SWAP_COLUMNS, SELF_SWAP_COLUMNS)
    needs = [[column for column in vars(layout).values() if column] for layout in layouts]
    fits = [layout for layout, need in zip(layouts, needs, strict=True) if set(need) <= set(header)]
    if len(fits) != 1:
        known = "; or ".join(", ".join(need) for need in needs)
        raise ValueError(
            f"columns: {path} has {list(header)}, which fits {len(fits)} known layouts; want "
            f"{known}; or name the columns"
        )
    free = ("object", "object_cutout", "object_mask", "prompt", "name")
    more = {c: c for c in free if c in header and getattr(fits[0], c) is None}
    return replace(fits[0], **more)


def _optional(root: Path, cell: str | None) -> Path | None:
    return root / cell if cell else None


# -------------------------------------------------------------------------------------- the samples


@dataclass(frozen=True)
class _Window:
    """Frames `start` to `stop` (without it) of clip number `clip` are one sample."""

    clip: int
    start: int
    stop: int
    name: str


@dataclass(frozen=True)
class _Decoded:
    """A clip from its first frame to its last window's last, in the samples' size."""

    clip: Clip
    mask: Tensor
    object_mask: Tensor | None
    object: Tensor


class ClipDataset:
    """Samples out of clips' files, as `genhoi.data.HOIDataset` has them: ordered, always the same.

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
        self._windows, notes = _cut(self._clips, _lengths(self._clips), frames, windows)
        to = "rounded down to multiples of 16" if size is None else f"{size[1]}x{size[0]}"
        how = "stretched" if resize == "exact" else "aspect kept, the rest cut off the sides"
        self._notes = [*(c.note for c in self._clips if c.note), *notes, f"Size: {to}, {how}."]
        self._notes += [
            f"{c.name}: the object's picture is cut out of the clip."
            for c in self._clips
            if c.object is None
        ]
        self._seen: dict[int, str] = {}
        self._decoded: OrderedDict[int, _Decoded] = OrderedDict()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what samples leave out of the files.

        Lengths and files are known from the start. That a mask is empty, or was partly cut off by
        the resizing, is known, and added, once this process has read the clip.
        """
        return (*self._notes, *(note for _, note in sorted(self._seen.items()) if note))

    def __len__(self) -> int:
        """Count the samples. Nothing is decoded."""
        return len(self._windows)

    def fingerprint(self) -> str:
        """See `HOIDataset`: the files with their sizes and times of change, and the options."""
        roles = ("video", "mask", "object", "object_cutout", "object_mask")
        clips = [
            (clip.name, clip.prompt, *(_file_words(getattr(clip, role)) for role in roles))
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

    def _read(self, number: int) -> _Decoded:
        """Decode a clip, or take it from the cache."""
        if number in self._decoded:
            self._decoded.move_to_end(number)
            return self._decoded[number]
        stop = max(window.stop for window in self._windows if window.clip == number)
        decoded, self._seen[number] = _decode(
            self._clips[number], stop, self._size, resize=self._resize
        )
        if self._cache:
            self._decoded[number] = decoded
            if len(self._decoded) > self._cache:
                self._decoded.popitem(last=False)
        return decoded


# ------------------------------------------------------------------------- samples, the inner parts


def _file_words(path: Path | None) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of all files in a folder of images."""
    if path is None:
        return []
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    found = ((p, p.stat()) for p in files)
    return [(str(p.resolve()), stat.st_size, stat.st_mtime_ns) for p, stat in found]


def _check_options(
    frames: int | None, windows: str, size: tuple[int, int] | None, resize: str, cache: int
) -> None:
    if frames is not None and (frames < _SHORTEST or (frames - 1) % 4):
        raise ValueError(f"frames: got {frames}, want 1 + 4 n: 5, 9, ..., 81, ...")
    if windows not in ("first", "all"):
        raise ValueError(f'windows: got {windows!r}, want "first" or "all"')
    if size is not None and (len(size) != 2 or any(s < 1 or s % _PATCH for s in size)):
        raise ValueError(
            f"size: got {tuple(size)}, want (height, width), both positive multiples of {_PATCH}"
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
                if path is not None and (found := count_frames(path)) not in (1, length):
                    wrong.append(
                        f"  {files.name}: {role}: {path} has {found} frames, want {length} like "
                        f"{files.video.name}, or a single image for all"
                    )
        except ValueError as error:
            wrong.append(f"  {files.name}: {error}")
        lengths.append(length)
    if wrong:
        raise ValueError("\n".join([f"clips: {len(wrong)} files do not fit:", *wrong]))
    return lengths


def _cut(
    clips: Sequence[ClipFiles], lengths: Sequence[int], frames: int | None, windows: str
) -> tuple[list[_Window], list[str]]:
    """Lay windows over the clips, and say what they leave out."""
    cut: list[_Window] = []
    notes = []
    for number, (files, length) in enumerate(zip(clips, lengths, strict=True)):
        each = frames if frames is not None else 1 + (length - 1) // 4 * 4
        if length < max(each, _SHORTEST):
            want = max(each, _SHORTEST)
            notes.append(f"{files.name}: left out, {length} frames where {want} are wanted.")
            continue
        count = length // each if windows == "all" else 1
        for start in range(0, count * each, each):
            name = f"{files.name}_{start:05}" if windows == "all" else files.name
            cut.append(_Window(number, start, start + each, name))
        if rest := length - count * each:
            notes.append(f"{files.name}: the first {count * each} of {length} frames, {rest} cut.")
    if not cut:
        raise ValueError("\n".join(["clips: got none that is long enough:", *notes]))
    return cut, notes


def _decode(
    files: ClipFiles, stop: int, size: tuple[int, int] | None, *, resize: ResizeMode
) -> tuple[_Decoded, str]:
    """Read a clip's first `stop` frames and all that belongs to them; the note on its mask."""
    clip = read_clip(files.video, max_frames=stop)
    if clip.num_frames != stop:
        raise ValueError(f"{files.video}: broken, {clip.num_frames} of {stop} frames can be read")
    if size is None:
        height, width = (max(_PATCH, side // _PATCH * _PATCH) for side in (clip.height, clip.width))
        size = (height, width)
    mask = read_mask(files.mask, like=clip, max_frames=stop)
    inside = None
    if files.object_mask is not None:
        inside = read_mask(files.object_mask, like=clip, max_frames=stop)
    decoded = _Decoded(
        clip=resize_clip(clip, size, mode=resize),
        mask=resize_mask(mask, size, mode=resize),
        object_mask=None if inside is None else resize_mask(inside, size, mode=resize),
        object=_picture(files, clip, mask if inside is None else inside),
    )
    return decoded, _mask_note(files.name, mask, decoded.mask, resize)


def _mask_note(name: str, stored: Tensor, resized: Tensor, resize: ResizeMode) -> str:
    """Say that a mask is empty, or how much of it was cut off (above the rounding of edges)."""
    if not stored.any():
        return f"{name}: the mask is empty."
    if resize == "exact":
        return ""
    scale = max(new / old for new, old in zip(resized.shape[1:], stored.shape[1:], strict=True))
    lost = 1 - int(resized.sum()) / (int(stored.sum()) * scale**2)
    return f"{name}: {lost:.0%} of the mask cut off with the sides." if lost > 0.02 else ""


def _picture(files: ClipFiles, clip: Clip, inside: Tensor) -> Tensor:
    """Read the object's picture, or cut it out of the frame with the most masked pixels."""
    if files.object is None:
        areas = inside.sum((1, 2))
        best = int((areas == areas.max()).nonzero()[0])
        return _cut_out(clip.frames[best], inside[best], files.object_mask or files.mask)
    if files.object.is_dir():
        picture = read_clip(files.object, max_frames=1).frames[0]
    else:
        picture = read_image(files.object)
    if files.object_cutout is None:
        return picture
    mask = read_mask(files.object_cutout, like=Clip(picture[None]), max_frames=1)[0]
    return _cut_out(picture, mask, files.object_cutout)


def _cut_out(picture: Tensor, mask: Tensor, path: Path) -> Tensor:
    """Cut uint8 [H, W, 3] to the bounding box of a bool mask [H, W], grey outside the mask."""
    if not mask.any():
        raise ValueError(f"{path}: empty where the object is to be cut out")
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    box = (
        slice(int(rows[0]), int(rows[-1]) + 1),
        slice(int(columns[0]), int(columns[-1]) + 1),
    )
    grey = torch.full_like(picture, BACKGROUND)
    return torch.where(mask[..., None], picture, grey)[box].contiguous()
