"""What people call: the op and its companions, checked, autocast, and dispatched."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels import checks, layouts, ops, reference, schema, spec
from genhoi_kernels.backends import registry
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import MaskGate, mask_bits
from genhoi_kernels.registration import run_operator
from genhoi_kernels.rope import (
    HeadSlidingRope,
    ReferenceFramesRope,
    Rope,
    VideoRope,
    encode_rope,
)


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
    rope: VideoRope | ReferenceFramesRope | None = None,
    ref_rope: HeadSlidingRope | None = None,
    gate: GateWeights | Any | None = None,
    gate_reduction: str | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    return_gate_sum: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Compute attention of video tokens over video and reference tokens (GenHOI, arXiv 2603.06048).

    Every row attends to all video keys and, where the mask lets it, to reference keys; a small
    learned gate scales the result. Differentiable in every floating-point tensor argument and
    through ``lse`` and ``gate_sum``; deterministic; no N x M tensor (the eager backend excepted).

    Tokens come before heads: [B, N, H, D], not [B, H, N, D] as scaled_dot_product_attention has it.

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
        rope: rotation of q and k, in a sequence with reference frames a ``ReferenceFramesRope``;
            None if they come rotated.
        ref_rope: rotation of k_ref; None if it comes rotated (cached keys).
        gate: flow gate as ``GateWeights`` or a ``FlowGate``; None for none.
        gate_reduction: "token" (one gate per token and head) or "sequence" (one per sample and
            head: sigmoid of the mean logit over all N rows). Default: the FlowGate's own, else
            "token".
        scale: of the logits, any finite number but 0; default 1/sqrt(D).
        return_lse: also return lse ``[B, H, N]`` float32, natural log, before the gate.
        return_gate_sum: also return the sum of the gate's logits over the rows ``[B, H]``
            float32, and leave out ungated (for sharded sequences; needs "sequence").
        backend: a name from ``backends()``; None takes the first that supports the call, and warns
            (``EagerFallbackWarning``) if that is plain PyTorch.

    Returns:
        out ``[B, N, H, D]`` in q's dtype, then lse and gate_sum where asked for.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, or a backend
            that refuses the call. The message names the argument, what came and what was wanted.

    Example:
        >>> import torch
        >>> from genhoi_kernels import HeadSlidingRope, VideoRope, reference_attention
        >>> q, k, v = torch.randn(3, 1, 24, 4, 16)  # [B, N, H, D]: 2 frames of 3 x 4 tokens
        >>> k_ref, v_ref = torch.randn(2, 1, 6, 4, 16)  # [B or 1, M, H, D]: one of 3 x 2
        >>> mask = torch.arange(24)[None] < 12  # the first frame sees the reference
        >>> out, lse = reference_attention(
        ...     q,
        ...     k,
        ...     v,
        ...     k_ref,
        ...     v_ref,
        ...     mask=mask,
        ...     rope=VideoRope((2, 3, 4), head_dim=16),
        ...     ref_rope=HeadSlidingRope((2, 3, 4), [(3, 2)], head_dim=16, num_heads=4),
        ...     return_lse=True,
        ... )
        >>> out.shape, lse.shape
        (torch.Size([1, 24, 4, 16]), torch.Size([1, 4, 24]))
    """
    values = _checked(
        {
            "q": q,
            "k": k,
            "v": v,
            "k_ref": k_ref,
            "v_ref": v_ref,
            "mask": mask,
            "ref_lengths": ref_lengths,
            "ref_bias": ref_bias,
            "rope": rope,
            "ref_rope": ref_rope,
            "gate": gate,
            "gate_reduction": gate_reduction,
            "scale": scale,
            "return_gate_sum": return_gate_sum,
            "backend": backend,
        }
    )
    out, lse, gate_sum, _ = run_operator(ops.attention, *schema.flatten(values))
    if values["gate_mode"] == "sum" and not return_gate_sum:
        out = reference.scale_by_gate_sum(out, gate_sum)
    extras = ([lse] if return_lse else []) + ([gate_sum] if return_gate_sum else [])
    return (out, *extras) if extras else out


def explain(*args: Any, **kwargs: Any) -> dict[str, str | None]:
    """Say what each backend makes of a ``reference_attention`` call with these arguments.

    Takes the arguments of ``reference_attention``, except ``return_lse``, ``return_gate_sum`` and
    ``backend``.

    Returns:
        For each backend, in the order in which they are tried: None if it takes the call, else
        the reason why it doesn't.

    Raises:
        TypeError, ValueError: as for ``reference_attention``.

    Example:
        >>> import torch
        >>> from genhoi_kernels import explain
        >>> q = torch.randn(1, 24, 4, 16, dtype=torch.float64)
        >>> reasons = explain(q, q, q)
        >>> reasons["eager"] is None  # plain PyTorch takes every call
        True
        >>> reasons["cpu"] is None  # which says why not
        False
    """
    bound = _EXPLAINED.bind(*args, **kwargs)
    bound.apply_defaults()
    values = _checked(bound.arguments | {"return_gate_sum": False, "backend": None})
    explained, _ = schema.unflatten(schema.flatten(values))
    return registry.explain(explained)


def _explained() -> inspect.Signature:
    """Return the signature of ``reference_attention`` without what no backend is asked about."""
    signature = inspect.signature(reference_attention)
    left_out = ("return_lse", "return_gate_sum", "backend")
    kept = [p for name, p in signature.parameters.items() if name not in left_out]
    return signature.replace(parameters=kept, return_annotation="dict[str, str | None]")


_EXPLAINED = _explained()
explain.__signature__ = _EXPLAINED  # type: ignore[attr-defined]  # which help() shows


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of ``reference_attention``, by name, and apply autocast.

    Returns:
        What was given, and the value of every argument of the operator (``schema.ARGUMENTS``).
    """
    try:
        values = _values(given)
    except ValueError as error:
        raise layouts.with_hint(error, given) from None
    layouts.doubt(values["q"], given)
    return values


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    """Do what ``_checked`` does, but for the layout."""
    values = dict(given)
    values["gate"], reduction = _gate_options(given["gate"], given["gate_reduction"])
    checks.check_gate_options(values["gate"], reduction, given["return_gate_sum"])
    values |= _autocast({name: given[name] for name in ("q", "k", "v", "k_ref", "v_ref")})
    q, k, k_ref = values["q"], values["k"], values["k_ref"]
    checks.check_qkv(q, k, values["v"])
    if given["rope"] is not None and k.shape[1] != q.shape[1]:
        raise ValueError(
            f"k: got {k.shape[1]} keys beside {q.shape[1]} queries, wanted as many because rope "
            f"is given; rotate them first and pass rope=None"
        )
    checks.check_references(q, k_ref, values["v_ref"])
    values["ref_lengths"] = _ref_lengths(given, k_ref)
    values |= _mask(given["mask"], q, len(values["ref_lengths"]))
    for name, carried in schema.ARGUMENTS.items():
        if carried.check is not None and values[name] is not None:
            carried.check(values[name], values)
    checks.check_same_positions(given["rope"], given["ref_rope"])
    values["gate_mode"] = _gate_mode(values["gate"], reduction)
    scale = given["scale"]
    values["scale"] = q.shape[-1] ** -0.5 if scale is None else checks.check_scale(scale)
    values["wanted"] = spec.EVERY_GRAD
    values["needs_grad"] = torch.is_grad_enabled() and schema.requires_grad(values)
    return values


def _ref_lengths(given: Mapping[str, Any], k_ref: Tensor | None) -> tuple[int, ...]:
    """Return each reference's length; raise if references that are not there are described."""
    if k_ref is not None:
        checks.check_ref_rope("ref_rope", given["ref_rope"], k_ref)
        return checks.check_segments(k_ref, given["ref_lengths"], given["ref_rope"])
    described = [name for name, carried in schema.ARGUMENTS.items() if carried.of_references]
    for name in ("mask", *described):
        if given[name] is not None:
            raise ValueError(f"{name}: got a value without k_ref, wanted None or k_ref, v_ref")
    return ()


def _mask(mask: Tensor | MaskGate | None, q: Tensor, references: int) -> dict[str, Any]:
    """Return the mask's bits, and its MaskGate where there is one."""
    if mask is None:
        return {"bits": None, "mask_gate": None}
    checks.check_mask(mask, q, references)
    if isinstance(mask, MaskGate):
        return {"bits": mask.bits, "mask_gate": mask}
    return {"bits": mask_bits(mask), "mask_gate": None}


def _gate_mode(gate: GateWeights | None, reduction: str) -> spec.GateMode:
    if gate is None:
        return "none"
    return "token" if reduction == "token" else "sum"


def _gate_options(gate: Any, reduction: str | None) -> tuple[GateWeights | None, str]:
    """Return weights and reduction of a GateWeights, a FlowGate (which has both) or nothing."""
    if hasattr(gate, "gate_weights"):
        return gate.gate_weights(), reduction or gate.reduction
    return gate, reduction or "token"


def _autocast(tensors: dict[str, Any]) -> dict[str, Any]:
    """Cast q and what comes with it to the autocast dtype where autocast is on; float64 stays."""
    q = tensors["q"]
    if not isinstance(q, Tensor):
        return tensors
    device = q.device.type
    # torch refuses to say whether autocast is on for meta tensors, which have no values to cast.
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return {name: x.to(dtype) if _is_cast(x) else x for name, x in tensors.items()}


def _is_cast(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64


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
    """Apply RMS norm over all heads of q and k, then rotate them, in one pass over memory.

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

    Example:
        >>> import torch
        >>> from genhoi_kernels import VideoRope, qk_norm_rope
        >>> q, k = torch.randn(2, 1, 24, 64)  # [B, N, H*D]: 2 frames of 3 x 4 tokens, 4 heads
        >>> weight = torch.ones(64)
        >>> q, k = qk_norm_rope(q, k, weight, weight, VideoRope((2, 3, 4), head_dim=16))
        >>> q.shape
        torch.Size([1, 24, 4, 16])
    """
    q, k = _autocast({"q": q, "k": k}).values()
    checks.check_tensor("q", q, "B N H*D")
    checks.check_tensor("k", k, "B N H*D", like=q)
    checks.check_shape("k", k, tuple(q.shape), "B, N, H*D as q")
    _check_is_rope(rope)
    dim = q.shape[2]
    if dim % rope.head_dim:
        raise ValueError(f"rope: got head_dim {rope.head_dim}, wanted a divisor of {dim} (H*D)")
    checks.check_weight("q_weight", q_weight, (dim,), q)
    checks.check_weight("k_weight", k_weight, (dim,), q)
    _check_any_rope(rope, q.unflatten(-1, (dim // rope.head_dim, rope.head_dim)))
    options = (rope.head_dim, *encode_rope(rope), checks.check_eps(eps), backend)
    normed_q, normed_k = run_operator(ops.qk_norm_rope, q, k, q_weight, k_weight, *options)
    return normed_q, normed_k


def apply_rope(x: Tensor, rope: Rope, *, backend: str | None = None) -> Tensor:
    """Rotate video or reference tokens x ``[B, N, H, D]``; computed in float32, same dtype out.

    Args:
        x: tokens.
        rope: rotation; a ``VideoRope`` of video tokens, a ``HeadSlidingRope`` of references', a
            ``ReferenceFramesRope`` of both in one sequence.
        backend: as for ``reference_attention``.

    Raises:
        TypeError, ValueError: as for ``reference_attention``.

    Example:
        >>> import torch
        >>> from genhoi_kernels import VideoRope, apply_rope
        >>> x = torch.randn(1, 24, 4, 16)  # [B, N, H, D]: 2 frames of 3 x 4 tokens
        >>> apply_rope(x, VideoRope((2, 3, 4), head_dim=16)).shape
        torch.Size([1, 24, 4, 16])
    """
    checks.check_tensor("x", x, "B N H D")
    _check_is_rope(rope)
    try:
        _check_any_rope(rope, x)
    except ValueError as error:
        raise layouts.with_hint_of("x", error, x, partial(_check_any_rope, rope)) from None
    rotated: Tensor = run_operator(ops.apply_rope, x, *encode_rope(rope), False, backend)
    return rotated


def _check_is_rope(rope: object) -> None:
    if not isinstance(rope, Rope):
        wanted = "VideoRope, HeadSlidingRope or ReferenceFramesRope"
        raise TypeError(f"rope: got {type(rope).__name__}, wanted {wanted}")


def _check_any_rope(rope: Rope, x: Tensor) -> None:
    if isinstance(rope, HeadSlidingRope):
        checks.check_ref_rope("rope", rope, x)
    else:
        checks.check_rope("rope", rope, x)
