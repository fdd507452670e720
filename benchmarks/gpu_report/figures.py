"""Pictures of a report: speeds.png (everyone's rate under the ceiling), tuning.png (candidates)."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bare_attention import backend_of
from benchmarks.gpu_report.folder import REPORT, RESULTS, TUNING, read_json
from benchmarks.gpu_report.table import is_apart, label, ms_words
from benchmarks.report import read_numbers

__all__ = ["draw"]

Row = dict[str, Any]

_OURS, _SAME, _OTHER, _QUIET = "#d1495b", "#1f6fb2", "#b9c4cf", "#555555"
_DPI = 110


def draw(folder: Path) -> list[Path]:
    """Draw what the report allows into its folder.

    Returns:
        The files written: a picture without data is not.
    """
    about = _about(read_json(folder / REPORT).get("environment", {}))
    timed = [row for row in read_numbers(folder / RESULTS) if isinstance(row.get("tflops"), float)]
    tuned = read_numbers(folder / TUNING)
    written = []
    for name, figure in (
        ("speeds.png", _speeds([r for r in timed if r["suite"] == "attention"], about)),
        ("tuning.png", _tuning([r for r in tuned if isinstance(r["ms"], float)], about)),
    ):
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_DPI)
            (folder / name).write_bytes(buffer.getvalue())
            written.append(folder / name)
    return written


def _about(environment: dict[str, Any]) -> str:
    packages = environment.get("packages", {})
    versions = ", ".join(f"{n} {packages[n]}" for n in ("torch", "triton") if n in packages)
    return f"{environment.get('gpu', 'GPU')}; {versions}"


def _by(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def _speeds(rows: Sequence[Row], about: str) -> Figure | None:
    """Draw a panel for each case; longer is faster."""
    cases = _by(rows, "shape", "direction")
    if not cases:
        return None
    lines = -(-len(cases) // 2)
    most = max(map(len, cases.values()))
    figure = Figure(figsize=(15, lines * (1.1 + 0.33 * most) + 0.9), layout="constrained")
    axes = list(figure.subplots(lines, 2, squeeze=False).flat)
    for ax in axes[len(cases) :]:
        ax.set_axis_off()
    for ax, ((shape, direction), case_rows) in zip(axes, cases.items(), strict=False):
        once = {label(row): row for row in reversed(case_rows)}  # of those timed twice the first
        _bars(ax, sorted(once.values(), key=lambda row: -row["tflops"]))
        first = case_rows[0]
        ax.set_title(
            f"{shape}, {direction}: N={first['n']:,.0f} M={first['m']:,.0f} H={first['heads']:.0f}",
            fontsize=10,
            loc="left",
        )
    handles = [
        axes[0].barh([0], [0], color=color, label=label)
        for color, label in (
            (_OURS, "this project"),
            (_SAME, "peers that compute the same"),
            (_OTHER, "no mask: another function, with more products"),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    apart = "; *: timed later, not in turns with the others" if any(map(is_apart, rows)) else ""
    figure.suptitle(f"Useful TFLOP/s, bfloat16 (longer is faster). {about}{apart}", fontsize=11)
    return figure


def _bars(ax: Axes, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    ax.barh(places, [row["tflops"] for row in rows], color=[_color(r) for r in rows], height=0.7)
    ax.set_yticks(places, [label(row) for row in rows], fontsize=8)
    ax.invert_yaxis()
    ceiling = rows[0]["peak_tflops"]
    ax.axvline(ceiling, color=_QUIET, linewidth=1, linestyle="--")
    text = f"matrix product {ceiling:.0f} "
    ax.text(ceiling, len(rows) - 0.6, text, ha="right", va="bottom", fontsize=7, color=_QUIET)
    for place, row in zip(places, rows, strict=True):
        text = f" {row['tflops']:.0f}  ({ms_words(row['ms'])} ms){'*' if is_apart(row) else ''}"
        ax.text(row["tflops"], place, text, va="center", fontsize=8)
    ax.set_xlim(0, 1.2 * max(ceiling, *(row["tflops"] for row in rows)))
    ax.spines[["top", "right"]].set_visible(False)


def _color(row: Row) -> str:
    if backend_of(row["contender"]) is not None:
        return _OURS
    return _OTHER if "no mask" in row["contender"] else _SAME


def _tuning(rows: Sequence[Row], about: str) -> Figure | None:
    """Draw a panel for each kernel: every candidate's time, sorted."""
    kernels = _by(rows, "kernel", "head_dim")
    if not kernels:
        return None
    most = min(max(map(len, kernels.values())), _CANDIDATES)
    lines = -(-len(kernels) // 3)
    figure = Figure(figsize=(16, lines * (0.9 + 0.2 * most) + 0.8), layout="constrained")
    axes = list(figure.subplots(lines, 3, squeeze=False).flat)
    for ax in axes[len(kernels) :]:
        ax.set_axis_off()
    for ax, ((kernel, head_dim), candidates) in zip(axes, kernels.items(), strict=False):
        best = sorted(candidates, key=lambda row: row["ms"])[:_CANDIDATES]
        ax.barh(range(len(best)), [row["ms"] for row in best], color=_SAME, height=0.7)
        ax.set_yticks(range(len(best)), [row["config"] for row in best], fontsize=6)
        ax.invert_yaxis()
        ax.set_title(f"{kernel}, head dim {head_dim:.0f}, {len(candidates)} candidates", fontsize=9)
        ax.set_xlabel("ms", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Candidates of the Triton kernels, the fastest first. {about}", fontsize=11)
    return figure


_CANDIDATES = 16
"""Shown of each kernel."""
