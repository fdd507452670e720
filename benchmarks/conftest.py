"""Options of `pytest benchmarks/`, and its cases."""

from __future__ import annotations

import pytest
import torch

from benchmarks.machine import find_device
from benchmarks.suites import Selection, contender_labels, select

collect_ignore_glob = ["ablation/*"]  # its test_set.py holds no tests, and needs the model layer

SUITES = ("attention", "fused", "norm_rope", "block")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("genhoi")
    group.addoption("--bench-shape", help="Named shape.  [default: each suite's own]")
    group.addoption("--bench-dtype", default="bfloat16", help="float32, bfloat16 or float16.")
    group.addoption("--bench-device", help="cpu or cuda.  [default: cuda if there is one]")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of every contender of every case."""
    option = metafunc.config.getoption
    shape = option("--bench-shape")
    selection = Selection(
        device=find_device(option("--bench-device"), option="--bench-device"),
        threads=torch.get_num_threads(),
        shapes=(shape,) if shape else (),
        dtypes=(option("--bench-dtype"),),
    )
    metafunc.parametrize(
        ("case", "label"),
        [
            pytest.param(case, label, id=f"{case.suite}-{case.direction}-{label}")
            for case in select(SUITES, selection)
            for label in contender_labels(case)
        ],
    )
