"""CUDA kernels on a GPU, hardware or emulated: forward results, within the error budget.

What they share with the other backends is in the tests that go through every backend.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from cases import (
    Case,
    Inputs,
    Results,
    arguments,
    assert_within_budget,
    device_of,
    make_case,
    skip_unless_supported,
)

import genhoi_kernels
from genhoi_kernels import reference_attention

pytestmark = pytest.mark.gpu

if (reason := genhoi_kernels.backends()[3].reason) and not genhoi_kernels.backends()[3].usable:
    pytest.skip(f"cuda: {reason}", allow_module_level=True)

HALVES = (torch.bfloat16, torch.float16)
INF = float("inf")
CASES = [
    Case(rows=131, keys=200, dim=128),
    Case(rows=131, lengths=(40, 9), batch=2, dim=64, gate="token", mask="random"),
    Case(rows=150, lengths=(40, 70), batch=2, dim=128, gate="token", mask="tail",
         bias=(0.3, -1.0), ref_batch=2, mask_batch=2),
    Case(rows=131, lengths=(40, 9), dim=96, gate="sum", mask="random", bias=(0.3, 1.0)),
    Case(rows=133, dim=40, heads=3, layout="fused", lengths=(5,), gate="token"),
    Case(grid=(2, 5, 7), dim=32, heads=3, refs=((3, 4), (1, 2)), gate="sequence", mask="tail",
         mask_gate=True, layout="heads"),
    Case(rows=1, keys=1, dim=16, heads=1, lengths=(1,), mask="all", gate="token"),
    Case(rows=3, keys=0, dim=128, lengths=(5,), mask="random", gate="sum"),
    Case(rows=65, keys=64, dim=24, lengths=(0, 17), scale=-0.3, layout="padded"),
    Case(rows=9, keys=0, lengths=(5, 7), bias=(-INF, -INF)),
]  # fmt: skip


def forward(case: Case, inputs: Inputs, backend: str, dtype: torch.dtype) -> Results:
    """out and lse, without gradients to come."""
    args: dict[str, Any] = arguments(case, inputs, dtype, device_of(backend))
    with torch.no_grad():
        found = reference_attention(**args, backend=backend)
    names = ["out", "lse", "gate_sum"]
    return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=False))


@pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: Case, dtype: torch.dtype) -> None:
    case = dataclasses.replace(case, dtype=dtype)
    inputs = make_case(case)
    call = dataclasses.replace(case.call("cuda"), needs_grad=False)
    skip_unless_supported("cuda", call)
    exact = forward(case, inputs, "eager", torch.float64)
    eager = forward(case, inputs, "eager", dtype)
    found = forward(case, inputs, "cuda", dtype)
    assert found.keys() == exact.keys()
    for name, x in found.items():
        t, e = exact[name].cpu(), eager[name].cpu()
        assert_within_budget(x.double().cpu(), e, t, dtype, name=name)
