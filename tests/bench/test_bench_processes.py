"""A case that dies or hangs ends alone; one forward pass is held at a time."""

from __future__ import annotations

import functools
import os
import signal
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.bench_cases import CPU, CUDA, case_of

from benchmarks import context, limits, memory, runner
from benchmarks.case import Case, Workload
from benchmarks.machine import describe_machine
from benchmarks.peers import GATHERED
from genhoi_kernels.tune import timing
from genhoi_kernels.tune.shapes import SHAPES
from genhoi_kernels.tune.timing import Sample, interleave

pytest_plugins = ["support.bench_cases"]


def build_that_dies(case: Case) -> Workload:
    """As a GPU's driver may end a process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def build_that_hangs(case: Case) -> Workload:
    """As a kernel that waits for itself does."""
    time.sleep(600)
    raise AssertionError


def build_that_refuses(case: Case) -> Workload:
    """As a suite does whose packages are missing."""
    raise ImportError("no such package")


def test_a_case_that_kills_its_process(quick: None) -> None:
    case = case_of(SHAPES["tiny"], torch.float32, "forward", ("sdpa",))
    known = {(case.dtype, case.threads): limits.Limits(1e12, "", 1e9)}
    said: list[str] = []
    dead, refused, alive = runner.run_cases(
        [replace(case, build=build_that_dies), replace(case, build=build_that_refuses), case],
        describe_machine(CPU),
        runner.Budget(1, 0.1, case_seconds=200),
        said.append,
        apart=True,
        known=known,
    )
    (row,) = dead.rows
    assert row["reason"] == "its process died of SIGKILL, while starting" and row["ms"] == ""
    assert row["shape"] == "tiny" and row["contender"] == "the suite"
    assert [row["reason"] for row in refused.rows] == ["ImportError: no such package"]
    assert [row["peak_tflops"] for row in alive.rows] == [1.0, 1.0]
    assert any("checking SDPA, no mask" in line for line in said)


def test_a_device_that_no_longer_answers(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each contender has its row still."""

    def gone(device: torch.device) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(timing, "stopwatch", gone)
    case = case_of(SHAPES["tiny"], torch.float32, "forward", ("sdpa", "sage"))
    (finished,) = runner.run_cases(
        [case],
        describe_machine(CPU),
        runner.Budget(1, 0.1),
        lambda line: None,
        known={(case.dtype, case.threads): limits.Limits(1e12, "", 1e9)},
    )
    lost = "not timed: RuntimeError: an illegal memory access was encountered"
    assert [row["reason"] for row in finished.rows] == [lost, lost, "needs a CUDA GPU"]


def test_memory_that_torch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    assert memory.available_bytes(CUDA) == 120


def test_a_case_over_its_time(quick: None) -> None:
    case = replace(case_of(SHAPES["tiny"], torch.float32, "forward"), build=build_that_hangs)
    begin = time.monotonic()
    (finished,) = runner.run_cases(
        [case],
        describe_machine(CPU),
        runner.Budget(case_seconds=1.5),
        lambda line: None,
        apart=True,
        known={(case.dtype, case.threads): limits.Limits(1e12, "", 1e9)},
    )
    assert [row["reason"] for row in finished.rows] == ["ended after 1.5 s, while starting"]
    assert time.monotonic() - begin < 60


def test_one_graph_at_a_time(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass's forward pass is let go of when another contender's turn comes."""
    alive: list[weakref.ref[torch.Tensor]] = []
    made: list[int] = []
    init = context.HeldForward.__init__

    def watched(self: Any, call: Callable[[], torch.Tensor]) -> None:
        def watched_call() -> torch.Tensor:
            assert not any(ref() is not None for ref in alive), "another's is still there"
            out = call()
            alive.append(weakref.ref(out))
            made.append(id(self))
            return out

        init(self, watched_call)

    monkeypatch.setattr(context.HeldForward, "__init__", watched)
    case = case_of(SHAPES["tiny"], torch.float32, "backward", ("sdpa", GATHERED, "eager"))
    (finished,) = runner.run_cases(
        [case], describe_machine(CPU), runner.Budget(2, 10.0), lambda line: None
    )
    assert not any(row["reason"] for row in finished.rows)
    assert all(ref() is None for ref in alive)
    who = list(dict.fromkeys(made))
    assert len(who) == 4 and made[:8] == [*who, *who], "checked, then in turn"


def test_the_forward_pass_is_not_timed() -> None:
    clock: list[str] = []
    q = torch.ones(3, requires_grad=True)

    def forward() -> torch.Tensor:
        clock.append("forward")
        return 2 * q

    pair = context.autograd_pair(forward, [q])
    assert pair.backward is not None
    backward = functools.partial(pair.backward, torch.ones(3))

    def watch(call: Callable[[], Any], repeats: int) -> Sample:
        clock.append("start")
        for _ in range(repeats):
            call()
        clock.append("stop")
        return Sample(1.0, False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "stopwatch", lambda device: watch)
        interleave([backward], device=CPU, rounds=2, seconds=9, turns=[pair.turn])
    assert clock == ["forward", "start", "stop"] * 2
    (gradient,) = backward()
    assert torch.equal(gradient, torch.full((3,), 2.0)) and clock[6:] == ["forward"]
