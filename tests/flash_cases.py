"""What the tests of the flash backend share: its cases, stand-ins as fixtures, the error budget.

The flash backend gives no gradient to the log-sum-exp, so that cases.run does not serve.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import pytest
import torch
from cases import (
    FEW,
    REDRAWS,
    Case,
    Inputs,
    Results,
    arguments,
    assert_within_budget,
    device_of,
    error,
    independent_values,
    leaves,
    make_case,
)
from flash_standins import ALL, TORCH_OWN, Calls, install

import genhoi_kernels as gk
from genhoi_kernels import flash_versions
from genhoi_kernels.backends import triton

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
    args = arguments(case, inputs, dtype, device_of(backend))
    outputs = gk.reference_attention(**args, backend=backend)
    found = dict(zip(("out", "lse", "gate_sum"), outputs, strict=False))
    through = {name: x for name, x in found.items() if name != "lse"}
    wanted = leaves(args)
    toward = [inputs.upstream[name].to(x.device, x.dtype) for name, x in through.items()]
    got = torch.autograd.grad(list(through.values()), list(wanted.values()), toward)
    for (name, x), grad in zip(wanted.items(), got, strict=True):
        assert grad.shape == x.shape and grad.dtype == x.dtype, name
    found |= {f"d{name}": x for name, x in zip(wanted, got, strict=True)}
    return {name: x.detach().cpu().double() for name, x in found.items()}


@functools.lru_cache(maxsize=1)
def redrawn_errors(case: Case) -> dict[str, float]:
    """As cases.redrawn_errors."""
    worst: dict[str, float] = {}
    for draw in range(1, REDRAWS + 1):
        other = dataclasses.replace(case, seed=case.seed + 7919 * draw)
        inputs = make_case(other)
        e, t = (run(other, "eager", dtype, inputs) for dtype in (case.dtype, torch.float64))
        for name in t:
            worst[name] = max(worst.get(name, 0.0), error(e[name], t[name]))
    return worst


def check_budget(case: Case, inputs: Inputs | None = None) -> Results:
    """Every output and gradient keeps the error budget of CONTRIBUTING.md."""
    assert gk.supports("flash", case.call("flash")) is None
    inputs = inputs or make_case(case)
    x = run(case, "flash", case.dtype, inputs)
    e, t = (run(case, "eager", dtype, inputs) for dtype in (case.dtype, torch.float64))
    assert x.keys() == t.keys()
    for name in t:
        try:
            assert_within_budget(x[name], e[name], t[name], case.dtype, name=name)
        except AssertionError:
            if independent_values(case, name, t[name]) >= FEW:
                raise
            e_error = redrawn_errors(case)[name]
            assert_within_budget(x[name], e[name], t[name], case.dtype, name=name, e_error=e_error)
    return x


def settings() -> tuple[bool, bool]:
    """Whether torch is deterministic, and whether it only warns."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
