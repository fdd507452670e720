"""One picture of an edit: frames of the source, what was hidden, and what came of it.

    python -m genhoi.editing.contact_sheet --source clip.mp4 --mask mask.mp4 \\
        --edited mug.png mug/edited.mp4 --edited tin.png tin/edited.mp4 --out sheet.png

puts several edits of one clip below each other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from genhoi.conditioning.condition import paint_grey
from genhoi.editing.crop import Crop
from genhoi.editing.paste import cut_boxes
from genhoi.extras import needed_for
from genhoi.media import (
    Clip,
    atomic_path,
    fit_image,
    read_clip,
    read_image,
    read_mask,
    resize_clip,
    resize_mask,
)

__all__ = ["EditedRow", "draw_contact_sheet"]

_FRAMES = 7
_INCHES = 1.5  # of a frame's long side
_LABEL = 0.55  # inches, for the rows' names


@dataclass(frozen=True)
class EditedRow:
    """One edit of the clip.

    Args:
        objects: uint8 [h, w, 3] each, its pictures.
        clip: as long and large as the source.
        label: beside it.
    """

    objects: Sequence[Tensor]
    clip: Clip
    label: str


@dataclass(frozen=True)
class _Row:
    """A row of the sheet; `frames` are only those that it shows."""

    label: str
    frames: Tensor
    objects: Sequence[Tensor] = ()


def draw_contact_sheet(
    path: Path,
    source: Clip,
    mask: Tensor,
    edits: Sequence[EditedRow],
    *,
    crop: Crop | None = None,
    overwrite: bool = False,
) -> None:
    """Draw frames of a clip, of what was hidden in it, and of its edits, as a PNG.

    Every row has its name, and the objects' pictures stand beside the edit that they went into.

    Args:
        path: the target.
        source: F frames.
        mask: bool [F, H, W], what was hidden.
        edits: at least one.
        crop: where the model worked; if it is a part of the frame, rows of that part are added.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        ImportError: matplotlib is not installed.
        ValueError: an edit of another length or size than the source.
    """
    with needed_for("drawing"):
        from matplotlib.figure import Figure

    for row in edits:
        if row.clip.frames.shape != source.frames.shape:
            raise ValueError(
                f"edits: got {row.label} of shape {tuple(row.clip.frames.shape)}, wanted "
                f"{tuple(source.frames.shape)} as the source"
            )
    picks = sorted({round(i) for i in np.linspace(0, source.num_frames - 1, _FRAMES)})
    rows = _rows(source, mask, edits, crop, picks)
    cells = [_INCHES * row.frames.shape[1] / _longest(row.frames) for row in rows]
    width = _INCHES * max(row.frames.shape[2] / _longest(row.frames) for row in rows)
    figure = Figure(
        figsize=((len(picks) + 1) * width + _LABEL, sum(cells) + 0.12 * len(rows) + 0.3),
        facecolor="white",
        layout="constrained",
    )
    grid: Any = figure.subplots(len(rows), len(picks) + 1, squeeze=False, height_ratios=cells)
    for axes, drawn in zip(grid, rows, strict=True):
        _draw_row(axes, drawn)
    for ax, i in zip(grid[0][1:], picks, strict=True):
        ax.set_title(f"frame {i}", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _rows(
    source: Clip, mask: Tensor, edits: Sequence[EditedRow], crop: Crop | None, picks: list[int]
) -> list[_Row]:
    shown = source.frames[picks]
    rows = [_Row("source", shown), _Row("hidden", paint_grey(shown, mask[picks]))]
    rows += [_Row(row.label, row.clip.frames[picks], row.objects) for row in edits]
    if crop is None or crop.is_whole:
        return rows
    parts = [(row.label, row.frames) for row in rows if row.label != "hidden"]
    at = replace(crop, corners=crop.corners[picks])
    return rows + [_Row(f"{label},\nits box", cut_boxes(frames, at)) for label, frames in parts]


def _draw_row(axes: Any, row: _Row) -> None:
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_frame_on(False)
    axes[0].set_ylabel(row.label, fontsize=9)
    if row.objects:
        axes[0].imshow(_side_by_side(row.objects, row.frames).numpy())
        axes[0].set_xlabel("object" if len(row.objects) == 1 else "objects", fontsize=7)
    for ax, frame in zip(axes[1:], row.frames, strict=True):
        ax.imshow(frame.numpy(), interpolation="nearest")


def _longest(frames: Tensor) -> int:
    return max(frames.shape[1:3])


def _side_by_side(objects: Sequence[Tensor], frames: Tensor) -> Tensor:
    """Put all pictures into one cell, as the model gets them: fitted on grey."""
    size = (frames.shape[1], max(1, frames.shape[2] // len(objects)))
    return torch.cat([fit_image(x, size) for x in objects], dim=1)


@click.command()
@click.option("--source", required=True, type=click.Path(path_type=Path), help="The clip.")
@click.option("--mask", required=True, type=click.Path(path_type=Path), help="What was hidden.")
@click.option(
    "--edited",
    required=True,
    multiple=True,
    nargs=2,
    type=click.Path(path_type=Path),
    help="An object's picture and the clip edited with it; may be repeated.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The PNG.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def main(
    source: Path, mask: Path, edited: tuple[tuple[Path, Path], ...], out: Path, force: bool
) -> None:
    """Draw several edits of one clip below each other."""
    many = len(edited) > 1
    try:
        rows = [
            EditedRow([read_image(image)], read_clip(clip), f"edit {i}" if many else "edited")
            for i, (image, clip) in enumerate(edited, 1)
        ]
        first = rows[0].clip
        whole = read_clip(source, max_frames=first.num_frames)
        size = (first.height, first.width)
        inside = read_mask(mask, like=whole, max_frames=first.num_frames)
        draw_contact_sheet(
            out, resize_clip(whole, size), resize_mask(inside, size), rows, overwrite=force
        )
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Contact sheet: {out}")


if __name__ == "__main__":
    main()
