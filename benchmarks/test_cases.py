"""The suites' cases as pytest-benchmark tests: `pytest benchmarks/`."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from benchmarks.case import Case, Workload
from benchmarks.checks import compare


@functools.lru_cache(maxsize=1)  # a case's tests follow each other, and share its numbers
def workload(case: Case) -> Workload:
    return case.build(case)


def test_case(benchmark: Any, case: Case, label: str) -> None:
    """Checked before it is timed; what can't run skips with its reason."""
    work = workload(case)
    contender = next(c for c in work.contenders if c.name == label)
    if contender.run is None:
        pytest.skip(contender.reason)
    accuracy = compare(contender)
    assert accuracy.good, f"error {accuracy.error:.3g}, allowed {accuracy.allowed:.3g}"
    benchmark.group = case.title
    benchmark.extra_info["useful_flops"] = work.flops
    benchmark.extra_info["least_bytes"] = work.moved
    benchmark(contender.run)
