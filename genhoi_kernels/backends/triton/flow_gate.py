"""The flow gate inside a kernel: docs/op.md, "Flow gate" and "Backward".

o ``[BLOCK_M, BLOCK_D]`` are attention rows in float32, columns from D on zero. Weights are padded
the same way when they are loaded: columns from D on, and hidden units from D // 2 on, are zero.
"""

import triton
import triton.language as tl

GATE_NORM_EPS: tl.constexpr = tl.constexpr(1e-5)


@triton.jit
def normalised(o, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """x = (o - mean) / std of each row, zero from column D on, and 1 / std."""
    inside = (tl.arange(0, BLOCK_D) < D)[None, :]
    mean = tl.sum(o, 1) / D
    centred = tl.where(inside, o - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + GATE_NORM_EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def load_vector(pointer, start, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Weights start .. start + BLOCK in float32, zero from SIZE on: ``[1, BLOCK]``."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(pointer + index, mask=index < SIZE, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_fc1(fc1_weight, start, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr):
    """Rows start .. start + BLOCK_F of W1 ``[D // 2, D]``."""
    f, d = start + tl.arange(0, BLOCK_F)[:, None], tl.arange(0, BLOCK_D)[None, :]
    return tl.load(fc1_weight + f * D + d, mask=(f < D // 2) & (d < D), other=0.0)


@triton.jit
def normal_cdf(u):
    """Phi(u), of which GELU(u) = u Phi(u).

    The fit of csrc/cpu/flow_gate.h: 2 Phi(-|u|) exp(u^2 / 2) as a polynomial in 1 / (1 + c |u|),
    off by 5e-8 of its value at most. tl.erf branches, and the compiler copies what follows into
    both branches, with shuffles that want the whole warp.
    """
    t = 1.0 / (1.0 + tl.abs(u) * (0.325 * 0.7071067811865476))
    p = t * -0.158139527 + 0.587833285
    p = p * t - 0.568460763
    p = p * t + 0.614742160
    p = p * t - 0.0728278011
    p = p * t + 0.241426930
    p = p * t + 0.170809418
    p = p * t + 0.184675500
    p = p * t - 5.92748511e-5
    tail = 0.5 * p * tl.exp2(u * u * -0.7213475204444817)
    return tl.where(u < 0.0, tail, 1.0 - tail)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * x))


@triton.jit
def gate_logits(
    o,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """logit = w2 . GELU(W1 LN(o) + b1) + b2 of each row: ``[BLOCK_M]``.

    W1's product is computed in ``dtype``, BLOCK_F hidden units at a time.
    """
    x, _ = normalised(o, D, BLOCK_D)
    gamma, beta = load_vector(norm_weight, 0, D, BLOCK_D), load_vector(norm_bias, 0, D, BLOCK_D)
    n = (x * gamma + beta).to(dtype)
    logits = tl.zeros((o.shape[0],), tl.float32) + tl.load(fc2_bias).to(tl.float32)
    for f in tl.static_range(0, D // 2, BLOCK_F):
        W1 = load_fc1(fc1_weight, f, D, BLOCK_D, BLOCK_F).to(dtype)
        u = tl.dot(n, tl.trans(W1), input_precision=PRECISION)
        u += load_vector(fc1_bias, f, D // 2, BLOCK_F)
        gelu = u * normal_cdf(u)
        logits += tl.sum(gelu * load_vector(fc2_weight, f, D // 2, BLOCK_F), 1)
    return logits
