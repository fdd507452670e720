"""RMS norm over all heads, and rotation: docs/op.md, "Rotation" and "Backward".

One program holds whole tokens, H D values each, in registers: memory is read once and written once.
The rotation alone (NORM off) is the same kernel, its inverse (INVERSE) has the other sign.

A token's angles are those of its place (frame, row, column) on three axes; a head's D / 2 pairs
belong to the frame's, the row's and the column's angles in turn. A frame below 0 says that the
token turns per head: in head n its frame is ~frame + n. ``cosines`` and ``sines`` hold the tables
of the three axes one after another, the row's from ``row_table``, the column's from ``col_table``
on.
"""

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends import device_tables
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.rope import Rope, VideoRope
from genhoi_kernels.spec import AttentionCall, AttentionTensors, InputGrads

BACKWARD_PROGRAMS = 512
"""Programs of the backward kernel at most: each sums its tokens' gradients of the norm's weight."""


@triton.jit
def load_angles(
    cosines,
    sines,
    places,
    token,
    valid,
    row_table,
    col_table,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    SLIDES: tl.constexpr,
):
    """Load cosine and sine of every pair of some tokens ``[TOKENS, BLOCK / 2]``.

    SLIDES: some tokens may turn per head; without it they are not asked.
    """
    SPATIAL: tl.constexpr = D // 3 // 2
    TEMPORAL: tl.constexpr = D // 2 - 2 * SPATIAL
    value = tl.arange(0, BLOCK // 2)[None, :]
    head, pair = value // (D // 2), value % (D // 2)
    row = tl.load(places + 3 * token + 1, mask=valid, other=0)[:, None]
    col = tl.load(places + 3 * token + 2, mask=valid, other=0)[:, None]
    frame = tl.load(places + 3 * token, mask=valid, other=0)[:, None]
    at_frame = frame * TEMPORAL + pair
    if SLIDES:
        turned = (~frame + head) * TEMPORAL + pair
        at_frame = tl.where(frame < 0, turned, at_frame)
    at_row = row_table + row * SPATIAL + (pair - TEMPORAL)
    at_col = col_table + col * SPATIAL + (pair - TEMPORAL - SPATIAL)
    at_space = tl.where(pair < TEMPORAL + SPATIAL, at_row, at_col)
    index = tl.where(pair < TEMPORAL, at_frame, at_space)
    inside = valid[:, None] & (value < H * D // 2)
    cos = tl.load(cosines + index, mask=inside, other=0.0)
    return cos, tl.load(sines + index, mask=inside, other=0.0)


@triton.jit
def load_pairs(x, offset, inside):
    """Load values ``[TOKENS, BLOCK]`` in float32 as real and imaginary ``[TOKENS, BLOCK / 2]``."""
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    return tl.split(tl.reshape(value, (value.shape[0], value.shape[1] // 2, 2)))


@triton.jit
def store_pairs(y, offset, inside, real, imag):
    """Store what ``load_pairs`` gave, interleaved again."""
    value = tl.reshape(tl.join(real, imag), (real.shape[0], 2 * real.shape[1]))
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["N", "row_table", "col_table"])
def norm_rope_fwd(
    x,
    weight,
    y,
    cosines,
    sines,
    places,
    x_b,
    x_n,
    x_h,
    N,
    row_table,
    col_table,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    SLIDES: tl.constexpr,
    NORM: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """Compute y ``[B, N, H, D]`` = R (x r weight), r = 1 / sqrt(mean(x^2) + eps) of each token."""
    b = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    valid, value = token < N, tl.arange(0, BLOCK)[None, :]
    inside = valid[:, None] & (value < H * D)

    at = b * x_b + token.to(tl.int64)[:, None] * x_n + (value // D * x_h + value % D)
    real, imag = load_pairs(x, at, inside)
    if NORM:
        r = tl.rsqrt(tl.sum(real * real + imag * imag, 1) / (H * D) + eps)[:, None]
        w_real, w_imag = load_pairs(weight, value, value < H * D)
        real, imag = real * r * w_real, imag * r * w_imag

    cos, sin = load_angles(
        cosines, sines, places, token, valid, row_table, col_table, H, D, BLOCK, SLIDES
    )
    if INVERSE:
        sin = -sin
    at = (b * N + token)[:, None] * (H * D) + value
    store_pairs(y, at, inside, real * cos - imag * sin, real * sin + imag * cos)


@triton.jit(do_not_specialize=["B", "N", "tokens_each", "row_table", "col_table"])
def norm_rope_bwd(
    grad,
    x,
    weight,
    dx,
    dweights,
    cosines,
    sines,
    places,
    x_b,
    x_n,
    B,
    N,
    tokens_each,
    row_table,
    col_table,
    eps,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    SLIDES: tl.constexpr,
):
    """Compute dx, and this program's share of dweight ``[programs, H D]``, of tokens_each tokens.

    With g = R^-1 grad: dweight = sum of g x r;  dx = r (g weight - x r^2 mean(g weight x)).
    """
    value = tl.arange(0, BLOCK)[None, :]
    w_real, w_imag = load_pairs(weight, value, value < H * D)
    dw_real = tl.zeros((1, BLOCK // 2), tl.float32)
    dw_imag = tl.zeros((1, BLOCK // 2), tl.float32)

    first = tl.program_id(0) * tokens_each
    last = tl.minimum(first + tokens_each, B * N)
    for i in range(first, last, TOKENS):
        row = i + tl.arange(0, TOKENS)
        valid, token = row < last, row % N
        inside = valid[:, None] & (value < H * D)
        cos, sin = load_angles(
            cosines, sines, places, token, valid, row_table, col_table, H, D, BLOCK, SLIDES
        )
        y_at = row.to(tl.int64)[:, None] * (H * D) + value
        real, imag = load_pairs(grad, y_at, inside)
        g_real, g_imag = real * cos + imag * sin, imag * cos - real * sin

        x_at = (row // N).to(tl.int64)[:, None] * x_b + token.to(tl.int64)[:, None] * x_n + value
        x_real, x_imag = load_pairs(x, x_at, inside)
        r = tl.rsqrt(tl.sum(x_real * x_real + x_imag * x_imag, 1) / (H * D) + eps)[:, None]
        dw_real += tl.sum(g_real * x_real * r, 0)[None, :]
        dw_imag += tl.sum(g_imag * x_imag * r, 0)[None, :]
        g_real, g_imag = g_real * w_real, g_imag * w_imag
        mean = tl.sum(g_real * x_real + g_imag * x_imag, 1)[:, None] / (H * D)
        along = r * r * mean
        dx_real, dx_imag = r * (g_real - x_real * along), r * (g_imag - x_imag * along)
        store_pairs(dx, y_at, inside, dx_real, dx_imag)
    at = tl.program_id(0) * (H * D) + value
    store_pairs(dweights, at, value < H * D, dw_real, dw_imag)


def rotate(x: Tensor, rope: Rope | None, *, inverse: bool = False) -> Tensor:
    """Rotate x ``[B, N, H, D]``; without a rotation x itself is the result."""
    if rope is None:
        return x
    y = x.new_empty(x.shape)
    forward_launch(x, y, None, rope, eps=0.0, inverse=inverse).run()
    return y


def rotate_inputs(
    call: AttentionCall, t: AttentionTensors, *, k: bool = True, k_ref: bool = True
) -> AttentionTensors:
    """Rotate q, and unless told otherwise k and k_ref, each by its rotation if it has one."""
    return dataclasses.replace(
        t,
        q=rotate(t.q, call.rope),
        k=rotate(t.k, call.rope) if k else t.k,
        k_ref=rotate(t.k_ref, call.ref_rope) if k_ref and t.k_ref is not None else t.k_ref,
    )


def wanted_gradients(call: AttentionCall, gradients: dict[str, Any]) -> InputGrads:
    """Rotate q's, k's and k_ref's gradients back; those that are not wanted become None.

    gradients: by the names of WantedGrads; None where the call has no such tensor.
    """
    kept: dict[str, Any] = dict.fromkeys(gradients)
    ropes = {"q": call.rope, "k": call.rope, "k_ref": call.ref_rope}
    for name, gradient in gradients.items():
        if gradient is not None and getattr(call.wanted, name):
            kept[name] = rotate(gradient, ropes.get(name), inverse=True)
    return InputGrads(**kept)


def norm_rope_forward(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """Normalise x ``[B, N, H*D]`` over all heads by its RMS, then rotate it: ``[B, N, H, D]``."""
    heads = x.unflatten(-1, (-1, rope.head_dim))
    y = heads.new_empty(heads.shape)
    forward_launch(heads, y, weight.contiguous(), rope, eps=eps, inverse=False).run()
    return y


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of x ``[B, N, H*D]`` and weight ``[H*D]``."""
    programs = min(x.shape[0] * x.shape[1], BACKWARD_PROGRAMS)
    dx = x.new_empty(x.shape)
    dweights = x.new_empty((programs, x.shape[2]), dtype=torch.float32)
    backward_launch(grad, x, weight.contiguous(), dx, dweights, rope, eps=eps).run()
    return dx, dweights.sum(0).to(weight.dtype)


def forward_launch(
    x: Tensor, y: Tensor, weight: Tensor | None, rope: Rope, *, eps: float, inverse: bool
) -> Launch:
    """Make the launch of ``norm_rope_fwd``, from x ``[B, N, H, D]`` to y, contiguous.

    weight: of the norm; None rotates only.
    """
    batch, tokens, heads, head_dim = x.shape
    block = power_of_two(heads * head_dim)
    return Launch(
        kernel=norm_rope_fwd,
        grid=(ceil_div(tokens, _tokens(block)), batch if heads else 0),
        arguments={
            "x": x,
            "weight": weight,
            "y": y,
            **device_tables.angles(rope, tokens, x.device)._asdict(),
            "x_b": x.stride(0),
            "x_n": x.stride(1),
            "x_h": x.stride(2),
            "N": tokens,
            "eps": eps,
        },
        constants={
            "H": heads,
            "D": head_dim,
            "BLOCK": block,
            "TOKENS": _tokens(block),
            "SLIDES": not isinstance(rope, VideoRope),
            "NORM": weight is not None,
            "INVERSE": inverse,
        },
        config=_config(block),
    )


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
    """Make the launch of ``norm_rope_bwd``.

    grad ``[B, N, H, D]``; x and dx ``[B, N, H*D]``; dweights ``[programs, H*D]``.
    """
    batch, tokens, heads, head_dim = grad.shape
    block, programs = power_of_two(heads * head_dim), len(dweights)
    return Launch(
        kernel=norm_rope_bwd,
        grid=(programs,),
        arguments={
            "grad": grad,
            "x": x,
            "weight": weight,
            "dx": dx,
            "dweights": dweights,
            **device_tables.angles(rope, tokens, x.device)._asdict(),
            "x_b": x.stride(0),
            "x_n": x.stride(1),
            "B": batch,
            "N": tokens,
            "tokens_each": ceil_div(batch * tokens, programs) if programs else 0,
            "eps": eps,
        },
        constants={
            "H": heads,
            "D": head_dim,
            "BLOCK": block,
            "TOKENS": _tokens(block),
            "SLIDES": not isinstance(rope, VideoRope),
        },
        config=_config(block),
    )


def _tokens(block: int) -> int:
    """Give a program 4096 values, or one token that has more."""
    return max(4096 // block, 1)


def _config(block: int) -> Config:
    """Give a thread 16 values: 16-byte accesses, and registers for both halves of the pairs."""
    warps = max(4096, block) // 512
    how = "16 values a thread, in whole tokens; bandwidth-bound, nothing to tune"
    return Config(_tokens(block), block, 0, min(warps, 16), 1, how=how)
