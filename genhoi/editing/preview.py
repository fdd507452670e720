"""A picture of an edit before it is made: the clip, mask and box, and what the model will see."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genhoi.conditioning.condition import paint_grey
from genhoi.editing.paste import cut_frames
from genhoi.editing.plan import EditPlan
from genhoi.extras import needed_for
from genhoi.media import Clip, atomic_path, fit_image

__all__ = ["draw_preview"]

_FRAMES = 5
_INCHES = 2.4  # of a cell's long side
_COLOURS = ("#ff2d95", "#00d0ff", "#ffd000", "#7dff4a")
_BOX = "#ffffff"


def draw_preview(
    path: Path,
    clip: Clip,
    masks: Sequence[Tensor],
    objects: Sequence[Tensor],
    plan: EditPlan,
    *,
    overwrite: bool = False,
) -> None:
    """Draw what an edit will work on, as a PNG.

    The upper row has frames of the clip with the outline of each mask and the box that is edited;
    the lower one has the same frames and the objects' pictures as the model sees them, grey where
    it generates.

    Args:
        path: the target.
        clip, masks, objects: of the edit.
        plan: of the edit.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        ImportError: matplotlib is not installed.
    """
    with needed_for("drawing"):
        from matplotlib.figure import Figure

    picks = sorted({round(i) for i in np.linspace(0, clip.num_frames - 1, _FRAMES)})
    columns = max(len(picks) + len(objects), 2)
    frame, size = plan.crop.frame, plan.crop.size
    heights = [_INCHES * frame[0] / max(frame), _INCHES * size[0] / max(size)]
    width = _INCHES * max(frame[1] / max(frame), size[1] / max(size))
    figure = Figure(
        figsize=(columns * width, sum(heights) + 0.9), facecolor="white", layout="constrained"
    )
    figure.suptitle(
        "coloured line: the mask, where the model generates"
        + ("" if plan.crop.is_whole else ";  white box: what it edits and sees"),
        fontsize=8,
    )
    grid: Any = figure.subplots(2, columns, squeeze=False, height_ratios=heights)
    for ax in grid.flat:
        ax.axis("off")
    for column, i in enumerate(picks):
        _draw_frame(grid[0][column], clip, masks, plan, i)
    seen = _as_seen(clip, plan, picks)
    for column, i in enumerate(picks):
        grid[1][column].imshow(seen[column].numpy(), interpolation="nearest")
        grid[1][column].set_title(f"frame {i}, as the model sees it", fontsize=7)
    for column, image in enumerate(objects, start=len(picks)):
        name = "object" if len(objects) == 1 else f"object {column - len(picks) + 1}"
        grid[0][column].imshow(image.numpy())
        grid[0][column].set_title(name, fontsize=8)
        grid[1][column].imshow(fit_image(image, size).numpy(), interpolation="nearest")
        grid[1][column].set_title(f"{name}, as the model sees it", fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _draw_frame(ax: Any, clip: Clip, masks: Sequence[Tensor], plan: EditPlan, index: int) -> None:
    from matplotlib.patches import Rectangle

    ax.imshow(clip.frames[index].numpy())
    for i, mask in enumerate(masks):
        if mask[index].any() and not mask[index].all():
            ax.contour(
                mask[index].float().numpy(),
                levels=[0.5],
                colors=_COLOURS[i % len(_COLOURS)],
                linewidths=1.2,
            )
    if not plan.crop.is_whole:
        top, left = plan.crop.corners[index].tolist()
        height, width = plan.crop.box
        for style in ({"edgecolor": "black", "linewidth": 2.2}, {"edgecolor": _BOX}):
            ax.add_patch(Rectangle((left, top), width, height, fill=False, **style))
    ax.set_title(f"frame {index}", fontsize=8)


def _as_seen(clip: Clip, plan: EditPlan, picks: list[int]) -> Tensor:
    """Cut out some frames, grey where any mask is: uint8 [picks, *plan.crop.size, 3]."""
    hidden = torch.stack(plan.masks).any(0)
    cut = torch.cat([cut_frames(clip.frames[[i]], plan.crop.at(i)) for i in picks])
    return paint_grey(cut, hidden[picks])
