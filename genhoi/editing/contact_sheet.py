"""One picture of an edit: frames of the source, what was hidden, and what came of it.

    python -m genhoi.editing.contact_sheet --source clip.mp4 --mask mask.mp4 \\
        --edited mug.png mug/edited.mp4 --edited tin.png tin/edited.mp4 --out sheet.png

puts several edits of one clip below each other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from genhoi.conditioning.condition import paint_grey
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


def draw_contact_sheet(
    path: Path,
    source: Clip,
    mask: Tensor,
    edits: Sequence[EditedRow],
    *,
    overwrite: bool = False,
) -> None:
    """Draw frames of a clip, of what was hidden in it, and of its edits, as a PNG.

    Args:
        path: the target.
        source: F frames.
        mask: bool [F, H, W], what was hidden.
        edits: at least one.
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
    hidden = paint_grey(source.frames, mask)
    rows: list[tuple[str, Tensor | None, Tensor]] = [
        ("source", None, source.frames),
        ("mask", None, hidden),
    ]
    rows += [(row.label, _side_by_side(row.objects, source), row.clip.frames) for row in edits]
    scale = _INCHES / max(source.height, source.width)
    cell = (scale * source.width, scale * source.height)
    figure = Figure(
        figsize=((len(picks) + 1) * cell[0] + 0.3, len(rows) * (cell[1] + 0.12) + 0.3),
        facecolor="white",
        layout="constrained",
    )
    grid: Any = figure.subplots(len(rows), len(picks) + 1, squeeze=False)
    for axes, (label, picture, frames) in zip(grid, rows, strict=True):
        for ax in axes:
            ax.axis("off")
        if picture is not None:
            axes[0].imshow(picture.numpy())
            axes[0].set_title(label, fontsize=7)
        else:
            axes[0].text(0.5, 0.5, label, ha="center", va="center", fontsize=9)
        for ax, i in zip(axes[1:], picks, strict=True):
            ax.imshow(frames[i].numpy(), interpolation="nearest")
    for ax, i in zip(grid[0][1:], picks, strict=True):
        ax.set_title(f"frame {i}", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _side_by_side(objects: Sequence[Tensor], source: Clip) -> Tensor:
    """Put all pictures into one cell, as the model gets them: fitted on grey."""
    size = (source.height, max(1, source.width // len(objects)))
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
    try:
        rows = [
            EditedRow([read_image(image)], read_clip(clip), image.stem) for image, clip in edited
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
