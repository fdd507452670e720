"""C++ kernels for CPU tensors (csrc/cpu): tiled online softmax, forward and backward."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genhoi_kernels.backends import native
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import HeadSlidingRope, Rope, token_places
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors, RopeCall, present

DESCRIPTION = "C++ kernels for CPU tensors; float32, bfloat16, float16"
MAX_HEAD_DIM = 256

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_GATE_MODES = {"none": 0, "token": 1, "sum": 2}  # GateMode in csrc/cpu/kernels.h


def unavailable() -> str | None:
    """Why the compiled part cannot run here, or None."""
    if native.module is None:
        return native.missing_reason
    try:
        native.module.isa()
    except RuntimeError as error:
        return str(error)
    return None


def supports(call: AttentionCall | RopeCall) -> str | None:
    """CPU tensors of 16 or 32 bits, head dims that are multiples of 8 up to 256."""
    if call.device.type != "cpu":
        return f"it runs on CPU tensors, not on {call.device.type}"
    if call.dtype not in _DTYPES:
        return f"it takes {', '.join(str(d) for d in _DTYPES)}, not {call.dtype}"
    if call.head_dim % 8 or not 8 <= call.head_dim <= MAX_HEAD_DIM:
        return f"head dim {call.head_dim} is not a multiple of 8 from 8 to {MAX_HEAD_DIM}"
    return None


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """See csrc/cpu/attention_forward.h."""
    inputs = _inputs(call, tensors)
    result = torch.ops.genhoi_kernels.cpu_attention_forward(*inputs, call.needs_grad)
    return AttentionResult(*result)


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> AttentionTensors:
    """See csrc/cpu/attention_backward.h."""
    t = tensors
    found = torch.ops.genhoi_kernels.cpu_attention_backward(
        grads.out, grads.lse, grads.gate_sum, o, lse, *_inputs(call, tensors)
    )
    pairs = zip(found, present(tensors), strict=True)
    rest = iter([grad.to(x.dtype) for grad, x in pairs])
    return AttentionTensors(
        q=next(rest),
        k=next(rest),
        v=next(rest),
        k_ref=None if t.k_ref is None else next(rest),
        v_ref=None if t.v_ref is None else next(rest),
        bits=None,
        ref_bias=None if t.ref_bias is None else next(rest),
        gate=None if t.gate is None else GateWeights(*rest),
    )


def _inputs(call: AttentionCall, tensors: AttentionTensors) -> tuple[object, ...]:
    t = tensors
    gate = [] if t.gate is None else [weight.float().contiguous() for weight in t.gate]
    bits = None if t.bits is None else t.bits.contiguous()
    ref_bias = None if t.ref_bias is None else t.ref_bias.contiguous()
    return (
        t.q, t.k, t.v, t.k_ref, t.v_ref, bits, ref_bias, gate, call.ref_lengths,
        _rotation(call.rope, t.q.shape[1]),
        _rotation(call.ref_rope, 0 if t.k_ref is None else t.k_ref.shape[1]),
        _GATE_MODES[call.gate_mode], call.scale,
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _rotation(rope: Rope | None, tokens: int) -> list[Tensor]:
    """Angle tables of the three axes, and ``[tokens, 3]`` int32: each token's row in them."""
    if rope is None:
        return []
    device = torch.device("cpu")
    tables = rope.tables(device=device, dtype=torch.float32)
    with torch.inference_mode(False):
        return [*tables, token_places(rope, tokens, device)]


def norm_rope_forward(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """See csrc/cpu/norm_rope.h."""
    return _norm_rope(x.unflatten(-1, (-1, rope.head_dim)), weight, rope, eps, False)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; see csrc/cpu/norm_rope.h."""
    dx, dweight = torch.ops.genhoi_kernels.cpu_norm_rope_backward(
        grad,
        x.unflatten(-1, (-1, rope.head_dim)),
        weight.float().contiguous(),
        _rotation(rope, x.shape[1]),
        isinstance(rope, HeadSlidingRope),
        eps,
    )
    return dx.flatten(-2), dweight.to(weight.dtype)


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """The rotation alone, or its inverse."""
    return _norm_rope(x, None, rope, 0.0, inverse)


def _norm_rope(x: Tensor, weight: Tensor | None, rope: Rope, eps: float, inverse: bool) -> Tensor:
    y: Tensor = torch.ops.genhoi_kernels.cpu_norm_rope_forward(
        x,
        None if weight is None else weight.float().contiguous(),
        _rotation(rope, x.shape[1]),
        isinstance(rope, HeadSlidingRope),
        eps,
        inverse,
    )
    return y
