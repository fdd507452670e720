"""Stage: what a call costs the host, which the GPU waits for where calls are small."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

import genhoi_kernels as gk
from benchmarks.gpu_report.bench import chosen_backends
from benchmarks.gpu_report.folder import RESULTS, add_rows
from benchmarks.gpu_report.graphs import arguments, describe_call
from benchmarks.gpu_report.stage import DEVICE, say, stage_options
from genhoi_kernels.tune.shapes import find_shape
from genhoi_kernels.tune.timing import first_line

_ROUNDS, _CALLS = 100, 20
"""Calls of a round are enqueued one behind the other: few enough that the queue has room."""
_BARE = ("q", "k", "v", "k_ref", "v_ref")
"""Arguments of a call that launches the attention kernel and nothing else."""


@click.command()
@stage_options
def main(out: Path, work: Path, tiny: bool) -> None:
    """Time the host in forward calls of a tiny shape, on the backends with kernels of our own."""
    shape = find_shape("tiny")
    rounds, calls = (1, 2) if tiny else (_ROUNDS, _CALLS)
    given = arguments(shape)
    bare = {name: given[name] for name in _BARE}
    for backend in chosen_backends(out, ("cuda", "triton")):
        about = describe_call("launches", shape, backend)
        for label, of_call in (("attention alone", bare), ("rotation, mask and gate", given)):
            try:
                row = measure(backend, of_call, rounds=rounds, calls=calls)
            except Exception as error:
                row = {"reason": first_line(error)}
            row |= {"setting": f"host time; {label}"}
            add_rows(out / RESULTS, [about | row])
            say(about["contender"], row)


@torch.no_grad()
def measure(backend: str, given: dict[str, Any], *, rounds: int, calls: int) -> dict[str, Any]:
    """Return the host's milliseconds of a call: median and quartiles. The first round warms up."""

    def call() -> None:
        gk.reference_attention(**given, backend=backend)

    list(host_seconds(call, 1, calls))
    samples = list(host_seconds(call, rounds, calls))
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "ms": 1e3 * median,
        "ms_q1": 1e3 * low,
        "ms_q3": 1e3 * high,
        "samples": len(samples),
    }


def host_seconds(call: Callable[[], None], rounds: int, calls: int) -> Iterator[float]:
    """Yield the seconds until each call returns; the GPU is waited for between rounds alone."""
    for _ in range(rounds):
        torch.cuda.synchronize(DEVICE)
        for _ in range(calls):
            start = time.perf_counter()
            call()
            yield time.perf_counter() - start


if __name__ == "__main__":
    main()
