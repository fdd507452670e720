"""CUDA kernels (csrc/cuda) for NVIDIA GPUs from sm_80 on, in a library that is built with nvcc."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genhoi_kernels.backends import native
from genhoi_kernels.backends.device_tables import angles, segments
from genhoi_kernels.flow_gate import GateSums, GateWeights
from genhoi_kernels.mask_gate import tile_bits
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import HeadSlidingRope, Rope
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors, RopeCall

DESCRIPTION = "CUDA kernels for sm_80 and later; bfloat16, float16"
MAX_HEAD_DIM = 128

_HALVES = (torch.bfloat16, torch.float16)
_GATE_MODES = {"none": 0, "token": 1, "sum": 2}  # GenhoiGateMode in csrc/cuda/launch.h


def unavailable() -> str | None:
    """Why no kernel can run here, or None."""
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs"
    if native.cuda_library is None:
        return native.cuda_missing_reason
    if not torch.cuda.is_available():
        return "no GPU: torch.cuda.is_available() is false"
    return _open()


@functools.lru_cache(maxsize=1)
def _open() -> str | None:
    """Open the kernels' library; why it cannot be, or None."""
    assert native.module is not None
    try:
        native.module.open_cuda_library(str(native.cuda_library))
    except RuntimeError as error:
        return f"{native.cuda_library} cannot be opened: {error}"
    return None


def supports(call: AttentionCall | RopeCall) -> str | None:
    """16-bit GPU tensors, head dims that 8 divides up to 128."""
    if call.device.type != "cuda":
        return f"it runs on cuda tensors, not on {call.device.type}"
    if torch.cuda.get_device_capability(call.device)[0] < 8:
        return "it needs compute capability 8.0 or later"
    dtypes = _HALVES if isinstance(call, AttentionCall) else (*_HALVES, torch.float32)
    if call.dtype not in dtypes:
        return f"it takes {', '.join(str(d) for d in dtypes)}, not {call.dtype}"
    if call.head_dim % 8 or call.head_dim > MAX_HEAD_DIM:
        return f"head dim {call.head_dim} is not a multiple of 8 from 8 to {MAX_HEAD_DIM}"
    if isinstance(call, AttentionCall) and call.needs_grad and call.head_dim > 64:
        return _too_small(call.device)
    return None


def _too_small(device: torch.device) -> str | None:
    """Why head dims above 64 have no gradients on this GPU, or None."""
    capability = torch.cuda.get_device_capability(device)
    if capability not in ((8, 6), (8, 9)) and capability[0] != 12:
        return None
    assert native.module is not None
    shared = max(native.module.cuda_limits()["bwd_shared_bytes"].values())
    return (
        f"gradients of head dims above 64 need up to {shared} bytes of shared memory for "
        f"a block, more than compute capability {capability[0]}.{capability[1]} has"
    )


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """See csrc/cuda/sm80/fwd.cuh."""
    t = tensors
    out, lse, sums, ungated = torch.ops.genhoi_kernels.cuda_attention_forward(
        *_inputs(call, t), _gate(t.gate, t.q.dtype), _GATE_MODES[call.gate_mode],
        abs(call.scale), call.needs_grad,
    )  # fmt: skip
    return AttentionResult(out, lse, sums.sum(-1), ungated)


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> AttentionTensors:
    """See flow_gate_bwd.cuh, bwd_dq.cuh and bwd_dkdv.cuh in csrc/cuda/sm80."""
    t = tensors
    dO, delta, dgate = _through_gate(call, t.gate, aligned(o), grads)
    found = torch.ops.genhoi_kernels.cuda_attention_backward(
        dO, lse, delta, *_inputs(call, t), abs(call.scale)
    )
    dq, dk, dv = found[:3]
    dk_ref, dv_ref, dbias = _reference_gradients(t, found[3:])
    return AttentionTensors(
        q=apply(-dq if call.scale < 0 else dq, call.rope, inverse=True),
        k=apply(dk, call.rope, inverse=True),
        v=dv,
        k_ref=None if dk_ref is None else apply(dk_ref, call.ref_rope, inverse=True),
        v_ref=dv_ref,
        bits=None,
        ref_bias=dbias,
        gate=dgate,
    )


def _has_references(t: AttentionTensors) -> bool:
    """There is a reference token."""
    return t.k_ref is not None and t.k_ref.shape[1] > 0


def _reference_gradients(
    t: AttentionTensors, found: list[Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of k_ref, v_ref and ref_bias; zeros where there is no token that could have one."""
    if not _has_references(t):
        absent = (t.k_ref, t.v_ref, t.ref_bias)
        dk_ref, dv_ref, dbias = (None if x is None else torch.zeros_like(x) for x in absent)
        return dk_ref, dv_ref, dbias
    return found[0], found[1], None if t.ref_bias is None else found[2].to(t.ref_bias.dtype)


def _through_gate(
    call: AttentionCall, gate: GateWeights | None, o: Tensor, grads: AttentionGrads
) -> tuple[Tensor, Tensor, GateWeights | None]:
    """dO, delta ``[B, H, N]`` and the gradients of the gate's weights."""
    dout = torch.zeros_like(o) if grads.out is None else aligned(grads.out)
    dlse = None if grads.lse is None else grads.lse.contiguous()
    if gate is None:
        return dout, torch.ops.genhoi_kernels.cuda_attention_delta(dout, o, dlse), None
    sums = o.new_zeros((o.shape[0], o.shape[2]), dtype=torch.float32)
    if grads.gate_sum is not None:
        sums = grads.gate_sum.float().contiguous()
    dO, delta, *parts = torch.ops.genhoi_kernels.cuda_gate_backward(
        dout, o, dlse, sums, _gate(gate, o.dtype), _GATE_MODES[call.gate_mode]
    )
    return dO, delta, GateSums(*parts).gradients(gate)


def aligned(x: Tensor) -> Tensor:
    """x ``[B, N, H, D]``, copied unless its rows start at multiples of 16 bytes."""
    steps = (x.stride(i) for i in range(3) if x.shape[i] > 1)
    fits = x.stride(3) == 1 and all(s * x.element_size() % 16 == 0 for s in steps)
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _rotated(call: AttentionCall, t: AttentionTensors) -> tuple[Tensor, Tensor, Tensor | None]:
    """q, k and k_ref as the kernels take them; a scale's sign is q's."""
    q = apply(t.q, call.rope)
    k_ref = None if t.k_ref is None else apply(t.k_ref, call.ref_rope)
    return -q if call.scale < 0 else q, apply(t.k, call.rope), k_ref


def _inputs(call: AttentionCall, t: AttentionTensors) -> tuple[Tensor | None, ...]:
    """Up to ref_bias, as csrc/ops.cpp has them."""
    q, k, k_ref = _rotated(call, t)
    there = _has_references(t)
    flags = None
    if t.bits is not None:
        flags = tile_bits(t.bits) if t.mask_gate is None else t.mask_gate.tile_bits
    return (
        aligned(q), aligned(k), aligned(t.v),
        aligned(k_ref) if there and k_ref is not None else None,
        aligned(t.v_ref) if there and t.v_ref is not None else None,
        t.bits.contiguous() if there and t.bits is not None else None,
        flags.contiguous() if there and flags is not None else None,
        segments(call.ref_lengths, q.device) if there else None,
        t.ref_bias.float().contiguous() if there and t.ref_bias is not None else None,
    )  # fmt: skip


def _gate(gate: GateWeights | None, dtype: torch.dtype) -> list[Tensor]:
    """The weights in float32, but W1, whose products are in the tokens' dtype."""
    if gate is None:
        return []
    wide = gate._replace(**{name: w.float().contiguous() for name, w in gate._asdict().items()})
    return list(wide._replace(fc1_weight=wide.fc1_weight.to(dtype)))


def apply(x: Tensor, rope: Rope | None, *, inverse: bool = False) -> Tensor:
    """x ``[B, N, H, D]`` turned; x itself without a rotation."""
    if rope is None:
        return x
    return apply_rope(x, rope, inverse)


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """See csrc/cuda/norm_rope.cuh."""
    return _norm_rope(x, None, rope, eps=0.0, inverse=inverse)


def norm_rope_forward(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """See csrc/cuda/norm_rope.cuh."""
    heads = x.unflatten(-1, (-1, rope.head_dim))
    return _norm_rope(heads, weight.float().contiguous(), rope, eps=eps, inverse=False)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; see csrc/cuda/norm_rope.cuh."""
    heads = x.unflatten(-1, (-1, rope.head_dim))
    dx, dweight = torch.ops.genhoi_kernels.cuda_norm_rope_backward(
        grad, heads, weight.float().contiguous(), *_angles(heads, rope), eps
    )
    return dx.flatten(2), dweight.to(weight.dtype)


def _norm_rope(
    x: Tensor, weight: Tensor | None, rope: Rope, *, eps: float, inverse: bool
) -> Tensor:
    return torch.ops.genhoi_kernels.cuda_norm_rope_forward(
        x, weight, *_angles(x, rope), eps, inverse
    )


def _angles(x: Tensor, rope: Rope) -> tuple[object, ...]:
    return (*angles(rope, x.shape[1], x.device), isinstance(rope, HeadSlidingRope))
