"""C++ kernels for CPU tensors (csrc/cpu): tiled online softmax, forward and backward."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels.backends import native
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import Rope, token_places
from genhoi_kernels.schema import grads_by_field, pick_wanted
from genhoi_kernels.spec import (
    AttentionCall,
    AttentionGrads,
    AttentionTensors,
    InputGrads,
    RopeCall,
)

DESCRIPTION = "C++ kernels for CPU tensors; float32, bfloat16, float16"
MAX_HEAD_DIM = 256

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Say why the compiled part cannot run here, or None."""
    if native.module is None:
        return native.missing_reason
    try:
        native.module.isa()
    except RuntimeError as error:
        return str(error)
    return None


def supports(call: AttentionCall | RopeCall) -> str | None:
    """Take CPU tensors of 16 or 32 bits, and head dims that are multiples of 8 up to 256."""
    if call.device.type != "cpu":
        return f"it runs on CPU tensors, not on {call.device.type}"
    if call.dtype not in _DTYPES:
        return f"it takes {', '.join(str(d) for d in _DTYPES)}, not {call.dtype}"
    if call.head_dim % 8 or not 8 <= call.head_dim <= MAX_HEAD_DIM:
        return f"head dim {call.head_dim} is not a multiple of 8 from 8 to {MAX_HEAD_DIM}"
    return None


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """Run the forward pass of csrc/cpu."""
    result = torch.ops.genhoi_kernels.cpu_attention_forward(
        **_arguments(call, tensors), keep_ungated=call.needs_grad
    )
    return AttentionResult(*result)


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> InputGrads:
    """Run the backward pass of csrc/cpu."""
    computed = torch.ops.genhoi_kernels.cpu_attention_backward(
        **_arguments(call, tensors),
        grad_out=grads.out,
        grad_lse=grads.lse,
        grad_gate_sum=grads.gate_sum,
        o=o,
        lse=lse,
        wanted=native.wanted_bits(call.wanted),
    )
    pairs = zip(computed, pick_wanted(tensors, call.wanted), strict=True)
    grads_of = [g if g.dtype == x.dtype else g.to(x.dtype) for g, x in pairs]
    return grads_by_field(tensors, call.wanted, grads_of)


def _arguments(call: AttentionCall, tensors: AttentionTensors) -> dict[str, Any]:
    t = tensors
    return native.attention_arguments(call, t) | {
        "rope": _rotation(call.rope, t.q.shape[1]),
        "ref_rope": _rotation(call.ref_rope, 0 if t.k_ref is None else t.k_ref.shape[1]),
    }


@functools.lru_cache(maxsize=16)
def _rotation(rope: Rope | None, tokens: int) -> list[Tensor]:
    """Return angle tables of three axes, and each token's rows in them ``[tokens, 3]`` int32."""
    if rope is None:
        return []
    device = torch.device("cpu")
    tables = rope.tables(device=device, dtype=torch.float32)
    with torch.inference_mode(False):
        return [*tables, token_places(rope, tokens, device)]


def norm_rope_forward(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """Run the norm and rotation of csrc/cpu."""
    return _norm_rope(x.unflatten(-1, (-1, rope.head_dim)), weight, rope, eps, False)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute gradients of x and weight by csrc/cpu."""
    dx, dweight = torch.ops.genhoi_kernels.cpu_norm_rope_backward(
        grad,
        x.unflatten(-1, (-1, rope.head_dim)),
        weight.float().contiguous(),
        _rotation(rope, x.shape[1]),
        eps,
    )
    return dx.flatten(-2), dweight.to(weight.dtype)


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """Rotate x, forward or back."""
    return _norm_rope(x, None, rope, 0.0, inverse)


def _norm_rope(x: Tensor, weight: Tensor | None, rope: Rope, eps: float, inverse: bool) -> Tensor:
    y: Tensor = torch.ops.genhoi_kernels.cpu_norm_rope_forward(
        x,
        None if weight is None else weight.float().contiguous(),
        _rotation(rope, x.shape[1]),
        eps,
        inverse,
    )
    return y
