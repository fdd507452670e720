"""What the tests of the flash backend share: its cases, stand-ins as fixtures, the error budget.

A gradient of the log-sum-exp takes the Triton kernels: here none comes to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

import genhoi_kernels as gk
from genhoi_kernels.backends.flash import versions as flash_versions
from genhoi_kernels.backends.triton import backend as triton
from support import cases
from support.cases import Case, Inputs, Results, device_of
from support.flash_standins import ALL, TORCH_OWN, Calls, install

# The stand-ins are told where to compute by their tensors, the kernels by Triton.
UNAVAILABLE = triton.unavailable()
needs_triton = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))
ARCH = None if UNAVAILABLE else triton.architecture(device_of("flash"))
for_sm_90 = pytest.mark.skipif(
    ARCH not in ("sm_90", flash_versions.INTERPRETER), reason=f"needs sm_90, this is {ARCH}"
)
HALF = torch.bfloat16
INF = float("inf")

CASES = [
    Case(rows=1, heads=1),
    Case(rows=113, keys=101, heads=1, dim=24, scale=0.3),
    Case(rows=1, lengths=(1,), heads=3),
    Case(rows=1, keys=9, lengths=(4,), heads=1, mask="all", bias=(0.3,), gate="token"),
    Case(rows=1, lengths=(4, 1), heads=1, batch=2, ref_batch=2, mask="all", gate="sum"),
    Case(rows=67, keys=131, lengths=(97,), gate="token"),
    # Masks.
    *(Case(rows=107, lengths=(11,), mask=mask, gate=gate, mask_gate=built)
      for mask, gate, built in (
          ("all", None, False), ("nothing", "token", True), ("random", None, True),
          ("random", "token", False), ("tail", "sequence", True), ("random", "sum", False))),
    # Several references, some empty; biases.
    Case(rows=103, lengths=(5, 0, 40, 1), mask="random", mask_dtype=torch.int64, gate="token",
         bias=(0.3, 1.0, -2.0, 3.0)),
    Case(rows=103, lengths=(5, 7), bias=(-INF, 0.4), mask="random", mask_dtype=torch.uint8),
    Case(rows=103, lengths=(5, 7), bias=(0.1, 0.4), batch=2),
    Case(rows=20, lengths=(1,) * 32, mask="random", mask_dtype=torch.int32, mask_gate=True),
    # Batches, and references shared by them or not.
    *(Case(rows=70, batch=3, lengths=(13, 30), bias=(0.5, -0.5), mask="random",
           mask_batch=mask_batch, ref_batch=ref_batch, mask_dtype=torch.uint8, gate="token")
      for mask_batch in (1, 3) for ref_batch in (1, 3)),
    # Rotation.
    Case(grid=(3, 4, 5), refs=((3, 3), (2, 4)), dim=64, mask="random", gate="token", batch=2),
    Case(grid=(2, 3, 3), refs=((2, 2),), dim=128, heads=1, gate="sequence"),
    Case(grid=(5, 4, 6), refs=((2, 3), (5, 1)), ref_rope=False, mask="random"),
    # Strides.
    *(Case(grid=(2, 5, 6), batch=2, heads=3, refs=((2, 3),), mask="random", layout=layout)
      for layout in ("fused", "heads", "expanded", "padded")),
    Case(rows=50, batch=2, lengths=(7,), layout="expanded"),
    # Nothing: no row, no video key, no reference token, no head, no sample.
    Case(rows=0, keys=5, lengths=(3,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=50, keys=0, lengths=(3,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=50, keys=0, lengths=(3,), gate="sequence", mask="tail"),
    Case(rows=9, keys=0, lengths=(5, 7), bias=(-INF, -INF)),
    Case(rows=50, lengths=(0,), bias=(0.5,), gate="token", mask="random"),
    Case(rows=50, lengths=(0, 0), bias=(0.5, 1.0), gate="sum", mask="all", batch=2),
    Case(rows=5, heads=0, lengths=(3,), bias=(0.5,), mask="random", gate="token"),
    Case(rows=5, batch=0, lengths=(3,), bias=(0.5,), mask="random", gate="sum"),
]  # fmt: skip

WHOLE = Case(
    rows=70, batch=2, lengths=(13, 30), bias=(0.5, -0.5), mask="random", mask_batch=2,
    mask_dtype=torch.uint8, gate="token", dtype=HALF,
)  # fmt: skip


@pytest.fixture
def flash_2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """flash-attn 2 is installed."""
    yield from install("flash-attn 2", monkeypatch)


@pytest.fixture(params=["flash-attn 2", *TORCH_OWN])
def one_flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """A package, and each of torch's own."""
    yield from install(request.param, monkeypatch)


@pytest.fixture(params=[name for name in ALL if name != "fa3-fwd"])
def any_flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Each FlashAttention that has a backward pass, where the GPU is one of its own."""
    for calls in install(request.param, monkeypatch):
        if not ARCH or "is for" in (gk.supports("flash", WHOLE.call("flash")) or ""):
            pytest.skip(f"not for this GPU, {ARCH}")
        yield calls


@pytest.fixture
def no_flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """None is installed."""
    yield from install(None, monkeypatch)


def run(case: Case, backend: str, dtype: torch.dtype, inputs: Inputs) -> Results:
    """As cases.run, but no gradient comes to lse."""
    return cases.run(dataclasses.replace(case, lse_grad=False), backend, dtype, inputs)


def check_budget(case: Case, inputs: Inputs | None = None) -> Results:
    """As cases.check_budget, of a call that the backend must take, and no gradient comes to lse."""
    assert gk.supports("flash", case.call("flash")) is None
    return cases.check_budget(dataclasses.replace(case, lse_grad=False), "flash", inputs)


def settings() -> tuple[bool, bool]:
    """Whether torch is deterministic, and whether it only warns."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
