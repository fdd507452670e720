"""How long an amount of work takes: on a GPU by name, from measured rates, or on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from genhoi.editing.gpu_rates import GpuRates, measured_rates, nearest_measured
from genhoi.editing.gpus import Gpu
from genhoi.models.forward_needs import Work
from genhoi_kernels import reference_attention

__all__ = ["Seconds", "Speeds", "named_speeds", "probed_speeds"]


@dataclass(frozen=True)
class Seconds:
    """How long each kind of work takes.

    Args:
        attention, products: of the operations.
        rest: of what reads and writes, and computes next to nothing.
    """

    attention: float
    products: float
    rest: float

    @property
    def total(self) -> float:
        """Add them up: they come one after the other."""
        return self.attention + self.products + self.rest


@dataclass(frozen=True)
class Speeds:
    """How fast a device is at each kind of work.

    Args:
        attention, products: operations a second.
        traffic: bytes a second, read and written.
        measured: whether that very device was timed, at attention and products.
        source: where the numbers come from, for people.
    """

    attention: float
    products: float
    traffic: float
    measured: bool
    source: str

    def seconds(self, work: Work) -> Seconds:
        """Say how long work takes."""
        return Seconds(
            work.attention / self.attention,
            work.products / self.products,
            work.moved / self.traffic,
        )


def named_speeds(gpu: Gpu, *, head_dim: int, tokens: int, dtype: torch.dtype) -> Speeds | None:
    """Say how fast a GPU of the table is.

    Where it was not measured, it is taken to reach the share of its published peak that the GPU
    most like it reached.

    Args:
        gpu: of the table.
        head_dim, tokens: of the attention.
        dtype: computed in.

    Returns:
        None where nothing of the kind was measured on any GPU: in float32.
    """
    if dtype == torch.float32:
        return None
    rates, its = nearest_measured(gpu)
    attention = rates.attention_at(head_dim, tokens)
    share = gpu.peak / its.peak
    is_it = its == gpu
    timed, its_block = nearest_measured(gpu, [row for row in measured_rates() if row.traffic])
    assert timed.traffic is not None
    return Speeds(
        attention=attention.rate * share,
        products=rates.products * share,
        traffic=timed.traffic * gpu.bandwidth / its_block.bandwidth,
        measured=is_it,
        source=_source(rates, timed, is_it=is_it, backend=attention.backend),
    )


def _source(rates: GpuRates, timed: GpuRates, *, is_it: bool, backend: str) -> str:
    if not is_it:
        return (
            f"not measured on this GPU: its published peaks, times the share of theirs that an "
            f"{rates.title} reached ({rates.source}), and for the rest an {timed.title} "
            f"({timed.source})"
        )
    words = f"attention ({backend}) and products measured on an {rates.title} ({rates.source})"
    if timed.title != rates.title:
        words += f", the rest by published bandwidth after an {timed.title} ({timed.source})"
    return words


def probed_speeds(device: torch.device, *, head_dim: int, dtype: torch.dtype) -> Speeds:
    """Time a matrix product, the op and a copy on a device for a moment."""
    side = 1024 if device.type == "cpu" else 8192
    tokens = 1024 if device.type == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)
    q = torch.randn(1, tokens, 4, head_dim, device=device).to(dtype)
    with torch.inference_mode():
        product = _shortest(lambda: a @ a, device)
        attention = _shortest(lambda: reference_attention(q, q, q), device)
        copy = _shortest(a.clone, device)
    return Speeds(
        attention=4 * tokens**2 * 4 * head_dim / attention,
        products=2 * side**3 / product,
        traffic=2 * a.nbytes / copy,
        measured=True,
        source=f"the speed of {device} just now",
    )


def _shortest(call: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
