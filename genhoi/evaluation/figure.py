"""Draws an evaluation: every metric over the frames, and the worst frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genhoi.evaluation.columns import COLUMNS, REGIONS
from genhoi.evaluation.measure import CaseResult, Evaluation
from genhoi.evaluation.summary import over_cases, summarise
from genhoi.extras import needed_for
from genhoi.media import atomic_path

__all__ = ["draw_evaluation"]

_WIDTH = 13.0
_PANEL = 2.5
_LEFT, _RIGHT = 0.065, 0.67
_QUIET = "#555555"
_OUTLINE = "#ffe14d"
_GAIN = 4  # of the drawn difference
_COLORS = {"frame": "#555555", "mask": "#d1495b", "object": "#1f6fb2", "background": "#2f8f5b"}

# Column -> label, colour, line style.
_Line = tuple[str, str, str]
_SIMILARITY: dict[str, _Line] = {
    "colour": ("colours", "#8f5fb2", "-"),
    "colour_truth": ("colours, ground truth", "#8f5fb2", ":"),
}
_DRIFT: dict[str, _Line] = {
    "drift": ("result", "#b27a1f", "-"),
    "drift_truth": ("ground truth", "#b27a1f", ":"),
}
_CLIP: dict[str, _Line] = {
    "clip": ("object and picture", "#1f6fb2", "-"),
    "clip_truth": ("truth and picture", "#1f6fb2", ":"),
}


def draw_evaluation(path: Path, evaluation: Evaluation, *, overwrite: bool = False) -> None:
    """Draw an evaluation as a PNG, atomically.

    On top the frame whose edges inside the mask are least like the truth's, of all cases; below it
    a panel for each metric that was measured, over the frames: a line a region, and with several
    cases their mean in a band of its standard error. Beside it the means over clip and thirds.

    Args:
        path: the target.
        evaluation: of `genhoi.evaluation.evaluate`.
        overwrite: replace an existing file.

    Raises:
        ImportError: matplotlib is not installed.
        FileExistsError: the target exists and `overwrite` is False.
    """
    with needed_for("drawing"):
        from matplotlib.figure import Figure
    panels = _panels(evaluation)
    worst = _worst(evaluation)
    # Heights in inches, so that frames of any aspect are shown undistorted.
    heights = [0.75]
    if worst is not None:
        rows, columns = worst.size[1:]
        heights += [min(3.2, 0.92 * _WIDTH / 3 * rows / columns), 0.5]
    for _ in panels:
        heights += [_PANEL, 0.5]
    heights.append(0.15)
    figure = Figure(figsize=(_WIDTH, sum(heights)), facecolor="white")
    _title(figure, evaluation, sum(heights))
    if worst is not None:
        whole = _bands(figure, heights, left=0.02, right=0.98)
        _images(figure, whole[1].subgridspec(1, 3, wspace=0.04), worst)
    grid = _bands(figure, heights, left=_LEFT, right=_RIGHT)
    first = 1 if worst is None else 3
    for i, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(grid[first + 2 * i])
        _panel(axes, evaluation.cases, title, lines)
        if i == len(panels) - 1:
            axes.set_xlabel("frame", labelpad=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _bands(figure: Any, heights: Sequence[float], *, left: float, right: float) -> Any:
    return figure.add_gridspec(
        len(heights), 1, height_ratios=heights, hspace=0, left=left, right=right, top=1, bottom=0
    )


def _panels(evaluation: Evaluation) -> list[tuple[str, dict[str, _Line]]]:
    """Give title and lines of each panel that has something to show."""
    cases = evaluation.cases
    # Without object masks the object's line would lie on the mask's.
    shown = [name for name in REGIONS if name != "object" or any(c.object_mask for c in cases)]
    by_region = {
        metric: {f"{metric}_{name}": (REGIONS[name], _COLORS[name], "-") for name in shown}
        for metric in ("psnr", "ssim", "edges", "lpips")
    }
    panels = [
        ("PSNR, dB", by_region["psnr"]),
        ("SSIM", by_region["ssim"]),
        ("edges: those of the ground truth, 1 is all", by_region["edges"]),
        ("LPIPS (lower is better)", by_region["lpips"]),
        ("colours of the object's region and of its picture", _SIMILARITY),
        ("drift: colour of the object's region against its first frames, ΔE", _DRIFT),
        ("CLIP similarity", _CLIP),
    ]
    present = {name for case in cases for name in case.curves}
    return [(title, lines) for title, lines in panels if present & set(lines)]


def _worst(evaluation: Evaluation) -> CaseResult | None:
    known = [case for case in evaluation.cases if case.worst is not None]
    return min(known, key=lambda case: case.worst.edges if case.worst else 0.0, default=None)


def _title(figure: Any, evaluation: Evaluation, height: float) -> None:
    cases = evaluation.cases
    if len(cases) == 1:
        frames, rows, columns = cases[0].size
        title = f"{cases[0].name}: {frames} frames of {columns}x{rows} beside the ground truth"
    else:
        title = f"{len(cases)} cases beside their ground truths: means ± standard error"
    if evaluation.fvd is not None:
        title += f"; FVD {evaluation.fvd:.1f}"
    figure.text(0.02, 1 - 0.25 / height, title, size=14, weight="bold", va="center")


def _images(figure: Any, grid: Any, case: CaseResult) -> None:
    worst = case.worst
    assert worst is not None
    difference = (worst.result.int() - worst.truth.int()).abs() * _GAIN
    pictures = [
        (f"ground truth, frame {worst.index} of {case.name}", worst.truth),
        (f"result: its worst frame inside the mask, edges {worst.edges:.2f}", worst.result),
        (f"difference, {_GAIN} times", difference.clamp(max=255).to(torch.uint8)),
    ]
    edge = bool(worst.mask.any()) and not bool(worst.mask.all())
    for column, (title, image) in enumerate(pictures):
        axes = figure.add_subplot(grid[column])
        axes.imshow(image.numpy())
        if edge and min(worst.mask.shape) > 1:
            axes.contour(worst.mask.numpy(), levels=[0.5], colors=_OUTLINE, linewidths=1)
        axes.set_title(title, fontsize=9.5, pad=4)
        axes.axis("off")


def _panel(axes: Any, cases: Sequence[CaseResult], title: str, lines: dict[str, _Line]) -> None:
    longest = max(case.size[0] for case in cases)
    frames = np.arange(longest)
    rows = []
    for name, (label, color, style) in lines.items():
        curves = [case.curves[name] for case in cases if name in case.curves]
        if not curves:
            continue
        middle, error = _over_cases(curves, longest)
        marker = "o" if longest < 30 else None
        axes.plot(frames, middle, style, color=color, marker=marker, ms=3, lw=1.6)
        if len(curves) > 1:
            axes.fill_between(frames, middle - error, middle + error, color=color, alpha=0.15, lw=0)
        rows.append((label, color, style, _means(name, curves)))
    axes.set_title(title, fontsize=10.5, loc="left", pad=4)
    axes.set_xlim(-0.5 if longest == 1 else 0, longest - 0.5 if longest == 1 else longest - 1)
    axes.margins(y=0.08)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if longest > 2 and len({case.size[0] for case in cases}) == 1:
        for part in torch.arange(longest).tensor_split(3)[1:]:
            axes.axvline(float(part[0]) - 0.5, color=_QUIET, lw=0.8, ls=(0, (2, 3)))
    _numbers(axes, rows)


def _numbers(axes: Any, rows: Sequence[tuple[str, str, str, list[str]]]) -> None:
    """Write a legend with the means, right of the panel."""
    columns = (1.03, 1.305, 1.375, 1.445, 1.515)
    for x, text in zip(columns[1:], ("all", "first", "middle", "last"), strict=True):
        axes.text(
            x, 0.97, text, transform=axes.transAxes, size=8.5, color=_QUIET, ha="right", va="center"
        )
    for i, (label, color, style, values) in enumerate(rows):
        y = 0.83 - 0.14 * i
        place = {"transform": axes.transAxes, "color": color}
        axes.plot([1.015, 1.045], [y, y], style, lw=1.8, clip_on=False, **place)
        axes.text(columns[0] + 0.025, y, label, size=9, va="center", ha="left", **place)
        for x, text in zip(columns[1:], values, strict=True):
            axes.text(x, y, text, size=9, va="center", ha="right", **place)


def _means(name: str, curves: Sequence[Tensor]) -> list[str]:
    summaries = [summarise(name, curve) for curve in curves]
    spreads = [
        over_cases(getattr(summary, part) for summary in summaries)
        for part in ("mean", "first", "middle", "last")
    ]
    digits = COLUMNS[name].digits
    return ["–" if spread is None else f"{spread.mean:.{digits}f}" for spread in spreads]


def _over_cases(curves: Sequence[Tensor], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Average every frame over the cases that have a value there; mean and standard error."""
    table = np.full((len(curves), longest), np.nan)
    for row, curve in zip(table, curves, strict=True):
        row[: len(curve)] = curve.numpy()
    counts = (~np.isnan(table)).sum(axis=0)
    middle = np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    squares = np.nansum((table - middle) ** 2, axis=0)
    error = np.sqrt(squares / np.maximum(counts * (counts - 1), 1))
    return middle, error
