"""What the machine allows, measured in the same run: arithmetic peak and memory bandwidth."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.timing import stopwatch
from genhoi_kernels.backends import native

__all__ = ["Limits", "measure_limits"]

_SECONDS = 1.0  # spent on each of the two
_MATMUL = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_QUICK_MATMUL = (64, 128)
_COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


@dataclass(frozen=True)
class Limits:
    """Limits of a device for one dtype and number of threads.

    Attributes:
        flops: FLOP/s of the arithmetic units.
        flops_source: how that was measured.
        bandwidth: bytes/s of a large copy, read and write counted.
    """

    flops: float
    flops_source: str
    bandwidth: float

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for so many operations and bytes (the roofline)."""
        return max(flops / self.flops, moved / self.bandwidth)

    def binding(self, flops: float, moved: float) -> str:
        """Which of the two it is: "arithmetic" or "memory"."""
        return "arithmetic" if flops / self.flops >= moved / self.bandwidth else "memory"


def measure_limits(dtype: torch.dtype, device: torch.device, *, quick: bool = False) -> Limits:
    """Measure both; about three seconds.

    Args:
        dtype: float32, bfloat16 or float16.
        device: with the threads that torch is set to.
        quick: small sizes, a few calls: for a dry run, whose numbers say nothing.
    """
    peak = getattr(native.module, "peak_flops", None) if device.type == "cpu" else None
    if peak is not None:
        flops, source = _highest(peak, str(dtype).removeprefix("torch.")), "register loop"
    else:
        sizes = _QUICK_MATMUL if quick else _MATMUL[device.type]
        flops, source = _matmul_flops(dtype, device, sizes), "best torch matmul"
    return Limits(flops, source, _copy_bandwidth(device, 1 << 20 if quick else None))


def _highest(peak: Callable[[str], float], dtype: str) -> float:
    """The best of several runs: another program can only make one slower."""
    found, start = [float(peak(dtype))], time.monotonic()
    while time.monotonic() - start < _SECONDS:
        found.append(float(peak(dtype)))
    return max(found)


def _best(call: Callable[[], Any], device: torch.device) -> float:
    """Least seconds of a call, over at least two calls and about _SECONDS."""
    watch = stopwatch(device)
    best, calls, start = float("inf"), 0, time.monotonic()
    while calls < 3 or time.monotonic() - start < _SECONDS:
        seconds = watch(call, 1).seconds
        if calls:  # the first is a warm-up
            best = min(best, seconds)
        calls += 1
    return best


def _matmul_flops(dtype: torch.dtype, device: torch.device, sizes: Sequence[int]) -> float:
    best = 0.0
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _best(functools.partial(torch.mm, a, b, out=out), device)
        best = max(best, 2.0 * size**3 / seconds)
    return best


def _copy_bandwidth(device: torch.device, size: int | None) -> float:
    size = size or _COPY_BYTES[device.type]
    source = torch.ones(size // 4, device=device)
    target = torch.zeros_like(source)
    return 2.0 * size / _best(lambda: target.copy_(source), device)
