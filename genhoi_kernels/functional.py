"""What people call: the op and its companions, checked, autocast, and dispatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels import checks, ops, reference
from genhoi_kernels.backends import registry
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import MaskGate, mask_bits
from genhoi_kernels.rope import HeadSlidingRope, Rope, VideoRope, encode_rope


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor | None = None,
    v_ref: Tensor | None = None,
    *,
    mask: Tensor | MaskGate | None = None,
    ref_lengths: Sequence[int] | None = None,
    ref_bias: Tensor | None = None,
    rope: VideoRope | None = None,
    ref_rope: HeadSlidingRope | None = None,
    gate: GateWeights | Any | None = None,
    gate_reduction: str | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    return_gate_sum: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Attention of video tokens over video and reference tokens (GenHOI, arXiv 2603.06048).

    Every row attends to all video keys and, where the mask lets it, to reference keys; a small
    learned gate scales the result. Differentiable in every floating-point tensor argument and
    through ``lse`` and ``gate_sum``; deterministic; no N x M tensor (the eager backend excepted).

    Args:
        q: video queries ``[B, N, H, D]``; float32, bfloat16, float16 (eager also float64).
        k, v: video keys and values ``[B, Nk, H, D]``; Nk = N unless ``rope`` is None.
        k_ref, v_ref: reference keys and values ``[B or 1, M, H, D]``; M = 0 is legal.
        mask: mask gate ``[B or 1, N]``: bool (True sees every reference), or uint8, int32, int64
            (bit r: sees reference r; higher bits are ignored), or a ``MaskGate``. None: every row
            sees every reference. A row that sees none is bitwise what the same backend gives
            without references.
        ref_lengths: tokens of each reference; default ``ref_rope``'s, else one of length M.
        ref_bias: ``[R]`` float32, added to each reference's logits after ``scale``.
        rope: rotation of q and k; None if they come rotated.
        ref_rope: rotation of k_ref; None if it comes rotated (cached keys).
        gate: flow gate as ``GateWeights`` or a ``FlowGate``; None for none.
        gate_reduction: "token" (one gate per token and head) or "sequence" (one per sample and
            head: sigmoid of the mean logit over all N rows). Default: the FlowGate's own, else
            "token".
        scale: of the logits; default 1/sqrt(D).
        return_lse: also return lse ``[B, H, N]`` float32, natural log, before the gate.
        return_gate_sum: also return the sum of the gate's logits over the rows ``[B, H]``
            float32, and leave out ungated (for sharded sequences; needs "sequence").
        backend: a name from ``backends()``; None takes the first that supports the call.

    Returns:
        out ``[B, N, H, D]`` in q's dtype, then lse and gate_sum where asked for.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a backend
            that refuses the call. The message names the argument, what came and what was wanted.
    """
    arguments = _checked(
        q, k, v, k_ref, v_ref, mask, ref_lengths, ref_bias, rope, ref_rope, gate, gate_reduction,
        scale, return_gate_sum, backend,
    )  # fmt: skip
    out, lse, gate_sum, _ = ops.attention(*arguments)
    if arguments.gate_mode == "sum" and not return_gate_sum:
        out = reference.scale_by_gate_sum(out, gate_sum)
    extras = ([lse] if return_lse else []) + ([gate_sum] if return_gate_sum else [])
    return (out, *extras) if extras else out


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor | None = None,
    v_ref: Tensor | None = None,
    *,
    mask: Tensor | MaskGate | None = None,
    ref_lengths: Sequence[int] | None = None,
    ref_bias: Tensor | None = None,
    rope: VideoRope | None = None,
    ref_rope: HeadSlidingRope | None = None,
    gate: GateWeights | Any | None = None,
    gate_reduction: str | None = None,
    scale: float | None = None,
) -> dict[str, str | None]:
    """What each backend says to a ``reference_attention`` call with these arguments.

    Returns:
        For each backend, in the order in which they are tried: None if it takes the call, else
        the reason why it doesn't.

    Raises:
        TypeError, ValueError: as for ``reference_attention``.
    """
    arguments = _checked(
        q, k, v, k_ref, v_ref, mask, ref_lengths, ref_bias, rope, ref_rope, gate, gate_reduction,
        scale, False, None,
    )  # fmt: skip
    return registry.explain(ops.attention_call(arguments))


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_ref: Tensor | None,
    v_ref: Tensor | None,
    mask: Tensor | MaskGate | None,
    ref_lengths: Sequence[int] | None,
    ref_bias: Tensor | None,
    rope: VideoRope | None,
    ref_rope: HeadSlidingRope | None,
    gate: GateWeights | Any | None,
    gate_reduction: str | None,
    scale: float | None,
    return_gate_sum: bool,
    backend: str | None,
) -> ops.AttentionArguments:
    """Check everything, apply autocast, and put it as the operator takes it."""
    gate, gate_reduction = _gate_options(gate, gate_reduction)
    checks.check_gate_options(gate, gate_reduction, return_gate_sum)
    q, k, v, k_ref, v_ref = _autocast(q=q, k=k, v=v, k_ref=k_ref, v_ref=v_ref)
    checks.check_qkv(q, k, v)
    checks.check_rope("rope", rope, q)
    if rope is not None and k.shape[1] != q.shape[1]:
        raise ValueError(
            f"k: got {k.shape[1]} keys beside {q.shape[1]} queries, wanted as many because rope "
            f"is given; rotate them first and pass rope=None"
        )
    checks.check_references(q, k_ref, v_ref)
    lengths, bits, built = _segments(q, k_ref, mask, ref_lengths, ref_bias, ref_rope)
    if gate is not None:
        checks.check_gate(gate, q)
    weights = [] if gate is None else list(gate)
    differentiable = (q, k, v, k_ref, v_ref, ref_bias, *weights)
    rope_ints, rope_floats = encode_rope(rope)
    ref_rope_ints, ref_rope_floats = encode_rope(ref_rope)
    return ops.AttentionArguments(
        q=q,
        k=k,
        v=v,
        k_ref=k_ref,
        v_ref=v_ref,
        bits=bits,
        ref_bias=ref_bias,
        gate=weights,
        mask_gate=[] if built is None else [built.tile_bits, built.rows, built.row_counts],
        ref_lengths=lengths,
        rope=rope_ints,
        rope_floats=rope_floats,
        ref_rope=ref_rope_ints,
        ref_rope_floats=ref_rope_floats,
        gate_mode="none" if gate is None else "token" if gate_reduction == "token" else "sum",
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        needs_grad=torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in differentiable),
        backend=backend,
    )


def _segments(
    q: Tensor,
    k_ref: Tensor | None,
    mask: Tensor | MaskGate | None,
    ref_lengths: Sequence[int] | None,
    ref_bias: Tensor | None,
    ref_rope: HeadSlidingRope | None,
) -> tuple[tuple[int, ...], Tensor | None, MaskGate | None]:
    """Check what describes the references; returns lengths, the mask's bits, the gate if built."""
    described = {
        "mask": mask, "ref_lengths": ref_lengths, "ref_bias": ref_bias, "ref_rope": ref_rope,
    }  # fmt: skip
    if k_ref is None:
        for name, value in described.items():
            if value is not None:
                raise ValueError(f"{name}: got a value without k_ref, wanted None or k_ref, v_ref")
        return (), None, None
    checks.check_ref_rope("ref_rope", ref_rope, k_ref)
    lengths = checks.check_segments(k_ref, ref_lengths, ref_rope)
    if ref_bias is not None:
        checks.check_ref_bias(ref_bias, q, len(lengths))
    if mask is None:
        return lengths, None, None
    checks.check_mask(mask, q, len(lengths))
    if isinstance(mask, MaskGate):
        return lengths, mask.bits, mask
    return lengths, mask_bits(mask), None


def _gate_options(gate: Any, reduction: str | None) -> tuple[GateWeights | None, str]:
    """Weights and reduction of a GateWeights, a FlowGate (which has both) or nothing."""
    if hasattr(gate, "gate_weights"):
        return gate.gate_weights(), reduction or gate.reduction
    return gate, reduction or "token"


def _autocast(**tensors: Tensor | None) -> list[Any]:
    """Cast q, k, v, k_ref, v_ref to the autocast dtype where autocast is on; float64 stays."""
    q = tensors["q"]
    if not isinstance(q, Tensor) or not torch.is_autocast_enabled(q.device.type):
        return list(tensors.values())
    dtype = torch.get_autocast_dtype(q.device.type)
    return [
        x.to(dtype)
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        else x
        for x in tensors.values()
    ]


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    rope: Rope,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """RMS norm over all heads of q and k, then their rotation, in one pass over memory.

    Args:
        q, k: ``[B, N, H*D]``, as they leave their projections.
        q_weight, k_weight: ``[H*D]``, float32 or q's dtype.
        rope: rotation; its head_dim splits H*D into heads.
        eps: added to the mean square.
        backend: as for ``reference_attention``.

    Returns:
        q and k ``[B, N, H, D]``, in their dtype.

    Raises:
        TypeError, ValueError: as for ``reference_attention``.
    """
    q, k = _autocast(q=q, k=k)
    checks.check_tensor("q", q, "B N H*D")
    checks.check_tensor("k", k, "B N H*D", like=q)
    checks.check_shape("k", k, tuple(q.shape), "B, N, H*D as q")
    if not isinstance(rope, (VideoRope, HeadSlidingRope)):
        raise TypeError(f"rope: got {type(rope).__name__}, wanted VideoRope or HeadSlidingRope")
    dim = q.shape[2]
    if dim % rope.head_dim:
        raise ValueError(f"rope: got head_dim {rope.head_dim}, wanted a divisor of {dim} (H*D)")
    checks.check_weight("q_weight", q_weight, (dim,), q)
    checks.check_weight("k_weight", k_weight, (dim,), q)
    _check_either_rope(rope, q.unflatten(-1, (dim // rope.head_dim, rope.head_dim)))
    return ops.qk_norm_rope(
        q, k, q_weight, k_weight, rope.head_dim, *encode_rope(rope), float(eps), backend
    )


def apply_rope(x: Tensor, rope: Rope, *, backend: str | None = None) -> Tensor:
    """Rotate video or reference tokens x ``[B, N, H, D]``; computed in float32, same dtype out.

    Raises:
        TypeError, ValueError: as for ``reference_attention``.
    """
    checks.check_tensor("x", x, "B N H D")
    if not isinstance(rope, (VideoRope, HeadSlidingRope)):
        raise TypeError(f"rope: got {type(rope).__name__}, wanted VideoRope or HeadSlidingRope")
    _check_either_rope(rope, x)
    return ops.apply_rope(x, *encode_rope(rope), False, backend)


def _check_either_rope(rope: Rope, x: Tensor) -> None:
    if isinstance(rope, VideoRope):
        checks.check_rope("rope", rope, x)
    else:
        checks.check_ref_rope("rope", rope, x)
