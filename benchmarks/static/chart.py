"""The bar chart of the static report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.static.performance import AIMS
from benchmarks.static.table import Row
from genhoi.media.media import atomic_path

__all__ = ["draw_chart"]

_OURS, _FLASH, _OTHERS = "#d1495b", "#1f6fb2", "#9a9a9a"
_DPI = 110
_PANELS = (
    ("sm_80", "to_fa2", "sm_80: instructions of a tile, over FlashAttention-2's"),
    ("sm_80", "eff_phase", "sm_80: share of the tensor peak, phase bound"),
    ("sm_90", "eff_phase", "sm_90: share of the tensor peak, phase bound"),
)
_BAR = 0.24  # inches
_LEFT_OUT = ("in-loop", "installed")  # no rivals, and what is stored as well


def draw_chart(path: Path, rows: Sequence[Row], note: str) -> Path | None:
    """Draw the figures that have aims, at head dim 128 in bf16: ours beside others'.

    Returns:
        The file; None if there is nothing to draw.
    """
    panels = [(title, column, arch, _bars(rows, arch, column)) for arch, column, title in _PANELS]
    panels = [panel for panel in panels if any(row["ours"] for row in panel[-1])]
    if not panels:
        return None
    heights = [_BAR * len(bars) + 0.6 for *_, bars in panels]
    figure = Figure(figsize=(11, sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for ax, (title, column, arch, bars) in zip(axes.flat, panels, strict=True):
        _draw_panel(ax, title, column, arch, bars)
    figure.suptitle(note, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def _bars(rows: Sequence[Row], arch: str, column: str) -> list[Row]:
    """The rows of a panel, forward above backward, the best at the top of each."""
    kept = [
        row
        for row in rows
        if row["arch"] == arch
        and column in row
        and row["head_dim"] == 128
        and row["dtype"] == "bf16"
        and not any(word in row["kernel"] for word in _LEFT_OUT)
    ]
    sign = 1 if column == "to_fa2" else -1
    return sorted(kept, key=lambda row: (row["direction"] == "backward", sign * row[column]))


def _draw_panel(ax: Axes, title: str, column: str, arch: str, bars: Sequence[Row]) -> None:
    values = [row[column] for row in bars]
    forward = sum(row["direction"] == "forward" for row in bars)
    places = [place + (0.7 if place >= forward else 0.0) for place in range(len(bars))]
    for aim in AIMS:
        if (aim.arch, aim.column) == (arch, column):
            ax.vlines(aim.limit, -1.0, forward - 0.4, color="black", linestyle="--", linewidth=1)
            ax.text(aim.limit, -0.9, " aim, forward", fontsize=8, va="bottom")
    ax.barh(places, values, color=[_color(row) for row in bars], height=0.7)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    room = max(values) * 0.005
    for place, value in zip(places, values, strict=True):
        ax.text(value + room, place, f"{value:.2f}", va="center", fontsize=8, bbox=white)
    ax.set_yticks(places, [_label(row) for row in bars], fontsize=8)
    ax.set_ylim(places[-1] + 0.6, -1.0)
    ax.set_xlim(0, max(values) * 1.12)
    ax.set_title(title, fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def _color(row: Row) -> str:
    if row["ours"]:
        return _OURS
    return _FLASH if row["kernel"].startswith("FA") else _OTHERS


def _label(row: Row) -> str:
    if not row["ours"]:
        return str(row["kernel"])
    return f"ours: {row['kernel']} {row['dtype']}, {row['tile']}, {row['warps']} warps"
