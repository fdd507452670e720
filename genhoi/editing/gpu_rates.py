"""How fast GPUs compute an edit, as measured: docs/results has the rows, gpu_rates.json the rates.

`python -m benchmarks.gpu_rates` writes that file anew.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genhoi.editing.gpus import Gpu, gpu_called

__all__ = ["RATES_FILE", "AttentionRate", "GpuRates", "measured_rates", "nearest_measured"]

RATES_FILE = Path(__file__).with_name("gpu_rates.json")


@dataclass(frozen=True)
class AttentionRate:
    """The forward pass of the op, bfloat16, by the backend that was the fastest.

    Args:
        head_dim, tokens: of the shape.
        backend: with its kernel.
        rate: operations a second.
    """

    head_dim: int
    tokens: int
    backend: str
    rate: float


@dataclass(frozen=True)
class GpuRates:
    """What was measured on one GPU.

    Args:
        title: of the GPU, as its driver calls it.
        source: the folder of the results.
        products: operations a second of the best matrix product.
        copies: bytes a second that a copy reads and writes.
        traffic: bytes a second that everything but products and attention reads and writes in a
            block of Wan; None where no block was timed.
        attention: rates of the op.
    """

    title: str
    source: str
    products: float
    copies: float
    traffic: float | None
    attention: tuple[AttentionRate, ...]

    def attention_at(self, head_dim: int, tokens: int) -> AttentionRate:
        """Return the rate of the shape that is nearest."""

        def distance(row: AttentionRate) -> tuple[float, float]:
            return abs(row.head_dim - head_dim), abs(math.log(row.tokens / max(tokens, 1)))

        return min(self.attention, key=distance)


@functools.cache
def measured_rates() -> tuple[GpuRates, ...]:
    """Read the rates that come with the package."""
    rows = json.loads(RATES_FILE.read_text(encoding="utf-8"))
    return tuple(
        GpuRates(**row | {"attention": tuple(AttentionRate(**x) for x in row["attention"])})
        for row in rows
    )


def nearest_measured(gpu: Gpu, rates: Sequence[GpuRates] | None = None) -> tuple[GpuRates, Gpu]:
    """Find the measured GPU that is most like another one, itself where it was measured.

    Args:
        gpu: of the table.
        rates: to choose from; None for those that come with the package.

    Returns:
        Its rates, and its line of the table.
    """
    known = [(row, its) for row in (rates or measured_rates()) if (its := gpu_called(row.title))]

    def distance(pair: tuple[GpuRates, Gpu]) -> tuple[bool, bool, float]:
        its = pair[1]
        apart = abs(math.log(its.peak / gpu.peak)) + abs(math.log(its.bandwidth / gpu.bandwidth))
        return its.name != gpu.name, its.architecture != gpu.architecture, apart

    return min(known, key=distance)
