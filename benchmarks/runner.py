"""Runs cases: builds, checks, measures, and gives one row a contender."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.case import Case, Contender, Workload
from benchmarks.checks import compare
from benchmarks.limits import Limits, measure_limits
from benchmarks.machine import Machine
from benchmarks.memory import peak_extra_bytes
from benchmarks.threads import torch_threads
from genhoi_kernels.tune.accuracy import Accuracy
from genhoi_kernels.tune.apart import DiedError, Progress, call_apart
from genhoi_kernels.tune.timing import Timings, first_line, interleave, ratio

__all__ = ["Budget", "Finished", "run_cases"]

Row = dict[str, Any]
Known = dict[tuple[torch.dtype, int], Limits]


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        rounds: clean samples wanted of each contender.
        seconds: of a case's rounds; the first round always runs.
        minutes: of the whole run; cases that would begin later are left out.
        case_seconds: of a case in a process of its own, which is then killed.
    """

    rounds: int = 7
    seconds: float = 20.0
    minutes: float = float("inf")
    case_seconds: float = float("inf")


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
    cases: Sequence[Case],
    machine: Machine,
    budget: Budget,
    progress: Progress,
    *,
    apart: bool = False,
    known: Known | None = None,
) -> Iterator[Finished]:
    """Run cases one after the other, each yielded when it is done.

    A case that can't be built at all, or whose process dies, yields one row with its reason.

    Args:
        cases: what to run.
        machine: for the rows.
        budget: how long.
        progress: told what is going on.
        apart: each case in a process of its own: after an illegal memory access a GPU answers its
            process no more.
        known: limits by dtype and threads that need not be measured.
    """
    known = {} if known is None else known
    start = time.monotonic()
    for case in cases:
        if time.monotonic() - start > 60 * budget.minutes:
            yield Finished(case, [_row(case, machine, "the suite", "left out: no time")], [])
            continue
        progress(f"{case.suite} {case.shape.name} {case.direction}")
        try:
            if apart:
                finished, limits = call_apart(
                    _run_measured,
                    case,
                    machine,
                    budget,
                    known,
                    seconds=budget.case_seconds,
                    progress=progress,
                )
            else:
                finished, limits = _run_measured(case, machine, budget, known, progress)
            known[case.dtype, case.threads] = limits
        except DiedError as error:
            finished = Finished(case, [_row(case, machine, "the suite", str(error))], [])
        except (ValueError, RuntimeError, ImportError) as error:
            finished = Finished(case, [_row(case, machine, "the suite", first_line(error))], [])
        yield finished
        gc.collect()


def _run_measured(
    case: Case, machine: Machine, budget: Budget, known: Known, progress: Progress
) -> tuple[Finished, Limits]:
    """Run a case where it wants to be run; the limits are measured unless they are known."""
    on_gpu = case.device.type == "cuda"
    with torch_threads(case.threads), torch.cuda.device(case.device) if on_gpu else nullcontext():
        limits = known.get((case.dtype, case.threads))
        limits = limits or measure_limits(case.dtype, case.device)
        return _run_case(case, machine, budget, limits, progress), limits


def _run_case(
    case: Case, machine: Machine, budget: Budget, limits: Limits, progress: Progress
) -> Finished:
    work = case.build(case)
    measured = [_prepare(contender, case, progress) for contender in work.contenders]
    running = [m for m in measured if not m.reason]
    notes = []
    if running:
        notes = _time(case, running, budget, progress)
    rows = [_measured_row(case, machine, work, measured, m, limits) for m in measured]
    return Finished(case, rows, notes)


def _time(
    case: Case, running: Sequence[_Measured], budget: Budget, progress: Progress
) -> list[str]:
    """Time contenders, or say of each why not; give the notes on the rounds."""
    try:
        all_timings = interleave(
            [m.contender.run for m in running if m.contender.run is not None],
            device=case.device,
            rounds=budget.rounds,
            seconds=budget.seconds,
            progress=lambda done, total: progress(
                f"{case.suite} {case.shape.name} {case.direction}: round {done + 1} of {total}"
            ),
            turns=[m.contender.turn for m in running],
            keep_going=True,
        )
    except Exception as error:  # another's check has left the GPU unusable
        for m in running:
            m.reason = f"not timed: {first_line(error)}"
        return []
    for m, timings in zip(running, all_timings, strict=True):
        m.timings = timings
        if timings.error:
            m.reason = timings.error
        elif not timings.clean:
            m.reason = f"contended in every round ({timings.dropped})"
    return _round_notes(all_timings, budget)


def _prepare(contender: Contender, case: Case, progress: Progress) -> _Measured:
    """Check a contender, and let it run once for its memory; both warm it up."""
    if contender.run is None:
        return _Measured(contender, reason=contender.reason)
    progress(f"{case.suite} {case.shape.name} {case.direction}: checking {contender.name}")
    try:
        with contender.turn():
            accuracy = compare(contender)
            extra = peak_extra_bytes(contender.run, case.device)
    except Exception as error:  # whatever a peer raises is why it can't run
        return _Measured(contender, reason=first_line(error))
    assert contender.truth is not None
    checked = contender.truth().words
    measured = _Measured(contender, accuracy=accuracy, checked=checked, extra=extra)
    if not accuracy.good:
        measured.reason = (
            f"not timed: its error of {accuracy.error:.2g} is above {accuracy.allowed:.2g}"
        )
    return measured


def _round_notes(all_timings: Sequence[Timings], budget: Budget) -> list[str]:
    all_timings = [timings for timings in all_timings if not timings.error]
    if not all_timings:
        return []
    rounds = len(all_timings[0].samples)
    notes = [f"{rounds} round{'s' * (rounds != 1)}"]
    fewest = min(len(timings.clean) for timings in all_timings)
    if fewest < budget.rounds:
        notes[0] += f", cut at {budget.seconds:g} s: {fewest} clean ones of {budget.rounds} wanted"
    dropped = sum(timings.dropped for timings in all_timings)
    if dropped:
        notes.append(f"{dropped} of {rounds * len(all_timings)} samples dropped as contended")
    return notes


# -------------------------------------------------------------------------------------------- rows


def _row(case: Case, machine: Machine, contender: str, reason: str) -> Row:
    """Make a row with its case and contender; the metrics are still empty."""
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
            "kernel": "",
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
        "kernel": m.contender.kernel,
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
    if m.timings is not None and m.timings.clean and not m.reason:
        row |= _speed(m.timings, work, limits)
        row["extra_mib"] = "" if m.extra is None else m.extra / 2**20
        row["ratio_to_op"] = _ratio(m.timings, everyone, work.op)
        row["ratio_to_strongest"] = _ratio(m.timings, everyone, _strongest(work, everyone))
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


def _strongest(work: Workload, everyone: Sequence[_Measured]) -> str:
    """Return the strongest peer, or the one that stands for it where it could not run."""
    ran = any(m.contender.name == work.strongest and not m.reason for m in everyone)
    return work.strongest if ran or not work.fallback else work.fallback


def _ratio(timings: Timings, everyone: Sequence[_Measured], name: str) -> float | str:
    other = next((m.timings for m in everyone if m.contender.name == name and not m.reason), None)
    value = None if other is None else ratio(timings, other)
    return "" if value is None else value
