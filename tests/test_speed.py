"""No slower than a few times PyTorch's own attention; numbers: benchmarks/attention.py."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pytest
import torch

from genhoi_kernels import native

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "attention.py"
MOST = 4.0
ROUNDS = 5


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_attention", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.skipif(not native.module, reason=native.missing_reason)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_within_four_times_sdpa(dtype: torch.dtype, direction: str) -> None:
    benchmark = load_benchmark()
    # Its memory is not poisoned: filling outputs would count for some and not for others.
    torch.use_deterministic_algorithms(False)
    entries = benchmark.contenders((4, 16, 16), 4, 128, dtype)
    timer = benchmark.forward_time if direction == "forward" else benchmark.backward_time
    rounds = [[timer(entry)[0] for entry in entries] for _ in range(ROUNDS + 1)][1:]
    for i, (name, _, _) in enumerate(entries[2:], start=2):
        assert statistics.median(row[i] / row[0] for row in rounds) < MOST, name


def test_the_benchmark_prints_its_tables() -> None:
    from click.testing import CliRunner

    options = ["--grid", "1", "4", "4", "--heads", "1", "--head-dim", "16", "--rounds", "1"]
    result = CliRunner().invoke(load_benchmark().main, options)
    assert result.exit_code == 0, result.output
    for words in ("float16 backward", "SDPA, additive mask", "this op, mask gate"):
        assert words in result.output
