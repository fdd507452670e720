"""The suites' cases as pytest-benchmark tests: `pytest benchmarks/`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.case import Case, Workload
from benchmarks.checks import compare


@functools.lru_cache(maxsize=1)  # a case's tests follow each other, and share its numbers
def workload(case: Case) -> Workload:
    return case.build(case)


def test_case(benchmark: Any, case: Case, label: str) -> None:
    """Check a contender, then time it; one that can't run skips with its reason."""
    try:
        work = workload(case)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "diffusers":
            raise
        pytest.skip("the suite block needs diffusers, which is not installed")
    contender = next(c for c in work.contenders if c.name == label)
    if contender.run is None:
        pytest.skip(contender.reason)
    with contender.turn():
        accuracy = compare(contender)
        assert accuracy.good, f"error {accuracy.error:.3g}, allowed {accuracy.allowed:.3g}"
        benchmark.group = case.title
        benchmark.extra_info["useful_flops"] = work.flops
        benchmark.extra_info["least_bytes"] = work.moved
        benchmark(waiting(contender.run, case.device))


def waiting(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Make a call that waits for a GPU's results, because the clock is the host's."""
    if device.type != "cuda":
        return run

    def run_and_wait() -> Any:
        result = run()
        torch.cuda.synchronize(device)
        return result

    return run_and_wait
