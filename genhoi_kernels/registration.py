"""Registers operators with torch: kernel, shapes for tracing, gradients, refusal of vmap.

``torch.library.custom_op`` offers the same, but goes through all arguments several times a call
(as trees, for lists of tensors; for aliases of results), which takes longer than a small call's
kernel. Tests hold the operators to their schema instead, by ``torch.library.opcheck``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch._ops import OpOverload

NAMESPACE = "genhoi_kernels"

_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")

_VMAP_REFUSAL = (
    "{}: torch.vmap is not supported; the batch dimension is there already: pass tensors with "
    "the mapped dimension folded into B"
)


class Gradient(NamedTuple):
    """How an operator is differentiated.

    leaves(inputs): the tensors that may have gradients, in some order, None for an absent one.
    save(ctx, inputs, outputs): keeps what backward needs.
    backward(ctx, needed, *grads): a gradient or None for each of the leaves; ``needed`` has a bool
    for each, ``grads`` the gradient, or None, of each output.
    """

    leaves: Callable[[Any], Sequence[Tensor | None]]
    save: Callable[[Any, Any, Any], None]
    backward: Callable[..., Iterable[Tensor | None]]


def no_second_derivatives(name: str) -> Gradient:
    """Refuse to differentiate an operator that computes gradients of the function ``name``."""

    def backward(ctx: Any, needed: Sequence[bool], *grads: Tensor | None) -> Iterable[Any]:
        raise NotImplementedError(f"{name}: second derivatives are not supported")

    return Gradient(_every_tensor, lambda ctx, inputs, outputs: None, backward)


def _every_tensor(inputs: Sequence[Any]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for x in inputs:
        if isinstance(x, Tensor):
            tensors.append(x)
        elif isinstance(x, (list, tuple)):
            tensors += [y for y in x if isinstance(y, Tensor)]
    return tensors


def operator(
    schema: str,
    *,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: Gradient,
    function: str,
) -> OpOverload:
    """Register an operator, which is opaque to torch.compile and torch.export.

    Args:
        schema: name, arguments and results, as torch spells them; no argument has a default.
        kernel: computes the results, of which none may alias an argument.
        fake: makes empty results of the right shapes, dtypes and strides.
        gradient: how it is differentiated.
        function: the public function that it serves, for messages.

    Returns:
        What is called with all arguments in their order.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op: OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    _LIBRARY.impl(name, _disable_dynamo(kernel), "CompositeExplicitAutograd")
    _LIBRARY.impl(name, _differentiable(op, gradient), "Autograd", with_keyset=True)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)

    def refuse_vmap(*inputs: Any) -> Any:
        raise NotImplementedError(_VMAP_REFUSAL.format(function))

    _LIBRARY.impl(name, refuse_vmap, "FuncTorchBatched")
    return op


def run_operator(op: OpOverload, *inputs: Any) -> Any:
    """Run op(*inputs), past autograd's part in Python where gradients are off anyway."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return op(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*inputs)


def _differentiable(op: OpOverload, gradient: Gradient) -> Callable[..., Any]:
    """Return the operator as autograd sees it."""
    arguments = enumerate(op._schema.arguments)
    lists = [i for i, argument in arguments if isinstance(argument.type, torch.ListType)]

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, run: Any, inputs: tuple[Any, ...], *leaves: Tensor | None) -> Any:
            ctx.set_materialize_grads(False)
            outputs = run(inputs)
            gradient.save(ctx, inputs, outputs)
            return tuple(outputs) if isinstance(outputs, list) else outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return None, None, *gradient.backward(ctx, ctx.needs_input_grad[2:], *grads)

    def autograd(keyset: torch._C.DispatchKeySet, *inputs: Any) -> Any:
        if any([inputs[i] is None for i in lists]):
            # A program of AOTInductor has None for an empty list, which the dispatcher refuses.
            inputs = tuple([[] if x is None and i in lists else x for i, x in enumerate(inputs)])
        run = functools.partial(_below_autograd, op, keyset)
        if torch.is_grad_enabled():
            leaves = gradient.leaves(inputs)
            if any(x is not None and x.requires_grad for x in leaves):
                return Function.apply(run, inputs, *leaves)
        return run(inputs)

    return autograd


def _below_autograd(op: OpOverload, keyset: torch._C.DispatchKeySet, inputs: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
