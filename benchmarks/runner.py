"""Runs cases: builds, checks, measures, and gives one row a contender."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .case import Case, Contender, Workload, first_line
from .checks import Accuracy, compare
from .limits import Limits, measure_limits
from .machine import Machine
from .memory import peak_extra_bytes
from .timing import Timings, interleave, ratio

__all__ = ["Budget", "Finished", "run_cases"]

Row = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        rounds: clean samples wanted of each contender.
        seconds: of a case's rounds; the first round always runs.
        minutes: of the whole run; cases that would begin later are left out.
    """

    rounds: int = 7
    seconds: float = 20.0
    minutes: float = float("inf")


@dataclass
class Finished:
    """A case that was run.

    Attributes:
        case: which.
        rows: one a contender, in order; the columns of the CSV.
        notes: what a reader has to know beside them.
    """

    case: Case
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass
class _Measured:
    contender: Contender
    reason: str = ""
    accuracy: Accuracy | None = None
    checked: str = ""
    extra: int | None = None
    timings: Timings | None = None


def run_cases(
    cases: Sequence[Case], machine: Machine, budget: Budget, progress: Progress
) -> Iterator[Finished]:
    """Run cases one after the other, each yielded when it is done.

    A case that can't be built at all yields one row with its reason.
    """
    limits = _LimitsOnce()
    start = time.monotonic()
    for case in cases:
        if time.monotonic() - start > 60 * budget.minutes:
            yield Finished(case, [_row(case, machine, "the suite", "left out: no time")], [])
            continue
        progress(f"{case.suite} {case.shape.name} {case.direction}")
        with _threads(case.threads):
            try:
                yield _run_case(case, machine, budget, limits.of(case), progress)
            except (ValueError, RuntimeError, ImportError) as error:
                yield Finished(case, [_row(case, machine, "the suite", first_line(error))], [])
        gc.collect()


class _LimitsOnce:
    """Limits by dtype and threads; each is measured when first asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.dtype, int], Limits] = {}

    def of(self, case: Case) -> Limits:
        key = case.dtype, case.threads
        if key not in self._known:
            self._known[key] = measure_limits(case.dtype, case.device)
        return self._known[key]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_case(
    case: Case, machine: Machine, budget: Budget, limits: Limits, progress: Progress
) -> Finished:
    work = case.build(case)
    measured = [_prepare(contender, case, progress) for contender in work.contenders]
    running = [m for m in measured if not m.reason]
    notes = []
    if running:
        found = interleave(
            [m.contender.run for m in running if m.contender.run is not None],
            device=case.device,
            rounds=budget.rounds,
            seconds=budget.seconds,
            progress=lambda done, total: progress(
                f"{case.suite} {case.shape.name} {case.direction}: round {done + 1} of {total}"
            ),
        )
        notes = _round_notes(found, budget)
        for m, timings in zip(running, found, strict=True):
            m.timings = timings
            if not timings.clean:
                m.reason = f"contended in every round ({timings.dropped})"
    rows = [_measured_row(case, machine, work, measured, m, limits) for m in measured]
    return Finished(case, rows, notes)


def _prepare(contender: Contender, case: Case, progress: Progress) -> _Measured:
    """Check a contender, and let it run once for its memory; both warm it up."""
    if contender.run is None:
        return _Measured(contender, reason=contender.reason)
    progress(f"{case.suite} {case.shape.name} {case.direction}: checking {contender.name}")
    try:
        accuracy = compare(contender)
        extra = peak_extra_bytes(contender.run, case.device)
    except Exception as error:  # whatever a peer raises is why it can't run
        return _Measured(contender, reason=first_line(error))
    assert contender.truth is not None
    found = _Measured(contender, "", accuracy, contender.truth().words, extra)
    if not accuracy.good:
        found.reason = (
            f"not timed: its error of {accuracy.error:.2g} is above {accuracy.allowed:.2g}"
        )
    return found


def _round_notes(found: Sequence[Timings], budget: Budget) -> list[str]:
    rounds = len(found[0].samples)
    notes = [f"{rounds} round{'s' * (rounds != 1)}"]
    fewest = min(len(timings.clean) for timings in found)
    if fewest < budget.rounds:
        notes[0] += f", cut at {budget.seconds:g} s: {fewest} clean ones of {budget.rounds} wanted"
    dropped = sum(timings.dropped for timings in found)
    if dropped:
        notes.append(f"{dropped} of {rounds * len(found)} samples dropped as contended")
    return notes


# -------------------------------------------------------------------------------------------- rows


def _row(case: Case, machine: Machine, contender: str, reason: str) -> Row:
    """Where and what; the metrics are still empty."""
    shape = case.shape
    about = asdict(machine)
    about["threads"] = case.threads if case.device.type == "cpu" else ""
    return (
        about
        | {
            "suite": case.suite,
            "shape": shape.name,
            "sweep": shape.sweep,
            "n": shape.n,
            "grid": "x".join(map(str, shape.grid)),
            "m": shape.m,
            "heads": shape.heads,
            "head_dim": shape.head_dim,
            "density": shape.density,
            "reduced": shape.reduced,
            "steps": case.steps if case.suite.endswith("block") else "",
            "dtype": case.dtype_name,
            "direction": case.direction,
            "contender": contender,
            "reason": reason,
        }
        | dict.fromkeys(METRICS, "")
    )


METRICS = (
    "ms",
    "ms_q1",
    "ms_q3",
    "samples",
    "dropped",
    "tflops",
    "gbs",
    "limit_share",
    "limit",
    "peak_tflops",
    "peak_source",
    "bandwidth_gbs",
    "intensity",
    "extra_mib",
    "beside_mib",
    "error",
    "error_allowed",
    "checked",
    "ratio_to_op",
    "ratio_to_strongest",
)


def _measured_row(
    case: Case,
    machine: Machine,
    work: Workload,
    everyone: Sequence[_Measured],
    m: _Measured,
    limits: Limits,
) -> Row:
    row = _row(case, machine, m.contender.name, m.reason)
    row |= {
        "peak_tflops": limits.flops / 1e12,
        "peak_source": limits.flops_source,
        "bandwidth_gbs": limits.bandwidth / 1e9,
        "beside_mib": m.contender.beside / 2**20,
    }
    if m.accuracy is not None:
        row |= {
            "error": m.accuracy.error,
            "error_allowed": m.accuracy.allowed,
            "checked": m.checked,
        }
    if m.timings is not None and m.timings.clean:
        row |= _speed(m.timings, work, limits)
        row["extra_mib"] = "" if m.extra is None else m.extra / 2**20
        for column, name in (("ratio_to_op", work.op), ("ratio_to_strongest", work.strongest)):
            row[column] = _ratio(m.timings, everyone, name)
    return row


def _speed(timings: Timings, work: Workload, limits: Limits) -> Row:
    seconds = timings.median()
    low, high = timings.spread()
    return {
        "ms": 1e3 * seconds,
        "ms_q1": 1e3 * low,
        "ms_q3": 1e3 * high,
        "samples": len(timings.clean),
        "dropped": timings.dropped,
        "tflops": work.flops / seconds / 1e12,
        "gbs": work.moved / seconds / 1e9,
        "limit_share": limits.seconds(work.flops, work.moved) / seconds,
        "limit": limits.binding(work.flops, work.moved),
        "intensity": work.flops / work.moved,
    }


def _ratio(timings: Timings, everyone: Sequence[_Measured], name: str) -> float | str:
    other = next((m.timings for m in everyone if m.contender.name == name), None)
    found = None if other is None else ratio(timings, other)
    return "" if found is None else found
