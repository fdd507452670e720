"""Fair timing: contenders take turns, and samples that had to wait for a core are dropped."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "Sample",
    "Timings",
    "interleave",
    "is_contended",
    "queued_seconds",
    "ratio",
    "stopwatch",
]

MAX_QUEUED = 0.03
"""Share of the threads' time in the run queue above which a sample is dropped."""

MIN_SAMPLE = 10e-3
"""Seconds of a sample on a CPU at least: shorter calls are repeated within it."""

WARM_BELOW = 20e-3
"""Seconds of a call on a CPU below which all who take turns with it are warmed up first."""

MORE_ROUNDS = 3


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, and whether another program took a core meanwhile."""

    seconds: float
    contended: bool


@dataclass
class Timings:
    """Samples of one contender, one a round (None: not finished)."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def clean(self) -> list[float]:
        """Seconds of the samples that count."""
        return [s.seconds for s in self.samples if not s.contended]

    @property
    def dropped(self) -> int:
        """How many samples do not."""
        return len(self.samples) - len(self.clean)

    def median(self) -> float:
        """Seconds; raises StatisticsError without a clean sample."""
        return statistics.median(self.clean)

    def spread(self) -> tuple[float, float]:
        """First and third quartile of the clean samples, in seconds."""
        clean = sorted(self.clean)
        if len(clean) < 2:
            return clean[0], clean[0]
        low, _, high = statistics.quantiles(clean, n=4, method="inclusive")
        return low, high


def ratio(one: Timings, other: Timings) -> float | None:
    """Median over the rounds of one's time / other's time; None if no round is clean in both."""
    found = [
        a.seconds / b.seconds
        for a, b in zip(one.samples, other.samples, strict=True)
        if not (a.contended or b.contended)
    ]
    return statistics.median(found) if found else None


def queued_seconds() -> float:
    """Time that the threads of this process spent waiting for a core; 0 where Linux can't say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that has just ended
            continue
    return total / 1e9


def is_contended(queued: float, wall: float, threads: int) -> bool:
    """Whether so much of the threads' time went into the run queue that a sample cannot count."""
    return queued > MAX_QUEUED * wall * threads


def stopwatch(device: torch.device) -> Callable[[Callable[[], Any], int], Sample]:
    """A function that times so many calls in a row, for one device; seconds are of one call.

    On a CUDA device it flushes the L2 cache before, and reads CUDA events. On a CPU no cache is
    flushed: the contender before has left its own data there.
    """
    return _CudaStopwatch(device) if device.type == "cuda" else _cpu_sample


def _cpu_sample(call: Callable[[], Any], repeats: int) -> Sample:
    queued, start = queued_seconds(), time.perf_counter()
    for _ in range(repeats):
        call()
    wall = time.perf_counter() - start
    contended = is_contended(queued_seconds() - queued, wall, torch.get_num_threads())
    return Sample(wall / repeats, contended)


class _CudaStopwatch:
    def __init__(self, device: torch.device) -> None:
        size = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(2 * max(size, 1 << 20), dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], Any], repeats: int) -> Sample:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return Sample(begin.elapsed_time(end) / 1e3 / repeats, contended=False)


def interleave(
    calls: Sequence[Callable[[], Any]],
    *,
    device: torch.device,
    rounds: int,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timings]:
    """Time calls that are warm already, in turn within each round.

    If one of them is short, each is called once before its sample, outside the clock: caches, and
    memory that the contender before gave back to the allocator or the system, would else be most of
    what is measured, for handing back another's 100 MB takes longer than the call.

    Args:
        calls: what to time.
        device: where they compute.
        rounds: clean samples wanted of each; contended ones are made up for by more rounds, up to
            MORE_ROUNDS times as many.
        seconds: no new round begins after this long; the first always runs.
        progress: called with the clean rounds so far, and wanted.

    Returns:
        For each call its samples, as many for all.
    """
    watch = stopwatch(device)
    start = time.monotonic()
    first = [watch(call, 1) for call in calls]
    repeats = [_repeats(sample.seconds, device) for sample in first]
    short = device.type == "cpu" and min((s.seconds for s in first), default=1.0) < WARM_BELOW
    found = [Timings() for _ in calls]
    if not short and all(count == 1 for count in repeats):
        found = [Timings([sample]) for sample in first]
    for done in range(MORE_ROUNDS * rounds):
        fewest = min((len(timings.clean) for timings in found), default=rounds)
        begun = done or all(timings.samples for timings in found)
        if fewest >= rounds or (begun and time.monotonic() - start > seconds):
            break
        progress(fewest, rounds)
        for call, count, timings in zip(calls, repeats, found, strict=True):
            if short:
                call()
            timings.samples.append(watch(call, count))
    return found


def _repeats(seconds: float, device: torch.device) -> int:
    """Calls in a sample: one on a GPU, whose cache is to be cold, and where one is long enough."""
    if device.type == "cuda":
        return 1
    return max(1, math.ceil(MIN_SAMPLE / max(seconds, 1e-9)))
