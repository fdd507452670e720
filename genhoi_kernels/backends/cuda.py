"""CUDA kernels (csrc/cuda) for NVIDIA GPUs from sm_80 on, in a library that is built with nvcc."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels.backends import native
from genhoi_kernels.backends.device_tables import angles, segments
from genhoi_kernels.flow_gate import GateSums, GateWeights
from genhoi_kernels.mask_gate import tile_bits
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import Rope
from genhoi_kernels.schema import grads_by_field, pick_wanted
from genhoi_kernels.spec import (
    GATE_MODES,
    AttentionCall,
    AttentionGrads,
    AttentionTensors,
    InputGrads,
    RopeCall,
)

DESCRIPTION = "CUDA kernels for Hopper, and for sm_80 and later; bfloat16, float16"
MAX_HEAD_DIM = 128

_HALVES = (torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Say why no kernel can run here, or None."""
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs"
    if native.cuda_library is None:
        return native.cuda_missing_reason
    if not torch.cuda.is_available():
        return "no GPU: torch.cuda.is_available() is false"
    return _open()


@functools.lru_cache(maxsize=1)
def _open() -> str | None:
    """Open the kernels' library; return why it cannot be, or None."""
    assert native.module is not None
    try:
        native.module.open_cuda_library(str(native.cuda_library))
    except RuntimeError as error:
        return f"{native.cuda_library} cannot be opened: {error}"
    return None


def supports(call: AttentionCall | RopeCall) -> str | None:
    """Take 16-bit GPU tensors (float32 too for norms) of head dims that 8 divides, up to 128."""
    if call.device.type != "cuda":
        return f"it runs on cuda tensors, not on {call.device.type}"
    if torch.cuda.get_device_capability(call.device)[0] < 8:
        return "it needs compute capability 8.0 or later"
    dtypes = _HALVES if isinstance(call, AttentionCall) else (*_HALVES, torch.float32)
    if call.dtype not in dtypes:
        return f"it takes {', '.join(str(d) for d in dtypes)}, not {call.dtype}"
    if call.head_dim % 8 or call.head_dim > MAX_HEAD_DIM:
        return f"head dim {call.head_dim} is not a multiple of 8 from 8 to {MAX_HEAD_DIM}"
    values, most = call.heads * call.head_dim, _limits()["norm_rope_values"]
    if values > most and _rotates(call):
        return f"{call.heads} heads of {call.head_dim} are {values} values of a token, above {most}"
    if isinstance(call, AttentionCall) and call.needs_grad and call.head_dim > 64:
        return _too_small(call.device)
    return None


@functools.lru_cache(maxsize=1)
def _limits() -> dict[str, Any]:
    """Return what the kernels need, as csrc/cuda/limits.h has it."""
    assert native.module is not None
    limits: dict[str, Any] = native.module.cuda_limits()
    return limits


def _rotates(call: AttentionCall | RopeCall) -> bool:
    return isinstance(call, RopeCall) or call.rope is not None or call.ref_rope is not None


def _too_small(device: torch.device) -> str | None:
    """Say why head dims above 64 have no gradients on this GPU, or None."""
    capability = torch.cuda.get_device_capability(device)
    if capability not in ((8, 6), (8, 9)) and capability[0] != 12:
        return None
    shared = max(_limits()["bwd_shared_bytes"].values())
    return (
        f"gradients of head dims above 64 need up to {shared} bytes of shared memory for "
        f"a block, more than compute capability {capability[0]}.{capability[1]} has"
    )


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """Run fwd.cuh of csrc/cuda/sm90 on Hopper, of csrc/cuda/sm80 elsewhere."""
    out, lse, sums, ungated = torch.ops.genhoi_kernels.cuda_attention_forward(
        **_arguments(call, tensors), keep_ungated=call.needs_grad
    )
    return AttentionResult(out, lse, sums.sum(-1), ungated)


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> InputGrads:
    """Run what is wanted of flow_gate_bwd.cuh and bwd_*.cuh, of sm90 and sm80 likewise."""
    dO, delta, dgate = _through_gate(call, tensors, aligned(o), grads)
    dq, dk, dv, dk_ref, dv_ref, dbias, _ = _of_attention(call, tensors, dO, lse, delta)
    if dq is not None:
        dq = apply(-dq if call.scale < 0 else dq, call.rope, inverse=True)
    return InputGrads(
        q=dq,
        k=None if dk is None else apply(dk, call.rope, inverse=True),
        v=dv,
        k_ref=None if dk_ref is None else apply(dk_ref, call.ref_rope, inverse=True),
        v_ref=dv_ref,
        ref_bias=dbias,
        gate=dgate,
    )


def _of_attention(
    call: AttentionCall, t: AttentionTensors, dO: Tensor, lse: Tensor, delta: Tensor
) -> InputGrads:
    """Compute gradients of all but the gate; those of q, k and k_ref are still rotated."""
    wanted = call.wanted._replace(gate=False)
    if not _has_references(t):
        wanted = wanted._replace(k_ref=False, v_ref=False, ref_bias=False)
    computed: list[Tensor] = []
    if any(wanted):
        computed = torch.ops.genhoi_kernels.cuda_attention_backward(
            **_arguments(call, t),
            grad=dO,
            lse=lse,
            delta=delta,
            wanted=native.wanted_bits(wanted),
        )
    pairs = zip(computed, pick_wanted(t, wanted), strict=True)
    by_field = grads_by_field(t, wanted, [grad.to(x.dtype) for grad, x in pairs])
    return by_field if _has_references(t) else by_field._replace(**_zeros_of_references(call, t))


def _has_references(t: AttentionTensors) -> bool:
    """Say whether there is a reference token."""
    return t.k_ref is not None and t.k_ref.shape[1] > 0


def _zeros_of_references(call: AttentionCall, t: AttentionTensors) -> dict[str, Any]:
    """Return gradients where there is no token that could have one."""
    given = {"k_ref": t.k_ref, "v_ref": t.v_ref, "ref_bias": t.ref_bias}
    return {
        name: torch.zeros_like(x)
        for name, x in given.items()
        if x is not None and getattr(call.wanted, name)
    }


def _through_gate(
    call: AttentionCall, t: AttentionTensors, o: Tensor, grads: AttentionGrads
) -> tuple[Tensor, Tensor, GateWeights | None]:
    """Compute dO, delta ``[B, H, N]`` and the gradients of the gate's weights."""
    dout = torch.zeros_like(o) if grads.out is None else aligned(grads.out)
    dlse = None if grads.lse is None else grads.lse.contiguous()
    if t.gate is None:
        return dout, torch.ops.genhoi_kernels.cuda_attention_delta(dout, o, dlse), None
    sums = o.new_zeros((o.shape[0], o.shape[2]), dtype=torch.float32)
    if grads.gate_sum is not None:
        sums = grads.gate_sum.float().contiguous()
    dO, delta, *parts = torch.ops.genhoi_kernels.cuda_gate_backward(
        dout, o, dlse, sums, _gate(t.gate, o.dtype), GATE_MODES.index(call.gate_mode)
    )
    return dO, delta, GateSums(*parts).gradients(t.gate) if call.wanted.gate else None


def aligned(x: Tensor) -> Tensor:
    """Return x ``[B, N, H, D]``, copied unless its rows start at multiples of 16 bytes."""
    steps = (x.stride(i) for i in range(3) if x.shape[i] > 1)
    fits = x.stride(3) == 1 and all(s * x.element_size() % 16 == 0 for s in steps)
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _rotated(call: AttentionCall, t: AttentionTensors) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return q, k and k_ref as the kernels take them, rotated; a negative scale negates q."""
    q = apply(t.q, call.rope)
    k_ref = None if t.k_ref is None else apply(t.k_ref, call.ref_rope)
    return -q if call.scale < 0 else q, apply(t.k, call.rope), k_ref


def _arguments(call: AttentionCall, t: AttentionTensors) -> dict[str, Any]:
    """Return the arguments: rotated, aligned, without references where they have no token."""
    q, k, k_ref = _rotated(call, t)
    changed = {"q": aligned(q), "k": aligned(k), "v": aligned(t.v), "scale": abs(call.scale)}
    changed |= {"gate": _gate(t.gate, t.q.dtype), "ref_lengths": ()}
    if _has_references(t) and k_ref is not None and t.v_ref is not None:
        changed |= {"k_ref": aligned(k_ref), "v_ref": aligned(t.v_ref)}
        changed |= {"ref_starts": segments(call.ref_lengths, q.device), "tile_bits": _tile_bits(t)}
    else:
        changed |= dict.fromkeys(("k_ref", "v_ref", "bits", "ref_bias"))
    return native.attention_arguments(call, t) | changed


def _tile_bits(t: AttentionTensors) -> Tensor | None:
    if t.bits is None:
        return None
    return (tile_bits(t.bits) if t.mask_gate is None else t.mask_gate.tile_bits).contiguous()


def _gate(gate: GateWeights | None, dtype: torch.dtype) -> list[Tensor]:
    """Return the weights in float32, but W1, whose products are in the tokens' dtype."""
    if gate is None:
        return []
    wide = gate._replace(**{name: w.float().contiguous() for name, w in gate._asdict().items()})
    return list(wide._replace(fc1_weight=wide.fc1_weight.to(dtype)))


def apply(x: Tensor, rope: Rope | None, *, inverse: bool = False) -> Tensor:
    """Return x ``[B, N, H, D]`` rotated, or x itself without a rotation."""
    if rope is None:
        return x
    return apply_rope(x, rope, inverse)


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """Run csrc/cuda/norm_rope.cuh."""
    return _norm_rope(x, None, rope, eps=0.0, inverse=inverse)


def norm_rope_forward(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """Run csrc/cuda/norm_rope.cuh."""
    heads = x.unflatten(-1, (-1, rope.head_dim))
    return _norm_rope(heads, weight.float().contiguous(), rope, eps=eps, inverse=False)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute gradients of x and weight by csrc/cuda/norm_rope.cuh."""
    heads = x.unflatten(-1, (-1, rope.head_dim))
    dx, dweight = torch.ops.genhoi_kernels.cuda_norm_rope_backward(
        grad, heads, weight.float().contiguous(), *angles(rope, x.shape[1], x.device), eps
    )
    return dx.flatten(2), dweight.to(weight.dtype)


def _norm_rope(
    x: Tensor, weight: Tensor | None, rope: Rope, *, eps: float, inverse: bool
) -> Tensor:
    of_tokens = angles(rope, x.shape[1], x.device)
    return torch.ops.genhoi_kernels.cuda_norm_rope_forward(x, weight, *of_tokens, eps, inverse)
