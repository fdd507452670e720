"""Fair timing: contenders take turns, and samples that had to wait for a core are dropped."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MAX_QUEUED = 0.03
"""Share of the threads' time in the run queue above which a sample is dropped."""

MIN_SAMPLE = 10e-3
"""Seconds of a sample on a CPU at least: shorter calls are repeated within it."""

WARM_BELOW = 20e-3
"""Seconds of a call on a CPU below which all who take turns with it are warmed up first."""

MORE_ROUNDS = 3

HEAD_START = 4_000_000
"""Cycles that a GPU sleeps before a sample, about 2 ms: the host enqueues the call meanwhile."""

Turn = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, and whether another program took a core meanwhile."""

    seconds: float
    contended: bool


@dataclass
class Timings:
    """Samples of one contender, one a round; fewer if it raised, and then `error` says what."""

    samples: list[Sample] = field(default_factory=list)
    error: str = ""

    @property
    def clean(self) -> list[float]:
        """Give the seconds of the samples that count."""
        return [s.seconds for s in self.samples if not s.contended]

    @property
    def dropped(self) -> int:
        """Count the samples that do not."""
        return len(self.samples) - len(self.clean)

    def median(self) -> float:
        """Return the median in seconds; raises StatisticsError without a clean sample."""
        return statistics.median(self.clean)

    def spread(self) -> tuple[float, float]:
        """Return the first and third quartile of the clean samples, in seconds."""
        clean = sorted(self.clean)
        if len(clean) < 2:
            return clean[0], clean[0]
        low, _, high = statistics.quantiles(clean, n=4, method="inclusive")
        return low, high


def ratio(one: Timings, other: Timings) -> float | None:
    """Return the median over rounds of two times' ratio; None if no round is clean in both."""
    ratios = [
        a.seconds / b.seconds
        for a, b in zip(one.samples, other.samples, strict=False)  # one may have ended early
        if not (a.contended or b.contended)
    ]
    return statistics.median(ratios) if ratios else None


def queued_seconds() -> float:
    """Return the seconds that this process waited for a core; 0 where Linux can't say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError, ValueError):  # a thread that has just ended
            continue
    return total / 1e9


def is_contended(queued: float, wall: float, threads: int) -> bool:
    """Say whether the threads waited in the run queue for so long that a sample cannot count."""
    return queued > MAX_QUEUED * wall * threads


def is_hardware(device: torch.device) -> bool:
    """Say whether a CUDA device is hardware: an emulated GPU has no clock."""
    return device.type == "cuda" and "emulated" not in torch.cuda.get_device_name(device).lower()


def stopwatch(device: torch.device) -> Callable[[Callable[[], Any], int], Sample]:
    """Return a function that times so many calls in a row and gives the seconds of one.

    On a CUDA device it flushes the L2 cache before, lets the device sleep while the host enqueues
    the calls, and reads CUDA events. On a CPU no cache is flushed: the contender before has left
    its own data there.
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
        self._device, self._sleeps = device, is_hardware(device)
        self._flush = torch.empty(2 * max(size, 1 << 20), dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], Any], repeats: int) -> Sample:
        # Events and the sleep go to the current device's stream.
        with torch.cuda.device(self._device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            if self._sleeps:
                torch.cuda._sleep(HEAD_START)  # else the clock runs while the host prepares
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
    turns: Sequence[Turn] | None = None,
    keep_going: bool = False,
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
        turns: for each call what holds during its turn, entered and left outside the clock.
        keep_going: a call that raises is out, and its timings say why; else it raises here.

    Returns:
        For each call its samples, as many for all that did not raise.
    """
    start = time.monotonic()
    takes = [
        _Contestant(call, turn, keep_going)
        for call, turn in zip(calls, turns or [nullcontext] * len(calls), strict=True)
    ]
    watch = stopwatch(device)
    first = [take.sample(watch, 1, warm=False) for take in takes]
    seconds_of = [sample.seconds for sample in first if sample is not None]
    repeats = [1 if sample is None else _repeats(sample.seconds, device) for sample in first]
    short = device.type == "cpu" and min(seconds_of, default=1.0) < WARM_BELOW
    if short or any(count > 1 for count in repeats):
        for take in takes:
            take.timings.samples.clear()
    for done in range(MORE_ROUNDS * rounds):
        running = [take.timings for take in takes if not take.timings.error]
        fewest = min((len(timings.clean) for timings in running), default=rounds)
        begun = done or all(timings.samples for timings in running)
        if fewest >= rounds or (begun and time.monotonic() - start > seconds):
            break
        progress(fewest, rounds)
        for take, count in zip(takes, repeats, strict=True):
            take.sample(watch, count, warm=short)
    return [take.timings for take in takes]


class _Contestant:
    """A call, what holds during its turn, and its samples so far."""

    def __init__(self, call: Callable[[], Any], turn: Turn, keep_going: bool) -> None:
        self._call, self._turn, self._keep_going = call, turn, keep_going
        self.timings = Timings()

    def sample(
        self, watch: Callable[[Callable[[], Any], int], Sample], repeats: int, *, warm: bool
    ) -> Sample | None:
        """Take one more sample; None if the call raises, or did before."""
        if self.timings.error:
            return None
        try:
            with self._turn():
                if warm:
                    self._call()
                sample = watch(self._call, repeats)
        except Exception as error:  # whatever a peer raises is why it can't run
            if not self._keep_going:
                raise
            self.timings.error = first_line(error)
            return None
        self.timings.samples.append(sample)
        return sample


def _repeats(seconds: float, device: torch.device) -> int:
    """Choose how many calls make a sample: one on a GPU, whose cache is cold, or if it is long."""
    if device.type == "cuda":
        return 1
    return max(1, math.ceil(MIN_SAMPLE / max(seconds, 1e-9)))


def first_line(error: BaseException) -> str:
    """Cut what an exception says to one line of a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
