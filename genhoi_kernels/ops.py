"""The operators torch sees: schemas, shapes for tracing, gradients, refusal of vmap.

Each operator is opaque to torch.compile and torch.export and chooses its backend when it runs, so
an exported program is not tied to the machine that traced it. Autocast is handled one level up, in
``functional``: registering it here would also cast the gate's weights. Rotations travel as plain
numbers (``rope.encode_rope``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genhoi_kernels.backends import registry
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.reference import wide_dtype
from genhoi_kernels.rope import decode_ref_rope, decode_rope, decode_video_rope
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors, RopeCall, present

_VMAP_REFUSAL = (
    "{}: torch.vmap is not supported; the batch dimension is there already: pass tensors with "
    "the mapped dimension folded into B"
)


class AttentionArguments(NamedTuple):
    """The forward operator's arguments, by name.

    mask_gate: tile_bits, rows and row_counts of a MaskGate, or nothing.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    k_ref: Tensor | None
    v_ref: Tensor | None
    bits: Tensor | None
    ref_bias: Tensor | None
    gate: Sequence[Tensor]
    mask_gate: Sequence[Tensor]
    ref_lengths: Sequence[int]
    rope: Sequence[int]
    rope_floats: Sequence[float]
    ref_rope: Sequence[int]
    ref_rope_floats: Sequence[float]
    gate_mode: str
    scale: float
    needs_grad: bool
    backend: str | None


def attention_call(arguments: AttentionArguments) -> AttentionCall:
    """The part of the arguments that is not data."""
    a = arguments
    head_dim = a.q.shape[-1]
    return AttentionCall(
        device=a.q.device,
        dtype=a.q.dtype,
        head_dim=head_dim,
        ref_lengths=tuple(a.ref_lengths),
        rope=decode_video_rope(a.rope, a.rope_floats, head_dim),
        ref_rope=decode_ref_rope(a.ref_rope, a.ref_rope_floats, head_dim),
        gate_mode=a.gate_mode,
        scale=a.scale,
        needs_grad=a.needs_grad,
        rows=a.q.shape[1],
        keys=a.k.shape[1],
    )


def _attention_tensors(arguments: AttentionArguments) -> AttentionTensors:
    """The part of the arguments that is data."""
    a = arguments
    gate = GateWeights(*a.gate) if a.gate else None
    built = None
    if a.mask_gate and a.bits is not None:
        built = MaskGate(a.bits, *a.mask_gate)
    return AttentionTensors(*a[:7], gate=gate, mask_gate=built)


def _no_autocast(device: torch.device) -> torch.autocast:
    """Backends compute in the dtypes they were given, whatever the caller's autocast state."""
    return torch.autocast(device.type, enabled=False)


# The fields of AttentionArguments, as the operators' schemas spell them.
_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? k_ref, Tensor? v_ref, Tensor? bits, Tensor? ref_bias, "
    "Tensor[] gate, Tensor[] mask_gate, SymInt[] ref_lengths, SymInt[] rope, float[] rope_floats, "
    "SymInt[] ref_rope, float[] ref_rope_floats, str gate_mode, float scale, bool needs_grad, "
    "str? backend"
)


@torch.library.custom_op(
    "genhoi_kernels::reference_attention",
    mutates_args=(),
    schema=f"({_INPUTS}) -> (Tensor out, Tensor lse, Tensor gate_sum, Tensor ungated)",
)
def attention(*inputs: Any) -> tuple[Tensor, ...]:
    """Forward pass; takes AttentionArguments, returns reference.AttentionResult."""
    arguments = AttentionArguments(*inputs)
    call, tensors = attention_call(arguments), _attention_tensors(arguments)
    with _no_autocast(call.device):
        result = registry.pick(call, arguments.backend).attention_forward(call, tensors)
    return tuple(x.contiguous() for x in result)


@attention.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    a = AttentionArguments(*inputs)
    batch, rows, heads, head_dim = a.q.shape
    wide = wide_dtype(a.q.dtype)
    keep = a.gate_mode == "token" and a.needs_grad
    return (
        a.q.new_empty(batch, rows, heads, head_dim),
        a.q.new_empty(batch, heads, rows, dtype=wide),
        a.q.new_empty(batch, heads, dtype=wide),
        a.q.new_empty((batch, rows, heads, head_dim) if keep else (0,)),
    )


@torch.library.custom_op(
    "genhoi_kernels::reference_attention_backward",
    mutates_args=(),
    schema=(
        "(Tensor? grad_out, Tensor? grad_lse, Tensor? grad_gate_sum, Tensor o, Tensor lse, "
        f"{_INPUTS}) -> Tensor[]"
    ),
)
def attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_gate_sum: Tensor | None,
    o: Tensor,
    lse: Tensor,
    *inputs: Any,
) -> list[Tensor]:
    """Gradients of every tensor of the forward pass that is there, in its order.

    ``o`` is the attention output before the gate.
    """
    arguments = AttentionArguments(*inputs)
    call, tensors = attention_call(arguments), _attention_tensors(arguments)
    grads = AttentionGrads(
        *(None if g is None else g.contiguous() for g in (grad_out, grad_lse, grad_gate_sum))
    )
    with _no_autocast(call.device):
        backend = registry.pick(call, arguments.backend)
        found = backend.attention_backward(call, tensors, o, lse, grads)
    return [g.contiguous() for g in present(found)]


@attention_backward.register_fake
def _(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_gate_sum: Tensor | None,
    o: Tensor,
    lse: Tensor,
    *inputs: Any,
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in present(_attention_tensors(AttentionArguments(*inputs)))]


def _no_grads(options: Sequence[Any]) -> list[Any]:
    """Gradients of options. torch takes an empty list for a list of tensors, and wants one back."""
    return [[] if isinstance(x, (list, tuple)) and not x else None for x in options]


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    a = AttentionArguments(*inputs)
    out, lse, _, ungated = output
    o = ungated if a.gate_mode == "token" else out
    # The first seven are tensors, then come two lists of them, then options.
    ctx.save_for_backward(o, lse, *a[:7], *a.mask_gate, *a.gate)
    ctx.mask_gate_size = len(a.mask_gate)
    ctx.options = a[9:]


def _attention_vjp(
    ctx: Any,
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_gate_sum: Tensor | None,
    grad_ungated: Tensor | None,
) -> tuple[Any, ...]:
    o, lse, *saved = ctx.saved_tensors
    tensors, lists = saved[:7], saved[7:]
    mask_gate, gate = lists[: ctx.mask_gate_size], lists[ctx.mask_gate_size :]
    found = iter(
        attention_backward(
            grad_out, grad_lse, grad_gate_sum, o, lse, *tensors, gate, mask_gate, *ctx.options
        )
    )
    bits = tensors[5]
    grads = [None if x is None or x is bits else next(found) for x in tensors]
    return (*grads, list(found), [None] * len(mask_gate), *_no_grads(ctx.options))


attention.register_autograd(_attention_vjp, setup_context=_attention_setup)


@torch.library.custom_op("genhoi_kernels::qk_norm_rope", mutates_args=())
def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    head_dim: int,
    rope: Sequence[int],
    rope_floats: Sequence[float],
    eps: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """RMS norm over all heads, then rotation: ``[B, N, H*D]`` -> ``[B, N, H, D]``, twice."""
    chosen = registry.pick(RopeCall(q.device, q.dtype, head_dim), backend)
    turn = decode_rope(rope, rope_floats, head_dim)
    with _no_autocast(q.device):
        results = [
            chosen.norm_rope_forward(x, weight, turn, eps)
            for x, weight in ((q, q_weight), (k, k_weight))
        ]
    return results[0].contiguous(), results[1].contiguous()


@qk_norm_rope.register_fake
def _(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    head_dim: int,
    rope: Sequence[int],
    rope_floats: Sequence[float],
    eps: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:2], q.shape[2] // head_dim, head_dim)
    return q.new_empty(shape), k.new_empty(shape)


@torch.library.custom_op("genhoi_kernels::norm_rope_backward", mutates_args=())
def norm_rope_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    head_dim: int,
    rope: Sequence[int],
    rope_floats: Sequence[float],
    eps: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of x ``[B, N, H*D]`` and weight ``[H*D]`` of one half of ``qk_norm_rope``."""
    chosen = registry.pick(RopeCall(x.device, x.dtype, head_dim), backend)
    turn = decode_rope(rope, rope_floats, head_dim)
    with _no_autocast(x.device):
        dx, dweight = chosen.norm_rope_backward(grad.contiguous(), x, weight, turn, eps)
    return dx.contiguous(), dweight


@norm_rope_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    head_dim: int,
    rope: Sequence[int],
    rope_floats: Sequence[float],
    eps: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _qk_norm_rope_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    q, k, q_weight, k_weight, *ctx.options = inputs
    ctx.save_for_backward(q, k, q_weight, k_weight)


def _qk_norm_rope_vjp(ctx: Any, grad_q: Tensor | None, grad_k: Tensor | None) -> tuple[Any, ...]:
    q, k, q_weight, k_weight = ctx.saved_tensors
    nothing = (None, None)
    dq, dq_weight = (
        nothing if grad_q is None else norm_rope_backward(grad_q, q, q_weight, *ctx.options)
    )
    dk, dk_weight = (
        nothing if grad_k is None else norm_rope_backward(grad_k, k, k_weight, *ctx.options)
    )
    return dq, dk, dq_weight, dk_weight, *_no_grads(ctx.options)


qk_norm_rope.register_autograd(_qk_norm_rope_vjp, setup_context=_qk_norm_rope_setup)


@torch.library.custom_op("genhoi_kernels::apply_rope", mutates_args=())
def apply_rope(
    x: Tensor,
    rope: Sequence[int],
    rope_floats: Sequence[float],
    inverse: bool,
    backend: str | None,
) -> Tensor:
    """Rotation of x ``[B, N, H, D]``, or its inverse (which is also its adjoint)."""
    call = RopeCall(x.device, x.dtype, x.shape[-1])
    turn = decode_rope(rope, rope_floats, x.shape[-1])
    with _no_autocast(x.device):
        return registry.pick(call, backend).apply_rope(x.contiguous(), turn, inverse).contiguous()


@apply_rope.register_fake
def _(
    x: Tensor,
    rope: Sequence[int],
    rope_floats: Sequence[float],
    inverse: bool,
    backend: str | None,
) -> Tensor:
    return x.new_empty(x.shape)


def _apply_rope_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.options = inputs


def _apply_rope_vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rope, floats, inverse, backend = ctx.options
    return apply_rope(grad, rope, floats, not inverse, backend), *_no_grads(ctx.options)


apply_rope.register_autograd(_apply_rope_vjp, setup_context=_apply_rope_setup)


def _refuse_vmap(name: str) -> Any:
    def refuse(info: Any, in_dims: Any, *args: Any) -> Any:
        raise NotImplementedError(_VMAP_REFUSAL.format(name))

    return refuse


def _refuse_second_derivatives(name: str) -> Any:
    def refuse(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"{name}: second derivatives are not supported")

    return refuse


attention_backward.register_autograd(_refuse_second_derivatives("reference_attention"))
norm_rope_backward.register_autograd(_refuse_second_derivatives("qk_norm_rope"))

attention.register_vmap(_refuse_vmap("reference_attention"))
attention_backward.register_vmap(_refuse_vmap("reference_attention"))
qk_norm_rope.register_vmap(_refuse_vmap("qk_norm_rope"))
norm_rope_backward.register_vmap(_refuse_vmap("qk_norm_rope"))
apply_rope.register_vmap(_refuse_vmap("apply_rope"))
