"""Pictures of a run: ratios, roofline, cost over what the sweeps vary."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from genhoi_kernels.files import whole_file

__all__ = ["draw_plots"]

Row = dict[str, Any]

_OP_COLOR = "#d1495b"
_COLORS = (
    "#1f6fb2",
    "#2f8f5b",
    "#8f5fb2",
    "#b27a1f",
    "#3aa6a6",
    "#7a7a7a",
    "#c264a0",
    "#5a4fcf",
    "#9bbb3c",
    "#e07b39",
    "#2c3e50",
    "#a0522d",
)
_QUIET = "#555555"
_DPI = 110
_MARKERS = {"attention": "o", "fused": "s", "block": "^", "shapes": "D"}
_AXES = {
    "N": ("n", "video tokens N"),
    "M": ("m", "reference tokens M"),
    "density": ("density", "share of rows that see the reference, %"),
    "head dim": ("head_dim", "head dim D"),
    "dtype": ("dtype", "dtype"),
    "threads": ("threads", "threads"),
}


def draw_plots(folder: Path, rows: Sequence[Row], about: str) -> list[Path]:
    """Draw what the rows of one run allow, replacing earlier pictures.

    Args:
        folder: for ratios.png, roofline.png and sweeps.png.
        rows: of the runner.
        about: machine and versions, for the titles.

    Returns:
        The files written: a picture without data is not.
    """
    timed = [row for row in rows if not row["reason"]]
    colors = _colors(timed)
    plain = [row for row in timed if not row["sweep"]]
    sweeps = [row for row in timed if row["sweep"]]
    written = []
    for name, figure in (
        ("ratios.png", _ratios(plain, about, colors)),
        ("roofline.png", _roofline(plain, about, colors)),
        ("sweeps.png", _sweeps(sweeps, about, colors)),
    ):
        if figure is None:
            continue
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        with whole_file(folder / name) as temporary:
            temporary.write_bytes(buffer.getvalue())
        written.append(folder / name)
    return written


def _is_op(contender: str) -> bool:
    return contender.startswith(("this op", "genhoi."))


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    """One colour a contender, the same in all pictures."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    peers = [name for name in names if not _is_op(name)]
    found = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(peers)}
    return found | {name: _OP_COLOR for name in names if _is_op(name)}


def _groups(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _panels(
    count: int, *, width: float, heights: Sequence[float], columns: int
) -> tuple[Figure, list[Axes]]:
    """Axes in lines of the given heights, in inches."""
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    kept = [heights[i % len(heights)] for i in range(lines)]
    figure = Figure(figsize=(width * columns, sum(kept) + 1.3), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, height_ratios=kept).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    for ax in axes[:count]:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[:count]


def _title(figure: Figure, title: str, about: str) -> None:
    columns = int(figure.get_figwidth() * 13)
    lines = [title, *textwrap.wrap(about, columns)]
    figure.suptitle("\n".join(lines), fontsize=11)


# ------------------------------------------------------------------------------------------- ratios


def _ratios(rows: Sequence[Row], about: str, colors: dict[str, str]) -> Figure | None:
    with_ratio = [row for row in rows if isinstance(row["ratio_to_op"], float)]
    cases = _groups(with_ratio, "suite", "shape", "dtype", "direction")
    if not cases:
        return None
    counts = [len(found) for found in cases.values()]
    lines = [max(counts[i : i + 2]) for i in range(0, len(counts), 2)]
    heights = [1.0 + 0.36 * count for count in lines]
    figure, axes = _panels(len(cases), width=7.5, heights=heights, columns=2)
    for i, ((suite, shape, dtype, direction), found) in enumerate(cases.items()):
        ax = axes[i]
        _bars(ax, found, colors)
        ax.set_ylim(lines[i // 2] - 0.5, -0.5)  # bars of one height in all panels
        reduced = f" ({found[0]['reduced']})" if found[0]["reduced"] else ""
        ax.set_title(
            f"{suite}: {direction}, {dtype}, {shape}{reduced}\nN={found[0]['n']:,} "
            f"M={found[0]['m']:,} H={found[0]['heads']} D={found[0]['head_dim']}",
            fontsize=9, loc="left",
        )  # fmt: skip
    _title(figure, "Time relative to this op (longer: slower than it); what could not run is left "
                   "out", about)  # fmt: skip
    return figure


def _bars(ax: Axes, rows: Sequence[Row], colors: dict[str, str]) -> None:
    names = [textwrap.fill(row["contender"], 30) for row in rows]
    ratios = [row["ratio_to_op"] for row in rows]
    ax.barh(names, ratios, color=[colors[row["contender"]] for row in rows], height=0.65)
    for i, row in enumerate(rows):
        text = f" {row['ratio_to_op']:.2f}  ({_duration(row['ms'])})"
        ax.text(row["ratio_to_op"], i, text, va="center", fontsize=8)
    ax.axvline(1.0, color=_QUIET, linewidth=0.8, linestyle=":")
    ax.set_xlim(0, 1.35 * max(ratios))
    ax.tick_params(labelsize=8)


def _duration(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1e3:.3g} s"


# ----------------------------------------------------------------------------------------- roofline


def _roofline(rows: Sequence[Row], about: str, colors: dict[str, str]) -> Figure | None:
    counted = [row for row in rows if row["tflops"]]
    dtypes = _groups(counted, "dtype")
    if not dtypes:
        return None
    figure, axes = _panels(len(dtypes), width=8.5, heights=[5.0], columns=2)
    for ax, ((dtype,), found) in zip(axes, dtypes.items(), strict=True):
        _roof(ax, found)
        _points(ax, found, colors)
        ax.set_title(f"{dtype}; peak by {found[0]['peak_source']}", fontsize=9, loc="left")
    handles = [
        axes[0].plot([], [], "o", color=color, label=name)[0]
        for name, color in colors.items()
        if any(row["contender"] == name for row in counted)
    ]
    handles += _suite_handles(axes[0], counted)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    _title(figure, "Useful TFLOP/s under what this machine allows (dashed line)", about)
    return figure


def _roof(ax: Axes, rows: Sequence[Row]) -> None:
    peak, bandwidth = rows[0]["peak_tflops"], rows[0]["bandwidth_gbs"] / 1e3
    knee = peak / bandwidth
    intensities = [row["intensity"] for row in rows]
    low, high = min(*intensities, knee) / 3, max(*intensities, knee) * 4
    ax.plot([low, knee, high], [low * bandwidth, peak, peak], "--", color=_QUIET, linewidth=1.2)
    ax.annotate(
        f"peak {peak:.3g} TFLOP/s", (high, peak), xytext=(-4, 4), textcoords="offset points",
        ha="right", fontsize=8, color=_QUIET,
    )  # fmt: skip
    ax.annotate(
        f"memory, {1e3 * bandwidth:.3g} GB/s", (low, low * bandwidth), xytext=(8, 0),
        textcoords="offset points", va="center", fontsize=8, color=_QUIET,
    )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(low, high))
    # Room below for the names of the shapes.
    ax.set_ylim(min(*(row["tflops"] for row in rows), low * bandwidth) / 8, 2.5 * peak)
    ax.set_xlabel("useful operations per byte that has to move")
    ax.set_ylabel("TFLOP/s")


def _points(ax: Axes, rows: Sequence[Row], colors: dict[str, str]) -> None:
    """The contenders at one shape stand over each other, over the shape's name."""
    for row in rows:
        size = 60 if _is_op(row["contender"]) else 26
        ax.scatter(
            row["intensity"], row["tflops"], s=size, color=colors[row["contender"]],
            marker=_marker(row["suite"]), edgecolors="white", linewidths=0.5,
        )  # fmt: skip
    bottom = ax.get_ylim()[0]
    for (shape, direction), found in _groups(rows, "shape", "direction").items():
        ax.annotate(
            f"{shape} {direction}", (found[0]["intensity"], bottom), xytext=(0, 4),
            textcoords="offset points", rotation=90, ha="center", va="bottom", fontsize=7,
            color=_QUIET,
        )  # fmt: skip


def _marker(suite: str) -> str:
    return next((m for name, m in _MARKERS.items() if suite.endswith(name)), "o")


def _suite_handles(ax: Axes, rows: Sequence[Row]) -> list[Any]:
    suites = dict.fromkeys(row["suite"] for row in rows)
    return [
        ax.plot(
            [], [], _marker(suite), color="none", markeredgecolor=_QUIET, label=f"suite {suite}"
        )[0]
        for suite in suites
    ]


# ------------------------------------------------------------------------------------------- sweeps


def _sweeps(rows: Sequence[Row], about: str, colors: dict[str, str]) -> Figure | None:
    sweeps = _groups(rows, "sweep")
    if not sweeps:
        return None
    figure, axes = _panels(len(sweeps), width=5.6, heights=[3.7], columns=3)
    for ax, ((sweep,), found) in zip(axes, sweeps.items(), strict=True):
        column, label = _AXES[sweep]
        _lines(ax, found, column, colors)
        ax.set_xlabel(label)
        ax.set_title(_held(found, column), fontsize=8, loc="left")
        ax.set_ylabel("ms")
    handles = [
        axes[0].plot([], [], "o-", color=color, label=name)[0]
        for name, color in colors.items()
        if any(row["contender"] == name for row in rows)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    _title(figure, "Time of one forward pass of attention with the mask gate", about)
    return figure


def _lines(ax: Axes, rows: Sequence[Row], column: str, colors: dict[str, str]) -> None:
    for (name,), found in _groups(rows, "contender").items():
        x = [100 * row[column] if column == "density" else row[column] for row in found]
        ms = [row["ms"] for row in found]
        low = [row["ms"] - row["ms_q1"] for row in found]
        high = [row["ms_q3"] - row["ms"] for row in found]
        ax.errorbar(
            x, ms, yerr=(low, high), fmt="o-", markersize=4, linewidth=1.4, color=colors[name]
        )
    if column == "m":
        ax.set_xscale("symlog", linthresh=256)
    elif column in ("n", "head_dim", "threads"):
        ax.set_xscale("log", base=2)
    if column != "dtype":
        values = sorted({100 * row[column] if column == "density" else row[column] for row in rows})
        ax.set_xticks(values, [_short(value) for value in values], fontsize=8)
        ax.minorticks_off()
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", alpha=0.3)


def _short(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _held(rows: Sequence[Row], varied: str) -> str:
    """What a sweep keeps."""
    row, words = rows[0], []
    for column, text in (
        ("n", f"N={row['n']:,}"), ("m", f"M={row['m']:,}"), ("heads", f"H={row['heads']}"),
        ("head_dim", f"D={row['head_dim']}"), ("density", f"{100 * row['density']:g} % see it"),
        ("dtype", row["dtype"]),
    ):  # fmt: skip
        if column != varied and len({r[column] for r in rows}) == 1:
            words.append(text)
    return ", ".join(words)
