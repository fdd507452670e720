"""The error budget where the truth is zero: what rounding may leave, and no more."""

from __future__ import annotations

import pytest
import torch
from support.cases import (
    Case,
    arguments,
    assert_within_budget,
    device_of,
    left_of_a_single_key,
    make_case,
    skip_unless_supported,
)
from torch import Tensor

from genhoi_kernels import reference_attention

ZERO = torch.zeros(2, 3)


def single_key(rows: int, dim: int, dtype: torch.dtype) -> tuple[Case, dict[str, float]]:
    """A case whose rows see one key, and the bounds of its dq and dk."""
    case = Case(dtype=dtype, batch=2, rows=rows, keys=1, dim=dim, heads=3)
    inputs = make_case(case)
    left = left_of_a_single_key(
        *(inputs.tensors[name] for name in "qkv"),
        inputs.upstream["out"],
        scale=dim**-0.5,
        dtype=dtype,
    )
    return case, left


def gradients(case: Case, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """dq and dk of a gradient of the output alone."""
    inputs = make_case(case)
    args = arguments(case, inputs, dtype, device_of(backend)) | {"return_lse": False}
    out = reference_attention(**args, backend=backend)
    assert isinstance(out, Tensor)
    upstream = inputs.upstream["out"].to(out.device, dtype)
    got = torch.autograd.grad(out, [args["q"], args["k"]], upstream)
    return dict(zip(("dq", "dk"), (x.cpu().double() for x in got), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "dim"), [(1, 64), (113, 32)])
def test_a_single_key(backend: str, rows: int, dim: int, dtype: torch.dtype) -> None:
    """No backend leaves more in dq and dk than two orders of the same sum may."""
    case, left = single_key(rows, dim, dtype)
    skip_unless_supported(backend, case.call(backend))
    x, e = (gradients(case, name, dtype) for name in (backend, "eager"))
    t = gradients(case, "eager", torch.float64)
    for name in t:
        assert_within_budget(x[name], e[name], t[name], dtype, name=name, left_of_zero=left[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_allowance_is_small_beside_a_fault(dtype: torch.dtype) -> None:
    """A kernel that forgets delta, or rounds one of the sums to bfloat16, is far beyond it."""
    case, left = single_key(113, 64, dtype)
    inputs = make_case(case)
    q, k, v = (inputs.tensors[name] for name in "qkv")
    dp = (inputs.upstream["out"] * v).sum(-1, keepdim=True)
    for delta in (torch.zeros_like(dp), dp.bfloat16().double()):
        ds = (dp - delta) * 64**-0.5
        for name, wrong in (("dq", ds * k), ("dk", (ds * q).sum(1, keepdim=True))):
            zero = torch.zeros_like(wrong)
            with pytest.raises(AssertionError, match=f"{name}: .* exceeds"):
                assert_within_budget(wrong, zero, zero, dtype, name=name, left_of_zero=left[name])


def test_the_allowance_is_for_zeros_alone() -> None:
    """A truth that is not zero keeps its own budget."""
    assert_within_budget(ZERO + 1e-6, ZERO, ZERO, torch.float32, left_of_zero=2e-6)
    with pytest.raises(AssertionError, match="exceeds 0"):
        assert_within_budget(ZERO + 1e-6, ZERO, ZERO, torch.float32)
    t = ZERO.clone()
    t[0, 0] = 1e-3
    with pytest.raises(AssertionError, match="exceeds"):
        assert_within_budget(t + 1e-6, t, t, torch.float32, left_of_zero=2e-6)
