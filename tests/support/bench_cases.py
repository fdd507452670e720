"""What the tests of the benchmarks share: a short run of the command, its rows, a case."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from benchmarks import cli, limits, timing
from benchmarks.bare_attention import build_attention
from benchmarks.case import Case, Direction
from benchmarks.peers import GATHERED
from benchmarks.shapes import Shape

HAS_MODEL_LAYER = all(importlib.util.find_spec(name) for name in ("diffusers", "av"))
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FEW_PEERS = ("--peers", "sdpa", "--peers", GATHERED, "--peers", "sage")
SHORT = ("--rounds", "1", "--seconds", "0.1", "--threads", "1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures no limit for long, and counts every sample: other programs may be busy."""
    monkeypatch.setattr(limits, "_SECONDS", 0.0)
    monkeypatch.setattr(limits, "_COPY_BYTES", {"cpu": 1 << 20, "cuda": 1 << 20})
    monkeypatch.setattr(limits, "_MATMUL", {"cpu": (128,), "cuda": (128,)})
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)


def bench(out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.bench, ["--device", "cpu", "--out", str(out), *SHORT, *words])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def case_of(
    shape: Shape, dtype: torch.dtype, direction: Direction, peers: tuple[str, ...] | None = None
) -> Case:
    threads = torch.get_num_threads()
    return Case("attention", shape, dtype, direction, CPU, threads, peers, build_attention)
