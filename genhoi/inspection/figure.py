"""Draw what `genhoi.inspection.inspect` computed: one picture that explains itself."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genhoi.conditioning.grid import STRIDES
from genhoi.extras import needed_for
from genhoi.inspection.inspect import Inspection, ScheduleResult, schedule_name
from genhoi.inspection.summary import dtype_name
from genhoi.media import atomic_path

__all__ = ["draw_inspection"]

_COLORS = ("#d1495b", "#1f6fb2", "#2f8f5b", "#8f5fb2", "#b27a1f")
_MARKERS = ("o", "s", "^", "D", "v")
_OUTLINE = "#ffe14d"
_QUIET = "#555555"
_SHOWN_FRAMES = 4
_SHOWN_MAPS = 2
_WIDTH = 15.0


def draw_inspection(path: str | Path, inspection: Inspection, *, overwrite: bool = False) -> Path:
    """Draw an inspection into a PNG file, atomically.

    From top to bottom: frames with the mask's outline beside the object; the same frames with the
    share of attention that goes to the object's picture, for the first two schedules; that share
    over the frames; the op's time beside that of PyTorch's own attention.

    Args:
        path: the target, a name ending in .png.
        inspection: what `inspect_clip` returned.
        overwrite: replace an existing file.

    Raises:
        ImportError: matplotlib is not installed.
        FileExistsError: the target exists and `overwrite` is False.
        ValueError: the name does not end in .png.

    Example:
        >>> import genhoi, torch
        >>> clip = genhoi.Clip(torch.randint(0, 255, (5, 32, 48, 3), dtype=torch.uint8))
        >>> mask = torch.zeros(5, 32, 48, dtype=torch.bool)
        >>> mask[:, :16, :16] = True
        >>> mug = torch.full((16, 16, 3), 200, dtype=torch.uint8)
        >>> inspection = genhoi.inspect_clip(clip, mask, mug, heads=2, head_dim=16)
        >>> genhoi.draw_inspection("inspect.png", inspection)
        PosixPath('inspect.png')
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path: got {path}, want a name ending in .png")
    figure = _figure(inspection)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def _figure(inspection: Inspection) -> Any:
    with needed_for("drawing"):
        from matplotlib.figure import Figure
    frames = _shown_frames(inspection)
    maps = inspection.schedules[:_SHOWN_MAPS]
    # Heights in inches, so that clips of any aspect are shown undistorted and texts keep their
    # distance.
    columns = len(frames) + 1
    image = min(3.4, 0.9 * _WIDTH / columns * inspection.clip.height / inspection.clip.width)
    heights = [1.15, 0.4, image, *([0.5, image] * len(maps)), 0.75, 3.3, 1.0]
    figure = Figure(figsize=(_WIDTH, sum(heights)), facecolor="white")
    bands = _bands(figure, heights, left=0.03)
    _titles(figure, inspection, sum(heights))
    _source_row(figure, bands[2].subgridspec(1, columns, wspace=0.05), inspection, frames)
    shade = _shade(inspection, maps, frames)
    for i, result in enumerate(maps):
        row = bands[4 + 2 * i].subgridspec(1, columns, wspace=0.05)
        _map_row(figure, row, inspection, result, frames, shade, _COLORS[i])
    beside = bands[4 : 3 + 2 * len(maps)].subgridspec(1, columns, wspace=0.05)
    _map_legend(figure, beside[-1], inspection, shade)
    charts = _bands(figure, heights, left=0.065)[-2]
    if inspection.timing is None:
        _curves(figure.add_subplot(charts), inspection)
    else:
        left, right = charts.subgridspec(1, 2, wspace=0.42, width_ratios=[1.7, 1])
        _curves(figure.add_subplot(left), inspection)
        _times(figure.add_subplot(right), inspection)
    return figure


def _bands(figure: Any, heights: Sequence[float], *, left: float) -> Any:
    return figure.add_gridspec(
        len(heights), 1, height_ratios=heights, hspace=0, left=left, right=0.985, top=1, bottom=0
    )


def _titles(figure: Any, inspection: Inspection, height: float) -> None:
    clip, (f, h, w) = inspection.clip, inspection.grid
    lines = [
        f"The clip ({clip.num_frames} frames of {clip.width}x{clip.height}) makes {f} x {h} x {w} "
        f"= {f * h * w:,} tokens. Every token attends to all of them; those inside the mask also "
        f"attend to the {math.prod(inspection.ref_grid):,} tokens of the object's picture.",
        "No trained weights: queries and keys are the pixels' own colours, so tokens attend to "
        f"what looks alike. {_count(inspection.heads, 'attention head')} of {inspection.head_dim} "
        f"values, {dtype_name(inspection.dtype)}.",
    ]
    title = "Is the object seen equally in every frame, and only where the mask is?"
    figure.text(0.03, 1 - 0.4 / height, title, size=20, weight="bold", va="center")
    for i, line in enumerate(lines):
        figure.text(
            0.03, 1 - (0.78 + 0.22 * i) / height, line, size=10.5, color=_QUIET, va="center"
        )


# --------------------------------------------------------------------------------------- the images


def _shown_frames(inspection: Inspection) -> list[int]:
    """Choose latent frames, spread evenly over those with a token that sees the reference."""
    seen = inspection.tokens.flatten(1).any(1).nonzero()[:, 0].tolist()
    count = min(_SHOWN_FRAMES, len(seen))
    return [seen[round(i * (len(seen) - 1) / max(1, count - 1))] for i in range(count)]


def _source_row(figure: Any, row: Any, inspection: Inspection, frames: Sequence[int]) -> None:
    for column, latent in enumerate(frames):
        axes = _image_axes(figure, row[column])
        pixel = _pixel_frame(latent)
        axes.imshow(inspection.clip.frames[pixel].cpu().numpy())
        mask = inspection.mask[pixel].cpu().numpy()
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[_OUTLINE], linewidths=1.6)
        if column == 0:
            _heading(axes, "The clip; yellow: the mask around hand and object")
        _corner(axes, f"frame {pixel}")
    axes = _image_axes(figure, row[len(frames)])
    axes.imshow(inspection.reference.cpu().numpy())
    _heading(axes, "The object's picture")


def _map_row(
    figure: Any,
    row: Any,
    inspection: Inspection,
    result: ScheduleResult,
    frames: Sequence[int],
    shade: float,
    color: str,
) -> None:
    for column, latent in enumerate(frames):
        axes = _image_axes(figure, row[column])
        gray = inspection.clip.frames[_pixel_frame(latent)].float().mean(-1) * 0.45
        axes.imshow(gray.cpu().numpy(), cmap="gray", vmin=0, vmax=255)
        share = _enlarge(100 * result.mass[latent], inspection)
        seen = _enlarge(inspection.tokens[latent].cpu(), inspection)
        # Left clear where the mask gate is shut; what it lets through there is checked, not
        # assumed.
        axes.imshow(np.ma.masked_where(~seen, share), cmap="inferno", vmin=0, vmax=shade)
        if column == 0:
            _heading(axes, _map_heading(result), color=color)
        _corner(axes, f"frame {_pixel_frame(latent)}")


def _map_heading(result: ScheduleResult) -> str:
    if isinstance(result.schedule, str):
        return "Head-sliding RoPE: every head places the object's picture at another frame"
    return f"Fixed RoPE: every head places the object's picture at frame {result.schedule:g}"


def _map_legend(figure: Any, cell: Any, inspection: Inspection, shade: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_subplot(cell)
    axes.set_axis_off()
    bar = axes.inset_axes((0.04, 0.84, 0.88, 0.06))
    scale = ScalarMappable(Normalize(0, shade), "inferno")
    figure.colorbar(scale, cax=bar, orientation="horizontal", extend="max")
    bar.set_title("attention on the picture, %", size=10, loc="left")
    paragraphs = (
        "One square is one token (16 x 16 pixels, 4 frames); its share is averaged over the heads.",
        _background_sentence(inspection),
        "Frame 0 is given finished, so it never looks.",
    )
    text = "\n\n".join(textwrap.fill(paragraph, 36) for paragraph in paragraphs)
    axes.text(0.04, 0.66, text, size=9.5, va="top", transform=axes.transAxes, linespacing=1.3)


def _background_sentence(inspection: Inspection) -> str:
    outside = int((~inspection.tokens).sum())
    largest = max(result.background_max for result in inspection.schedules)
    value = "exactly 0" if largest == 0 else f"at most {largest:.0e} (rounding)"
    return (
        f"Grey is outside the mask. Measured over all {outside:,} such tokens, heads and "
        f"schedules, their share is {value}."
    )


def _shade(inspection: Inspection, maps: Sequence[ScheduleResult], frames: Sequence[int]) -> float:
    """Choose the upper end of the colour scale, in percent, shared by all maps."""
    values = [100 * r.mass[t][inspection.tokens[t].cpu()] for r in maps for t in frames]
    return max(float(torch.cat(values).quantile(0.97)), 1e-6)


def _pixel_frame(latent: int) -> int:
    """Return the video frame that stands for a latent one: the third of its four."""
    return max(0, 4 * latent - 1)


def _enlarge(tokens: Tensor, inspection: Inspection) -> np.ndarray:
    side = STRIDES.token
    big = tokens.repeat_interleave(side, 0).repeat_interleave(side, 1)
    return np.asarray(big[: inspection.clip.height, : inspection.clip.width].numpy())


def _image_axes(figure: Any, cell: Any) -> Any:
    axes = figure.add_subplot(cell)
    axes.set_axis_off()
    return axes


def _heading(axes: Any, text: str, *, color: str = "black") -> None:
    axes.set_title(text, loc="left", size=12, weight="bold", color=color, pad=5)


def _corner(axes: Any, text: str) -> None:
    box = {"facecolor": "black", "alpha": 0.6, "pad": 2, "linewidth": 0}
    axes.text(
        0.015, 0.965, text, transform=axes.transAxes, color="white", size=9, va="top", bbox=box
    )


# --------------------------------------------------------------------------------------- the charts


def _curves(axes: Any, inspection: Inspection) -> None:
    """Draw the share of attention over frames, each curve relative to its own mean."""
    axes.axhline(1, color="#999999", linewidth=1, linestyle=":")
    last = len(inspection.schedules[0].curve) - 1
    for i, result in enumerate(inspection.schedules):
        known = [(t, value) for t, value in enumerate(result.curve) if value is not None]
        mean = sum(value for _, value in known) / len(known)
        relative = [math.nan if value is None else value / mean for value in result.curve]
        axes.plot(
            range(last + 1),
            relative,
            color=_COLORS[i % len(_COLORS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=4.5,
            linewidth=2,
            label=f"{schedule_name(result.schedule)}: spread {result.spread:.2f}",
        )
    axes.set_xlim(-0.4, last + 0.4)
    axes.xaxis.get_major_locator().set_params(integer=True)
    low, high = axes.get_ylim()
    axes.set_ylim(0, high + 0.42 * (high - min(low, 0)))
    axes.set_xlabel(
        "latent frame (4 video frames each; frame 0 never looks)\n"
        "Some unevenness is the object's own: it moves and turns, "
        "so it resembles its picture now more, now less."
    )
    axes.set_ylabel("attention on the object's picture\nrelative to the curve's own mean")
    _heading(axes, "How loud the object is in each frame, for tokens inside the mask")
    axes.legend(
        loc="upper right",
        frameon=False,
        fontsize=10,
        title="spread = loudest frame / faintest; 1 is ideal",
    )
    _plain(axes)


def _times(axes: Any, inspection: Inspection) -> None:
    timing = inspection.timing
    assert timing is not None
    mask = _bytes(timing.mask_bytes)
    bars = [
        (f"PyTorch SDPA,\n{mask} dense mask,\nrotation not counted", timing.sdpa, "#9a9a9a"),
        ("this op,\nrotation not counted", timing.op, _COLORS[1]),
        ("this op,\nrotation counted", timing.op_with_rotation, _COLORS[1]),
    ]
    names, seconds, colors = zip(*bars, strict=True)
    unit, factor = ("seconds", 1) if max(seconds) >= 0.1 else ("milliseconds", 1000)
    lengths = [factor * s for s in seconds]
    drawn = axes.barh(range(len(bars)), lengths, color=colors, height=0.58)
    axes.bar_label(drawn, [_seconds(s) for s in seconds], padding=4, size=10.5)
    axes.set_yticks(range(len(bars)), names, size=9.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * max(lengths))
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(
        f"{unit} for {_count(timing.heads, 'head')}, "
        f"median of {_count(timing.repeats, 'run')} taken in turn\n" + _machine(inspection)
    )
    _heading(axes, "Time of one attention call")
    _plain(axes)


def _machine(inspection: Inspection) -> str:
    about = inspection.environment
    return (
        f"{about['device']}, {about['threads']} threads\n"
        f'backend "{about["backend"]}", torch {about["torch"]}, {dtype_name(inspection.dtype)}'
    )


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.3g} ms"


def _bytes(value: int) -> str:
    return f"{value / 1e6:,.0f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
