"""Measures how the windows of a long clip are best joined, on held-out clips and the tiny model.

    python -m benchmarks.windows

writes windows.csv (a row for each clip and setting), windows.png and README.md.
"""

from __future__ import annotations

import csv
import io
import platform
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from genhoi.data.sample import HOISample
from genhoi.data.synthetic import SyntheticHOI
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi.editing.plan import EditWarning
from genhoi.editing.windows import windows
from genhoi.evaluation.drift import drift
from genhoi.evaluation.metrics import region_psnr, squared_error
from genhoi.media import atomic_path

_TEST_CLIPS = 24
_WINDOW = 49
# overlap, whether colours are matched outside the mask
_SETTINGS = ((1, False), (5, False), (9, False), (17, False), (1, True), (9, True))
_COLUMNS = ("psnr", "psnr_first", "psnr_last", "colour_drift", "contrast", "jump")


@click.command()
@click.option("--clips", default=12, show_default=True, help="Held-out clips.")
@click.option("--frames", default=145, show_default=True, help="Of each clip, 1 + 4 n.")
@click.option("--steps", default=12, show_default=True, help="Of Euler's method.")
@click.option(
    "--out",
    default="docs/results/windows",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the results.",
)
def main(clips: int, frames: int, steps: int, out: Path) -> None:
    """Edit long clips with every way of joining windows, and measure what comes of it."""
    warnings.simplefilter("ignore", EditWarning)
    pipeline = GenHOIPipeline.from_pretrained("tiny")
    data = SyntheticHOI("test", clips=_TEST_CLIPS, frames=frames)
    rows: list[dict[str, Any]] = []
    curves: dict[tuple[int, bool], list[np.ndarray]] = {setting: [] for setting in _SETTINGS}
    for index in range(clips):
        sample = data[index]
        truth = pipeline.base.decode(pipeline.base.encode(sample.clip.frames))
        for setting in _SETTINGS:
            row, curve = _measured(pipeline, sample, truth, setting, steps)
            rows.append({"clip": index, **row})
            curves[setting].append(curve)
        click.echo(f"clip {index + 1} of {clips}")
    out.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.windows --clips {clips} --frames {frames} --steps {steps}"
    _write_csv(out / "windows.csv", rows)
    _draw(out / "windows.png", curves, frames)
    with atomic_path(out / "README.md", overwrite=True) as temporary:
        temporary.write_text("\n".join(_report(rows, command, frames)) + "\n", encoding="utf-8")
    click.echo(f"Results: {out}")


def _measured(
    pipeline: GenHOIPipeline,
    sample: HOISample,
    truth: Tensor,
    setting: tuple[int, bool],
    steps: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """Edit one clip; return its numbers, and the PSNR of every frame inside the mask."""
    overlap, match = setting
    edited = pipeline(
        sample.clip,
        sample.mask,
        sample.object,
        steps=steps,
        window=_WINDOW,
        overlap=overlap,
        match_colour=match,
        progress_bar=False,
    ).frames
    curve = region_psnr(squared_error(edited, truth), sample.mask).numpy()
    third = len(curve) // 3
    moved = drift(edited, sample.mask)
    row = {
        "overlap": overlap,
        "match_colour": match,
        "psnr": float(np.nanmean(curve)),
        "psnr_first": float(np.nanmean(curve[:third])),
        "psnr_last": float(np.nanmean(curve[-third:])),
        "colour_drift": moved.colour,
        "colour_drift_truth": drift(truth, sample.mask).colour,
        "contrast": moved.contrast,
        "jump": _jump(edited, truth, sample.mask, overlap),
    }
    return row, curve


def _jump(edited: Tensor, truth: Tensor, mask: Tensor, overlap: int) -> float:
    """Compare the change from frame to frame at the joins with that elsewhere; 1 is no jump.

    What the truth changes is taken off.
    """
    change = (edited.float() - truth.float()).diff(dim=0).abs().mean(-1)
    steps = np.array([float(x[m].mean()) for x, m in zip(change, mask[1:], strict=True)])
    joins = windows(len(edited), _WINDOW, overlap)[1:]
    at_join = np.zeros(len(steps), dtype=bool)
    for begin, _ in joins:
        at_join[begin : begin + overlap] = True
    most = np.mean([steps[begin : begin + overlap].max() for begin, _ in joins])
    return float(most / np.nanmean(steps[~at_join]))


def _name(setting: tuple[int, bool]) -> str:
    overlap, match = setting
    return f"overlap {overlap}" + (", colours matched" if match else "")


def _report(rows: Sequence[dict[str, Any]], command: str, frames: int) -> Iterator[str]:
    clips = 1 + max(row["clip"] for row in rows)
    truth = np.mean([row["colour_drift_truth"] for row in rows])
    yield "# How windows of a long clip are joined"
    yield ""
    yield f"`{command}`:"
    yield textwrap.fill(
        f"{clips} held-out clips of {frames} frames (test split, seed 0), the tiny model, windows "
        f"of at most {_WINDOW} frames, no frame given, against the clips as the codec gives them "
        f"back; torch {torch.__version__}, {platform.machine()}. In brackets: the difference to "
        f"the first row and its standard error, clip by clip.",
        width=110,
    )
    yield ""
    yield (
        "| windows | PSNR inside the mask, dB: all | first third | last third | colour drift, "
        f"Delta E (the truth's own: {truth:.1f}) | contrast, last over first frames | jump at a "
        "join |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    first = _of(rows, _SETTINGS[0])
    for setting in _SETTINGS:
        own = _of(rows, setting)
        cells = [_cell(own, first, name) for name in _COLUMNS]
        yield f"| {_name(setting)} | " + " | ".join(cells) + " |"
    yield ""
    yield textwrap.fill(
        "Drift is between the first and last 16 frames of the masked region "
        "(genhoi.evaluation.drift). A jump is the largest change of the error from one frame to "
        "the next at a join, over the mean change elsewhere: 1 is none.",
        width=110,
    )
    yield ""
    yield "![PSNR inside the mask over the frames](windows.png)"


def _of(rows: Sequence[dict[str, Any]], setting: tuple[int, bool]) -> list[dict[str, Any]]:
    return [row for row in rows if (row["overlap"], row["match_colour"]) == setting]


def _cell(own: list[dict[str, Any]], first: list[dict[str, Any]], name: str) -> str:
    """Write a mean, and how far it is from that of the first setting."""
    mean = np.mean([row[name] for row in own])
    text = f"{mean:.2f}"
    if own == first:
        return text
    apart = np.array([a[name] - b[name] for a, b in zip(own, first, strict=True)])
    return f"{text} ({apart.mean():+.2f} ± {apart.std(ddof=1) / len(apart) ** 0.5:.2f})"


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()}
        )
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _draw(path: Path, curves: dict[tuple[int, bool], list[np.ndarray]], frames: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    for setting, lines in curves.items():
        axes.plot(np.nanmean(lines, axis=0), label=_name(setting), linewidth=1.3)
    for begin, _ in windows(frames, _WINDOW, 1)[1:]:
        axes.axvline(begin, color="grey", linewidth=0.6, linestyle=":")
    axes.set_xlabel("frame (dotted: where windows of overlap 1 join)")
    axes.set_ylabel("PSNR inside the mask, dB")
    axes.legend(fontsize=7, ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
