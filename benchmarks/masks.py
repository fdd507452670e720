"""How well `genhoi mask` without weights masks held-out clips whose masks are known.

    python -m benchmarks.masks

makes clips of hand and object (`genhoi.data.synthetic`, split "test"), gives the engine one box on
frame 0, and writes masks.csv, a row for each clip, with intersection over union (IoU) over frames.
It prints the rows of the table in docs/results/masks/README.md.

The truth is the masks that training sees: hand and object, two pixels wider. The engine's masks are
made two pixels wider too (`--grow 2`). The columns that end in "exact" compare both without that.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from genhoi.data.sample import HOISample
from genhoi.data.synthetic import SyntheticHOI
from genhoi.masking import Box, track_mask
from genhoi.masking.shape import grown
from genhoi_kernels.files import whole_file

__all__ = ["box_around", "iou", "measure"]

_GROWTH = 2  # pixels by which the truth is wider than hand and object
_CASES = ((128, 0.0), (128, 0.1), (240, 0.0))  # side of the frames; slack of the box


@click.command()
@click.option("--clips", default=24, show_default=True, help="Held-out clips.")
@click.option("--frames", default=49, show_default=True, help="Of each.")
@click.option("--seed", default=0, show_default=True, help="Of the clips.")
@click.option(
    "--out",
    default="docs/results/masks",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for masks.csv.",
)
def main(clips: int, frames: int, seed: int, out: Path) -> None:
    """Measure the built-in engine of genhoi mask on clips whose masks are known."""
    rows: list[dict[str, Any]] = []
    for side, slack in _CASES:
        data = SyntheticHOI("test", clips=clips, frames=frames, size=(side, side), seed=seed)
        here = []
        for i in range(clips):
            here.append({"size": side, "slack": slack, "clip": i, **measure(data[i], slack)})
            click.echo(f"{side} px, slack {slack:.0%}, clip {i}: IoU {here[-1]['iou']:.3f}")
        rows += here
        click.echo(_summary(here))
        _write(out / "masks.csv", rows)


def measure(sample: HOISample, slack: float = 0.0) -> dict[str, Any]:
    """Track one clip from the box around its mask on frame 0; compare with the truth.

    Args:
        sample: with object and hand masks.
        slack: by which the box is wider and higher, 0.1: a tenth.
    """
    assert sample.object_mask is not None and sample.hand_mask is not None
    start = time.perf_counter()
    track = track_mask(sample.clip, [box_around(sample.mask[0], slack)])
    seconds = time.perf_counter() - start
    wide = iou(grown(track.mask, _GROWTH), sample.mask)
    exact = iou(track.mask, sample.object_mask | sample.hand_mask)
    return {
        "iou": round(float(wide.mean()), 4),
        "iou_first": round(float(wide[0]), 4),
        "iou_last": round(float(wide[-1]), 4),
        "iou_worst_frame": round(float(wide.min()), 4),
        "worst_frame": int(wide.argmin()),
        "iou_exact": round(float(exact.mean()), 4),
        "lost": int(track.lost.sum()),
        "confidence_min": round(float(track.confidence.min()), 3),
        "seconds": round(seconds, 2),
    }


def box_around(mask: Tensor, slack: float) -> Box:
    """Give the box around a mask [H, W], wider and higher by its slack, cut at the frame."""
    height, width = mask.shape
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    (top, bottom), (left, right) = _widened(rows, height, slack), _widened(columns, width, slack)
    return Box(left, top, right - left, bottom - top)


def _widened(places: Tensor, size: int, slack: float) -> tuple[float, float]:
    low, high = float(places[0]), float(places[-1]) + 1
    more = slack * (high - low) / 2
    return max(0.0, low - more), min(float(size), high + more)


def iou(found: Tensor, truth: Tensor) -> Tensor:
    """Compute intersection over union of masks [F, H, W] for every frame: float32 [F]."""
    union = (found | truth).sum((1, 2))
    return torch.where(union > 0, (found & truth).sum((1, 2)) / union.clamp(min=1), 1.0)


def _summary(rows: list[dict[str, Any]]) -> str:
    worst = min(rows, key=lambda row: row["iou"])

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    return (
        f"| {worst['size']} px | {worst['slack']:.0%} | {mean('iou'):.3f} | "
        f"{worst['iou']:.3f} (clip {worst['clip']}) | {mean('iou_first'):.3f} | "
        f"{mean('iou_last'):.3f} | {mean('iou_exact'):.3f} | {mean('seconds'):.1f} s |"
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
