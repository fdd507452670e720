"""What counts as a sample, and what is on the clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.bench_cases import CPU, CUDA, case_of

from benchmarks import limits, runner, test_cases
from benchmarks.machine import describe_machine
from genhoi_kernels.tune import timing
from genhoi_kernels.tune.shapes import Shape
from genhoi_kernels.tune.timing import Sample, Timings, interleave, is_contended, ratio

pytest_plugins = ["support.bench_cases"]


def timings(*seconds: float, contended: tuple[int, ...] = ()) -> Timings:
    return Timings([Sample(s, i in contended) for i, s in enumerate(seconds)])


def test_contention() -> None:
    assert not is_contended(queued=0.0, wall=1.0, threads=1)
    assert not is_contended(queued=0.029, wall=1.0, threads=1)
    assert is_contended(queued=0.031, wall=1.0, threads=1)
    assert not is_contended(queued=0.031, wall=1.0, threads=2)


def test_contended_samples_do_not_count() -> None:
    timed = timings(1.0, 100.0, 2.0, 3.0, contended=(1,))
    assert timed.clean == [1.0, 2.0, 3.0] and timed.dropped == 1
    assert timed.median() == 2.0 and timed.spread() == (1.5, 2.5)


def test_ratios_are_of_rounds() -> None:
    # A machine that is ten times slower in the second round changes no ratio.
    assert ratio(timings(2.0, 20.0, 2.0), timings(1.0, 10.0, 1.0)) == 2.0
    assert ratio(timings(2.0, 9.0, contended=(1,)), timings(1.0, 1.0)) == 2.0
    assert ratio(timings(2.0, 9.0, contended=(1,)), timings(1.0, 1.0, contended=(0,))) is None


def test_contended_rounds_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    answers = iter([False, False, True, False, False, False])
    monkeypatch.setattr(timing, "is_contended", lambda *_: next(answers))
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)
    monkeypatch.setattr(timing, "WARM_BELOW", 0.0)
    calls = [lambda: turns.append("a"), lambda: turns.append("b")]
    timed = interleave(calls, device=CPU, rounds=2, seconds=60)
    assert turns == ["a", "b"] * 3, "all take turns within a round"
    assert [len(t.clean) for t in timed] == [2, 3]


def test_beside_a_short_call_everyone_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)
    calls = [lambda: turns.append("a"), lambda: turns.append("b")]
    timed = interleave(calls, device=CPU, rounds=2, seconds=60)
    assert turns == ["a", "b"] + ["a", "a", "b", "b"] * 2
    assert [len(t.samples) for t in timed] == [2, 2], "the warm-up is no sample"


def test_who_raises_is_out(quick: None) -> None:
    answers = iter([None, None, "fell over"])

    def sometimes() -> None:
        if (message := next(answers)) is not None:
            raise RuntimeError(message)

    good, bad = interleave(
        [lambda: None, sometimes], device=CPU, rounds=3, seconds=60, keep_going=True
    )
    assert len(good.samples) == 3 and not good.error
    assert bad.error == "RuntimeError: fell over"
    with pytest.raises(ZeroDivisionError):
        interleave([lambda: 1 / 0], device=CPU, rounds=1, seconds=1)


def test_the_host_gets_a_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush, sleep, then the clock: on the timed device, whichever is the current one."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: Any) -> float:
            return 5.0

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        done.append(str(device))
        yield
        done.append("left")

    class Flush:
        def zero_(self) -> None:
            done.append("flush")

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "device", on)
    monkeypatch.setattr(cuda, "_sleep", lambda cycles: done.append("sleep"))
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=7)
    )
    monkeypatch.setattr(torch, "empty", lambda *size, **options: Flush())
    for name, slept in (("NVIDIA H100", ["sleep"]), ("H100 [emulated GPU]", [])):
        done.clear()
        monkeypatch.setattr(cuda, "get_device_name", lambda device, name=name: name)
        watch = timing.stopwatch(torch.device("cuda:1"))
        assert watch(lambda: done.append("call"), 1) == Sample(5e-3, False)
        assert done == ["cuda:1", "flush", *slept, "event", "call", "event", "wait", "left"]


def test_pytest_benchmark_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert test_cases.waiting(lambda: 7, CUDA)() == 7 and waited == [CUDA]
    assert test_cases.waiting(lambda: 7, CPU)() == 7 and len(waited) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, hardware or emulated")
def test_a_case_on_a_gpu(quick: None) -> None:
    """All that is timed on one, forward and backward."""
    shape = Shape("short", (1, 6, 7), (3, 3), heads=1, head_dim=32, density=0.3)
    base = case_of(shape, torch.float16, "forward", ("sdpa", "eager"))
    cases = [
        replace(base, direction=direction, device=CUDA, backends=("triton",))
        for direction in ("forward", "backward")
    ]
    for finished in runner.run_cases(
        cases, describe_machine(CUDA), runner.Budget(1, 0.1), lambda line: None
    ):
        assert not any(row["reason"] for row in finished.rows), finished.rows
        op, sdpa, eager = finished.rows
        assert sdpa["kernel"] in ("flash", "cuDNN", "efficient", "math") and not op["kernel"]
        assert all(row["ms"] > 0 and row["cuda"] for row in (op, sdpa, eager))


def test_the_limit_is_the_roofline() -> None:
    limit = limits.Limits(flops=100.0, flops_source="", bandwidth=10.0)
    assert limit.seconds(200.0, 10.0) == 2.0 and limit.binding(200.0, 10.0) == "arithmetic"
    assert limit.seconds(200.0, 30.0) == 3.0 and limit.binding(200.0, 30.0) == "memory"
