"""The operators torch sees, each in terms of a backend's functions.

An operator is opaque to torch.compile and torch.export and chooses its backend when it runs, so an
exported program is not tied to the machine that traced it. Autocast is handled one level up, in
``functional``: registering it here would also cast the gate's weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genhoi_kernels import schema
from genhoi_kernels.backends import registry
from genhoi_kernels.reference import wide_dtype
from genhoi_kernels.registration import Gradient, no_second_derivatives, operator, run_operator
from genhoi_kernels.rope import Rope, decode_rope
from genhoi_kernels.schema import AttentionInputs
from genhoi_kernels.spec import AttentionGrads, RopeCall


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Let backends compute in the dtypes they were given, whatever the caller's autocast state."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


# ------------------------------------------------------------------------------------- attention


def _attention(*inputs: Any) -> tuple[Tensor, ...]:
    """Compute the forward pass; return reference.AttentionResult."""
    options, tensors = schema.unflatten(inputs)
    backend = registry.pick(options, AttentionInputs(*inputs).backend)
    with _no_autocast(options.device):
        result = backend.attention_forward(options, tensors)
    return tuple(x.contiguous() for x in result)


def _attention_fake(*inputs: Any) -> tuple[Tensor, ...]:
    given = AttentionInputs(*inputs)
    q = given.q
    batch, rows, heads, head_dim = q.shape
    wide = wide_dtype(q.dtype)
    keep = given.gate_mode == "token" and given.needs_grad
    return (
        q.new_empty(batch, rows, heads, head_dim),
        q.new_empty(batch, heads, rows, dtype=wide),
        q.new_empty(batch, heads, dtype=wide),
        q.new_empty((batch, rows, heads, head_dim) if keep else (0,)),
    )


def _attention_backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_gate_sum: Tensor | None,
    o: Tensor,
    lse: Tensor,
    *inputs: Any,
) -> list[Tensor]:
    """Compute the gradients that ``wanted`` names, of tensors that are given, in its order.

    ``o`` is the attention output before the gate.
    """
    options, tensors = schema.unflatten(inputs)
    backend = registry.pick(options, AttentionInputs(*inputs).backend)
    grads = AttentionGrads(
        *(None if g is None else g.contiguous() for g in (grad_out, grad_lse, grad_gate_sum))
    )
    with _no_autocast(options.device):
        computed = backend.attention_backward(options, tensors, o, lse, grads)
    return [g.contiguous() for g in schema.pick_wanted(computed, options.wanted)]


def _attention_backward_fake(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_gate_sum: Tensor | None,
    o: Tensor,
    lse: Tensor,
    *inputs: Any,
) -> list[Tensor]:
    given = AttentionInputs(*inputs)
    return [x.new_empty(x.shape) for x in schema.pick_wanted(given, given.wanted)]


attention_backward = operator(
    "reference_attention_backward(Tensor? grad_out, Tensor? grad_lse, Tensor? grad_gate_sum, "
    f"Tensor o, Tensor lse, {schema.SCHEMA}) -> Tensor[]",
    kernel=_attention_backward,
    fake=_attention_backward_fake,
    gradient=no_second_derivatives("reference_attention"),
    function="reference_attention",
)


def _attention_leaves(inputs: Sequence[Any]) -> list[Tensor | None]:
    return schema.leaves(AttentionInputs(*inputs))


def _attention_save(ctx: Any, inputs: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    given = AttentionInputs(*inputs)
    out, lse, _, ungated = outputs
    tensors, ctx.given = schema.pull_tensors(given)
    ctx.save_for_backward(ungated if given.gate_mode == "token" else out, lse, *tensors)


def _attention_vjp(
    ctx: Any,
    needed: Sequence[bool],
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    grad_gate_sum: Tensor | None,
    grad_ungated: Tensor | None,
) -> list[Tensor | None]:
    o, lse, *tensors = ctx.saved_tensors
    given = schema.put_tensors(ctx.given, tensors)
    wanted = schema.wanted_grads(given, needed)
    before = (grad_out, grad_lse, grad_gate_sum, o, lse)
    grads = run_operator(attention_backward, *before, *given._replace(wanted=list(wanted)))
    return schema.spread_wanted(given, wanted, grads)


attention = operator(
    f"reference_attention({schema.SCHEMA}) -> "
    "(Tensor out, Tensor lse, Tensor gate_sum, Tensor ungated)",
    kernel=_attention,
    fake=_attention_fake,
    gradient=Gradient(_attention_leaves, _attention_save, _attention_vjp),
    function="reference_attention",
)


# ----------------------------------------------------------------------------- norm and rotation

_NORM_ROPE_OPTIONS = "int head_dim, SymInt[] rope, float[] rope_floats, float eps, str? backend"


class NormRopeOptions(NamedTuple):
    """The arguments that are no tensors of the operators with a norm."""

    head_dim: int
    rope: Sequence[int]
    rope_floats: Sequence[float]
    eps: float
    backend: str | None

    def chosen(self, x: Tensor) -> tuple[Any, Rope]:
        """Return the backend for x ``[B, N, H*D]``, and the rotation."""
        rope = decode_rope(self.rope, self.rope_floats)
        options = RopeCall(x.device, x.dtype, self.head_dim, x.shape[-1] // self.head_dim)
        return registry.pick(options, self.backend), rope


def _qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    """Norm q and k ``[B, N, H*D]`` over all heads, then rotate them: ``[B, N, H, D]`` each."""
    given = NormRopeOptions(*options)
    backend, rope = given.chosen(q)
    with _no_autocast(q.device):
        normed_q = backend.norm_rope_forward(q, q_weight, rope, given.eps)
        normed_k = backend.norm_rope_forward(k, k_weight, rope, given.eps)
    return normed_q.contiguous(), normed_k.contiguous()


def _qk_norm_rope_fake(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    head_dim = NormRopeOptions(*options).head_dim
    shape = (*q.shape[:2], q.shape[2] // head_dim, head_dim)
    return q.new_empty(shape), k.new_empty(shape)


def _norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    """Compute gradients of x ``[B, N, H*D]`` and weight ``[H*D]``, where x is q or k."""
    given = NormRopeOptions(*options)
    backend, rope = given.chosen(x)
    with _no_autocast(x.device):
        dx, dweight = backend.norm_rope_backward(grad.contiguous(), x, weight, rope, given.eps)
    return dx.contiguous(), dweight


def _norm_rope_backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


norm_rope_backward = operator(
    f"norm_rope_backward(Tensor grad, Tensor x, Tensor weight, {_NORM_ROPE_OPTIONS})"
    " -> (Tensor, Tensor)",
    kernel=_norm_rope_backward,
    fake=_norm_rope_backward_fake,
    gradient=no_second_derivatives("qk_norm_rope"),
    function="qk_norm_rope",
)


def _qk_norm_rope_save(ctx: Any, inputs: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    q, k, q_weight, k_weight, *ctx.options = inputs
    ctx.save_for_backward(q, k, q_weight, k_weight)


def _qk_norm_rope_vjp(
    ctx: Any, needed: Sequence[bool], grad_q: Tensor | None, grad_k: Tensor | None
) -> tuple[Tensor | None, ...]:
    q, k, q_weight, k_weight = ctx.saved_tensors
    need_q, need_k, need_q_weight, need_k_weight = needed
    dq = dk = dq_weight = dk_weight = None
    if grad_q is not None and (need_q or need_q_weight):
        dq, dq_weight = run_operator(norm_rope_backward, grad_q, q, q_weight, *ctx.options)
    if grad_k is not None and (need_k or need_k_weight):
        dk, dk_weight = run_operator(norm_rope_backward, grad_k, k, k_weight, *ctx.options)
    return dq, dk, dq_weight, dk_weight


qk_norm_rope = operator(
    f"qk_norm_rope(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, {_NORM_ROPE_OPTIONS})"
    " -> (Tensor, Tensor)",
    kernel=_qk_norm_rope,
    fake=_qk_norm_rope_fake,
    gradient=Gradient(lambda inputs: inputs[:4], _qk_norm_rope_save, _qk_norm_rope_vjp),
    function="qk_norm_rope",
)


def _apply_rope(
    x: Tensor,
    rope: Sequence[int],
    rope_floats: Sequence[float],
    inverse: bool,
    backend: str | None,
) -> Tensor:
    """Rotate x ``[B, N, H, D]``, forward or by the inverse, which is also the adjoint."""
    chosen = registry.pick(RopeCall(x.device, x.dtype, x.shape[-1], x.shape[-2]), backend)
    with _no_autocast(x.device):
        rotated = chosen.apply_rope(x.contiguous(), decode_rope(rope, rope_floats), inverse)
    return rotated.contiguous()


def _apply_rope_fake(x: Tensor, *options: Any) -> Tensor:
    return x.new_empty(x.shape)


def _apply_rope_save(ctx: Any, inputs: Sequence[Any], output: Tensor) -> None:
    _, *ctx.options = inputs


def _apply_rope_vjp(ctx: Any, needed: Sequence[bool], grad: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,)
    rope, rope_floats, inverse, backend = ctx.options
    return (run_operator(apply_rope, grad, rope, rope_floats, not inverse, backend),)


apply_rope = operator(
    "apply_rope(Tensor x, SymInt[] rope, float[] rope_floats, bool inverse, str? backend)"
    " -> Tensor",
    kernel=_apply_rope,
    fake=_apply_rope_fake,
    gradient=Gradient(lambda inputs: inputs[:1], _apply_rope_save, _apply_rope_vjp),
    function="apply_rope",
)
