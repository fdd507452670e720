"""A frame with its coordinates, to read a box or a point from."""

from __future__ import annotations

import io
from pathlib import Path

from torch import Tensor

from genhoi.extras import needed_for
from genhoi.media import atomic_path

__all__ = ["draw_rulers"]

_STEPS = (5, 10, 20, 25, 50, 100, 200, 500)  # pixels between two lines
_LINES = 24  # at most, along the longer side
_INCHES = 11.0


def draw_rulers(path: Path, frame: Tensor, *, title: str, overwrite: bool = False) -> None:
    """Draw a frame under a grid with its coordinates in pixels, as a PNG.

    Args:
        path: the target.
        frame: uint8 [H, W, 3].
        title: of the picture.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
        ImportError: matplotlib is not installed.
    """
    with needed_for("drawing"):
        from matplotlib.figure import Figure

    height, width = frame.shape[:2]
    longer = max(height, width)
    step = next((s for s in _STEPS if longer / s <= _LINES), _STEPS[-1])
    size = (_INCHES * width / longer + 0.8, _INCHES * height / longer + 0.8)
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.imshow(frame.numpy(), extent=(0, width, height, 0))
    axes.set_xticks(range(0, width + 1, step))
    axes.set_yticks(range(0, height + 1, step))
    axes.tick_params(labelsize=7, top=True, labeltop=True, right=True, labelright=True)
    axes.tick_params(axis="x", rotation=90)
    for colour, thickness in (("black", 1.2), ("white", 0.5)):
        for x in range(0, width + 1, step):
            axes.axvline(x, color=colour, linewidth=thickness, alpha=0.6)
        for y in range(0, height + 1, step):
            axes.axhline(y, color=colour, linewidth=thickness, alpha=0.6)
    axes.set_title(title, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())
