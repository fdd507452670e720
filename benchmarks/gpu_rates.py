"""Writes the rates that estimates use: `python -m benchmarks.gpu_rates`.

They come from the newest results of each GPU in docs/results, and go to
genhoi/editing/gpu_rates.json, which is installed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.bare_attention import backend_of
from benchmarks.block import BRANCHES, LABELS, TEXT_TOKENS, block_config
from benchmarks.gpu_report.folder import REPORT, RESULTS, read_json
from benchmarks.gpu_report.table import is_ours
from benchmarks.report import Row, read_numbers
from benchmarks.results import newest
from genhoi.editing.gpu_rates import RATES_FILE
from genhoi.models.forward_needs import EmptyModel, Work
from genhoi_kernels.files import whole_file
from genhoi_kernels.tune.shapes import Shape, find_shape

__all__ = ["block_work", "rates", "rates_text"]

_PATCH = 2  # latent pixels that a token is wide and high


@click.command()
def main() -> None:
    """Write the rates of all GPUs that have results."""
    with whole_file(RATES_FILE) as temporary:
        temporary.write_text(rates_text(newest()), encoding="utf-8")
    click.echo(f"Rates: {RATES_FILE}")


def rates_text(folders: Sequence[Path]) -> str:
    """Return the file's text, for folders of results."""
    return json.dumps([rates(folder) for folder in folders], indent=2) + "\n"


def rates(folder: Path) -> dict[str, Any]:
    """Return a GPU's rates, as `genhoi.editing.gpu_rates.GpuRates` has them."""
    environment = read_json(folder / REPORT)["environment"]
    limits = environment["limits"]
    rows = [row for row in read_numbers(folder / RESULTS) if not row["reason"]]
    attention = _attention(rows)
    return {
        "title": environment["gpu"],
        "source": folder.as_posix(),
        "products": _rounded(limits["flops"]),
        "copies": _rounded(limits["bandwidth"]),
        "traffic": _traffic(rows, attention, limits["flops"]),
        "attention": attention,
    }


def _attention(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rate of the fastest backend in each shape."""
    fastest: dict[str, Row] = {}
    for row in rows:
        if row["suite"] != "attention" or row["direction"] != "forward" or not is_ours(row):
            continue
        best = fastest.get(row["shape"])
        if best is None or row["ms"] < best["ms"]:
            fastest[row["shape"]] = row
    return [
        {
            "head_dim": int(row["head_dim"]),
            "tokens": int(row["n"]),
            "backend": ", ".join(filter(None, (backend_of(row["contender"]), row["kernel"]))),
            "rate": _rounded(row["tflops"] * 1e12),
        }
        for row in fastest.values()
    ]


def _traffic(
    rows: Sequence[Row], attention: Sequence[dict[str, Any]], products: float
) -> float | None:
    """Return the bytes a second of what is neither attention nor a product in a timed block."""
    timed = [row for row in rows if row["suite"] == "block" and row["contender"] == LABELS[0]]
    if not timed:
        return None
    row = timed[0]
    work = block_work(find_shape(row["shape"]), int(row["steps"]))
    rate = next(
        x["rate"]
        for x in attention
        if (x["head_dim"], x["tokens"]) == (int(row["head_dim"]), int(row["n"]))
    )
    left = row["ms"] / 1000 - work.attention / rate - work.products / products
    return _rounded(work.moved / left)


def block_work(shape: Shape, steps: int) -> Work:
    """Count what the suite `block` computes, its reference pass included."""
    f, h, w = shape.grid
    rows, columns = shape.ref_grid
    # The condition's channels too, which a Wan wants here: next to nothing.
    config = block_config(shape) | {"_class_name": "WanTransformer3DModel", "in_channels": 36}
    needs = EmptyModel(config, dtype=torch.bfloat16, preset="paper").forward_needs(
        (f, _PATCH * h, _PATCH * w),
        references=[(_PATCH * rows, _PATCH * columns)],
        text_tokens=TEXT_TOKENS,
    )
    return needs.once + needs.each * (steps * BRANCHES)


def _rounded(x: float) -> float:
    """Round to four digits: more were not measured."""
    return float(f"{x:.4g}")


if __name__ == "__main__":
    main()
