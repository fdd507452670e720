"""Draws where an edited clip looked at its objects' pictures while it was made."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genhoi.extras import needed_for
from genhoi.media import Clip, atomic_path

__all__ = ["draw_attention", "frame_means"]

_SHOWN = 5
_WIDTH = 13.0


def frame_means(share: Tensor) -> list[float | None]:
    """Average each latent frame of [f, h, w] over the tokens that see a reference; None if none."""
    rows = share.flatten(1)
    return [float(row.nanmean()) if (~row.isnan()).any() else None for row in rows]


def draw_attention(
    path: Path,
    clip: Clip,
    shares: Mapping[int, Tensor],
    *,
    title: str,
    overwrite: bool = False,
) -> None:
    """Draw frames with the share of attention on them, and that share over the frames, as a PNG.

    Args:
        path: the target.
        clip: the edited clip.
        shares: first frame of a window -> float32 [f, h, w], NaN where no reference is seen.
        title: of the figure.
        overwrite: replace an existing file.

    Raises:
        ImportError: matplotlib is not installed.
        FileExistsError: the target exists and `overwrite` is False.
    """
    with needed_for("drawing"):
        from matplotlib.figure import Figure
    maps = _by_frame(shares)
    # The model makes up to three frames more than the clip has.
    known = [i for i in maps if i < clip.num_frames and not maps[i].isnan().all()]
    picks = (
        sorted({known[round(i)] for i in np.linspace(0, len(known) - 1, _SHOWN)}) if known else []
    )
    top = max((float(maps[frame].nan_to_num().max()) for frame in known), default=0.0) or 1.0
    image = _WIDTH / _SHOWN * clip.height / clip.width
    figure = Figure(figsize=(_WIDTH, image + 3.6), facecolor="white", layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(2, _SHOWN, height_ratios=[image, 2.8])
    for column, frame in enumerate(picks):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(clip.frames[frame].numpy())
        drawn: Any = axes.imshow(
            maps[frame].numpy(),
            extent=(0, clip.width, clip.height, 0),
            vmin=0,
            vmax=top,
            cmap="inferno",
            alpha=0.7,
            interpolation="nearest",
        )
        axes.set_title(f"frame {frame}", fontsize=9)
        axes.axis("off")
        if column == len(picks) - 1:
            figure.colorbar(drawn, ax=axes, label="share of attention")
    axes = figure.add_subplot(grid[1, :])
    for begin, share in sorted(shares.items()):
        values = [float("nan") if x is None else 100 * x for x in frame_means(share)]
        axes.plot([begin + 4 * i for i in range(len(values))], values, "o-", label=f"from {begin}")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_xlabel("frame")
    axes.set_ylabel("share on the objects, %\n(mean over tokens that see them)")
    if len(shares) > 1:
        axes.legend(title="window", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _by_frame(shares: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Give the map [h, w] of every fourth frame; where windows meet, the earlier one's."""
    maps: dict[int, Tensor] = {}
    for begin, share in sorted(shares.items()):
        for i, plane in enumerate(torch.unbind(share)):
            maps.setdefault(begin + 4 * i, plane)
    return maps
