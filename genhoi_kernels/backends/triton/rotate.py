"""Launches of the norm-and-rotate kernels (norm_rope.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from genhoi_kernels.backends.device_tables import angles
from genhoi_kernels.backends.triton import norm_rope
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.rope import HeadSlidingRope, Rope

PROGRAMS = 512
"""Parts into which the tokens are cut for the gradient of a norm's weight."""


def forward_launch(
    x: Tensor, y: Tensor, weight: Tensor | None, rope: Rope, *, eps: float, inverse: bool
) -> Launch:
    """Norm (with a weight) and rotation of x ``[B, N, H, D]`` into y, contiguous."""
    batch, tokens, heads, head_dim = x.shape
    block = power_of_two(heads * head_dim)
    table = angles(rope, tokens, x.device)
    return Launch(
        kernel=norm_rope.norm_rope_forward,
        grid=(ceil_div(tokens, _tokens(block)), batch if heads else 0),
        arguments=dict(
            x=x, weight=weight, y=y, cosines=table.cosines, sines=table.sines, places=table.places,
            x_b=x.stride(0), x_n=x.stride(1), x_h=x.stride(2), N=tokens,
            row_table=table.row_table, col_table=table.col_table, eps=eps,
        ),
        constants=dict(
            H=heads, D=head_dim, BLOCK=block, TOKENS=_tokens(block),
            BY_HEAD=isinstance(rope, HeadSlidingRope), NORM=weight is not None, INVERSE=inverse,
        ),
        config=_config(block),
    )  # fmt: skip


def backward_launch(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    dx: Tensor,
    dweights: Tensor,
    rope: Rope,
    *,
    eps: float,
) -> Launch:
    """Gradients for grad ``[B, N, H, D]`` and x ``[B, N, H*D]``; dweights ``[parts, H*D]``."""
    batch, tokens, heads, head_dim = grad.shape
    block = power_of_two(heads * head_dim)
    table = angles(rope, tokens, x.device)
    return Launch(
        kernel=norm_rope.norm_rope_backward,
        grid=(len(dweights),),
        arguments=dict(
            grad=grad, x=x, weight=weight, dx=dx, dweights=dweights,
            cosines=table.cosines, sines=table.sines, places=table.places,
            x_b=x.stride(0), x_n=x.stride(1), B=batch, N=tokens,
            tokens_each=ceil_div(batch * tokens, len(dweights)) if len(dweights) else 0,
            row_table=table.row_table, col_table=table.col_table, eps=eps,
        ),
        constants=dict(
            H=heads, D=head_dim, BLOCK=block, TOKENS=_tokens(block),
            BY_HEAD=isinstance(rope, HeadSlidingRope),
        ),
        config=_config(block),
    )  # fmt: skip


def _tokens(block: int) -> int:
    """Tokens of a program: 4096 values, or one token that has more."""
    return max(4096 // block, 1)


def _config(block: int) -> Config:
    """16 values a thread: 16-byte accesses, and registers for both halves of the pairs."""
    warps = max(4096, block) // 512
    how = "16 values a thread, in whole tokens; bandwidth-bound, nothing to tune"
    return Config(_tokens(block), block, 0, min(warps, 16), 1, how=how)


def rotated(x: Tensor, rope: Rope | None, *, inverse: bool = False) -> Tensor:
    """x ``[B, N, H, D]`` turned; x itself without a rotation."""
    if rope is None:
        return x
    y = x.new_empty(x.shape)
    forward_launch(x, y, None, rope, eps=0.0, inverse=inverse).run()
    return y


def norm_rope_of(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """RMS norm of x ``[B, N, H*D]`` over all heads, then its rotation: ``[B, N, H, D]``."""
    heads = x.unflatten(-1, (-1, rope.head_dim))
    y = heads.new_empty(heads.shape)
    forward_launch(heads, y, weight.contiguous(), rope, eps=eps, inverse=False).run()
    return y


def norm_rope_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x ``[B, N, H*D]`` and weight ``[H*D]``; see norm_rope.norm_rope_backward."""
    parts = min(x.shape[0] * x.shape[1], PROGRAMS)
    dx = x.new_empty(x.shape)
    dweights = x.new_empty((parts, x.shape[2]), dtype=torch.float32)
    backward_launch(grad, x, weight.contiguous(), dx, dweights, rope, eps=eps).run()
    return dx, dweights.sum(0).to(weight.dtype)
