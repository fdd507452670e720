"""Where cases lie: their files, whether these belong together, read into cases."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from genhoi.conditioning.grid import STRIDES
from genhoi.evaluation.case import Case
from genhoi.media import (
    Clip,
    count_frames,
    digest,
    read_clip,
    read_image,
    read_mask,
    resize_clip,
    resize_mask,
)

__all__ = ["CaseFiles", "check_baseline", "check_case", "read_baseline", "read_case", "read_table"]

_NEEDED = ("result", "truth", "mask")
_ALLOWED = (*_NEEDED, "object", "object_mask", "name")


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies; any video, GIF, or folder of images will do.

    Args:
        name: unique in its set.
        result: the edited clip.
        truth: what it should be: the source's own file, not a copy that was coded again.
        mask: white where the result was generated; as long as truth or result, or one image.
        object: picture of the object; None: its colours and texture are not compared.
        object_mask: white where the truth shows the object; None: the mask's region stands for it.
    """

    name: str
    result: Path
    truth: Path
    mask: Path
    object: Path | None = None
    object_mask: Path | None = None

    def record(self) -> dict[str, dict[str, str]]:
        """Name of the input -> path and SHA-256 of its bytes, of a folder's files in order."""
        named = {name: getattr(self, name) for name in _ALLOWED[:-1]}
        return {
            name: {"path": str(path), "sha256": digest(path)}
            for name, path in named.items()
            if path is not None
        }


def read_table(path: Path) -> list[CaseFiles]:
    """Read cases from a CSV with the columns result, truth, mask and, where wanted, object,
    object_mask, name.

    Paths are relative to the CSV's folder; empty cells are as missing. A case without a name is
    called by its result's path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing or unknown, a needed cell is empty, or there is no row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--cases: there is no file {path}")
    with path.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened)
        columns = reader.fieldnames or ()
        _check_columns(path, columns)
        cases = [_row(path, number, row) for number, row in enumerate(reader, start=2)]
    if not cases:
        raise ValueError(f"--cases: {path} has no row below its header, want one a case")
    return cases


def check_case(files: CaseFiles, *, frames: int | Literal["result"] | None, fit: bool) -> int:
    """Count the frames that a case compares; refuse what does not belong together.

    No more than a frame of each file is decoded.

    Args:
        files: of the case.
        frames: compare so many from the start, or as many as the result has. None: all, and result
            and truth must have the same number.
        fit: scale and crop truth and masks to the result's size.

    Raises:
        FileNotFoundError: an input is missing.
        ValueError: other lengths or sizes, or something is not readable.
    """
    result, truth = count_frames(files.result), count_frames(files.truth)
    taken = _length(files, result, truth, frames)
    for option, path in (("mask", files.mask), ("object mask", files.object_mask)):
        if path is not None and (length := count_frames(path)) not in (1, truth, taken):
            compared = "" if taken == truth else f", {taken}, those compared,"
            raise ValueError(
                f"case {files.name}: the {option} {path} has {length} frames; want {truth} as the "
                f"truth {files.truth}{compared} or a single image for all"
            )
    if files.object is not None:
        read_image(files.object)
    _check_sizes(files, _size(files.result), _size(files.truth), fit)
    return taken


def read_case(files: CaseFiles, *, frames: int, fit: bool) -> Case:
    """Read a case that `check_case` let through.

    Args:
        files: of the case.
        frames: as `check_case` said.
        fit: as there.

    Raises:
        ValueError: something is not readable to its end.
    """
    result = read_clip(files.result, max_frames=frames)
    truth = read_clip(files.truth, max_frames=frames)
    size = (result.height, result.width)
    stored = f"{truth.width}x{truth.height}"
    notes: list[str] = []
    mask = _read_mask("mask", files.mask, truth, notes)
    object_mask = None
    if files.object_mask is not None:
        object_mask = _read_mask("object mask", files.object_mask, truth, notes)
    if fit and (truth.height, truth.width) != size:
        truth, mask = resize_clip(truth, size), resize_mask(mask, size)
        object_mask = None if object_mask is None else resize_mask(object_mask, size)
        notes.append(
            f"Truth and masks are scaled and cropped from {stored} to {truth.width}x{truth.height} "
            "(--fit)."
        )
    total = max(count_frames(files.result), count_frames(files.truth))
    if total != frames:
        notes.append(f"Only the first {frames} of {total} frames are compared (--frames).")
    return Case(
        name=files.name,
        result=result,
        truth=truth,
        mask=mask,
        object=None if files.object is None else read_image(files.object),
        object_mask=object_mask,
        notes=tuple(notes),
    )


def check_baseline(name: str, path: Path, files: CaseFiles, *, frames: int, fit: bool) -> None:
    """Refuse a clip that cannot stand in a result's place.

    Args:
        name: of the baseline.
        path: of its clip.
        files: of the case.
        frames: as `check_case` said.
        fit: whether the clip may be scaled and cropped to the result's size.

    Raises:
        FileNotFoundError: there is no such clip.
        ValueError: it is shorter, or of another size.
    """
    length, size = count_frames(path), _size(path)
    if length < frames:
        raise ValueError(f"--baseline: {name}: {path} has {length} frames, want at least {frames}")
    wanted = _size(files.result)
    if size != wanted and not fit:
        raise ValueError(
            f"--baseline: {name}: {path} is {size[1]}x{size[0]}, want {wanted[1]}x{wanted[0]} as "
            "the result, or --fit"
        )


def read_baseline(name: str, path: Path, case: Case) -> Case:
    """Read another clip in the place of a case's result, fitted to its size.

    Raises:
        ValueError: it is not readable to its end.
    """
    clip = read_clip(path, max_frames=case.truth.num_frames)
    size = (case.truth.height, case.truth.width)
    if (clip.height, clip.width) != size:
        clip = resize_clip(clip, size)
    return replace(case, name=name, result=clip, notes=())


def _read_mask(name: str, path: Path, truth: Clip, notes: list[str]) -> Tensor:
    """Read a mask in the truth's length and size; note that it was scaled to that."""
    height, width = read_mask(path, max_frames=1).shape[1:]
    if (height, width) != (truth.height, truth.width):
        notes.append(f"The {name} is scaled from {width}x{height} to {truth.width}x{truth.height}.")
    return read_mask(path, like=truth, max_frames=truth.num_frames)


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    for name in _NEEDED:
        if name not in columns:
            raise ValueError(f"--cases: {path} has no column {name}, want {', '.join(_NEEDED)}")
    if unknown := [name for name in columns if name not in _ALLOWED]:
        raise ValueError(f"--cases: {path} has the column {unknown[0]}, want {', '.join(_ALLOWED)}")


def _row(path: Path, number: int, row: dict[str, str | None]) -> CaseFiles:
    cells = {name: (row.get(name) or "").strip() for name in _ALLOWED}
    for name in _NEEDED:
        if not cells[name]:
            raise ValueError(f"--cases: {path}, line {number}: {name} is empty, want a path")
    paths = {name: path.parent / cells[name] if cells[name] else None for name in _ALLOWED[:-1]}
    return CaseFiles(cells["name"] or cells["result"], **paths)  # type: ignore[arg-type]


def _length(
    files: CaseFiles, result: int, truth: int, frames: int | Literal["result"] | None
) -> int:
    if frames is None:
        if result == truth:
            return result
        raise ValueError(_length_refusal(files, result, truth))
    taken = result if frames == "result" else frames
    for what, path, length in (("result", files.result, result), ("truth", files.truth, truth)):
        if length < taken:
            raise ValueError(
                f"--frames: got {frames}, but the {what} {path} of case {files.name} has only "
                f"{length} frames, want {taken}"
            )
    return taken


def _length_refusal(files: CaseFiles, result: int, truth: int) -> str:
    refusal = (
        f"case {files.name}: the result {files.result} has {result} frames, want {truth} as the "
        f"truth {files.truth} has. "
    )
    if result < truth and result == STRIDES.longest(truth):
        refusal += (
            "Video models make 1 + 4 n frames, and other tools than `genhoi edit` leave the rest "
            f"out: here the last {truth - result} of {truth}. "
        )
    prefix = "result" if result < truth else str(truth)
    return f"{refusal}To compare only the first {min(result, truth)} say --frames {prefix}"


def _size(path: Path) -> tuple[int, int]:
    first = read_clip(path, max_frames=1)
    return first.height, first.width


def _check_sizes(
    files: CaseFiles, result: tuple[int, int], truth: tuple[int, int], fit: bool
) -> None:
    if result == truth:
        return
    came = (
        f"case {files.name}: the result {files.result} is {result[1]}x{result[0]}, "
        f"the truth {files.truth} {truth[1]}x{truth[0]}"
    )
    if not fit:
        raise ValueError(
            f"{came}; want one size. If the tool that made the result scaled the clip, --fit "
            "scales and crops the truth and the masks to its size"
        )
    if not STRIDES.fits(*result):
        raise ValueError(
            f"{came}; --fit wants a result with sides of multiples of {STRIDES.token}, as video "
            "models make them"
        )
