"""Finds the files of clips, in folders or listed in a CSV file; opens none of them.

A clip is meant together with *the object that it shows*: where a folder holds a clip before and
after an edit, training wants the one with the object of the picture.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genhoi.media.media import IMAGE_SUFFIXES, PathLike

__all__ = [
    "PLAIN_COLUMNS",
    "SELF_SWAP_COLUMNS",
    "SWAP_COLUMNS",
    "ClipFiles",
    "Columns",
    "find_clips",
]

VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi", ".m4v"})
VIDEO_NAMES = ("video", "target", "source")


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
