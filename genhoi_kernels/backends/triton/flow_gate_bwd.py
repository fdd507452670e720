"""Backward through the flow gate, and delta: docs/op.md, "Backward".

What comes before the attention's own gradients: dO, the gradient of the ungated attention, and
delta_i = dO_i . O_i - dL_i. Without a gate dO is dout and only delta is left to compute.
"""

import triton
import triton.language as tl

from genhoi_kernels.backends.triton.common import head_of, load_tile, store_tile
from genhoi_kernels.backends.triton.flow_gate import (
    load_fc1,
    load_vector,
    normal_cdf,
    normalised,
    sigmoid,
)


@triton.jit(do_not_specialize=["H", "N"])
def attention_delta(
    dout,
    o,
    dlse,
    delta,
    H,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DLSE: tl.constexpr,
):
    """delta ``[B, H, N]`` of ungated attention: dout . o - dL, of BLOCK_M rows of one head."""
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    row = start + tl.arange(0, BLOCK_M)
    sample, lse_row = N.to(tl.int64) * H * D, (b.to(tl.int64) * H + h) * N + row
    dO = load_tile(head_of(dout, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    O = load_tile(head_of(o, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    found = tl.sum(dO.to(tl.float32) * O.to(tl.float32), 1)
    if DLSE:
        found -= tl.load(dlse + lse_row, mask=row < N, other=0.0)
    tl.store(delta + lse_row, found, mask=row < N)


@triton.jit(do_not_specialize=["H", "N", "tiles", "tiles_each"])
def gate_backward(
    dout,
    o,
    dlse,
    dgate_sum,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    dO_out,
    delta,
    du_x,
    dfc1_bias,
    dfc2_weight,
    dfc2_bias,
    H,
    N,
    tiles,
    tiles_each,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GATE: tl.constexpr,
    DLSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dO ``[B, N, H, D]``, delta, and this program's share of sums over all rows ``[parts, ...]``.

    A program takes tiles_each of all tiles (of BLOCK_M rows of one head), one after another: sums
    are the same from run to run. du_x is sum du x^T ``[D // 2, D]``, which gives the gradients of
    W1, gamma and beta (attention.py).
    """
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    gamma, beta = load_vector(norm_weight, 0, D, BLOCK_D), load_vector(norm_bias, 0, D, BLOCK_D)
    b1 = load_vector(fc1_bias, 0, D // 2, BLOCK_F)
    w2 = load_vector(fc2_weight, 0, D // 2, BLOCK_F)
    b2 = tl.load(fc2_bias).to(tl.float32)
    product = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    db1, dw2 = tl.zeros((BLOCK_F,), tl.float32), tl.zeros((BLOCK_F,), tl.float32)
    db2 = 0.0

    sample, of_head = N.to(tl.int64) * H * D, tl.cdiv(N, BLOCK_M)
    first = tl.program_id(0) * tiles_each
    for tile in range(first, tl.minimum(first + tiles_each, tiles)):
        start, b, h = tile % of_head * BLOCK_M, tile // of_head // H, tile // of_head % H
        row = start + tl.arange(0, BLOCK_M)
        head = head_of(o, b, h, sample, D)
        O = load_tile(head, start, N, H * D, True, BLOCK_M, D, BLOCK_D).to(tl.float32)
        head = head_of(dout, b, h, sample, D)
        dout_tile = load_tile(head, start, N, H * D, True, BLOCK_M, D, BLOCK_D).to(tl.float32)

        # The logit, once more.
        x, rstd = normalised(O, D, BLOCK_D)
        n = x * gamma + beta
        W1 = load_fc1(fc1_weight, 0, D, BLOCK_D, BLOCK_F).to(tl.float32)
        u = tl.dot(n, tl.trans(W1), input_precision=PRECISION) + b1
        phi = normal_cdf(u)
        if GATE == "token":
            g = sigmoid(tl.sum(u * phi * w2, 1) + b2)
            dlogit = tl.sum(dout_tile * O, 1) * g * (1.0 - g)
            dO = dout_tile * g[:, None]
        else:
            dlogit = tl.zeros((BLOCK_M,), tl.float32) + tl.load(dgate_sum + b * H + h)
            dO = dout_tile
        dlogit = tl.where(row < N, dlogit, 0.0)

        # Its gradient.
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * u * u)
        du = dlogit[:, None] * w2 * (phi + u * density)
        product = tl.dot(tl.trans(du), x, product, input_precision=PRECISION)
        db2 += tl.sum(dlogit, 0)
        dw2 += tl.sum(dlogit[:, None] * u * phi, 0)
        db1 += tl.sum(du, 0)
        dn = tl.dot(du, W1, input_precision=PRECISION)
        dx = dn * gamma
        mean, along = tl.sum(dx, 1) / D, tl.sum(dx * x, 1) / D
        dO += (dx - mean[:, None] - x * along[:, None]) * rstd[:, None]

        dO = tl.where((d < D)[None, :], dO, 0.0)
        store_tile(head_of(dO_out, b, h, sample, D), dO, start, N, H * D, BLOCK_M, D, BLOCK_D)
        lse_row = (b.to(tl.int64) * H + h) * N + row
        found = tl.sum(dO * O, 1)
        if DLSE:
            found -= tl.load(dlse + lse_row, mask=row < N, other=0.0)
        tl.store(delta + lse_row, found, mask=row < N)

    part = tl.program_id(0)
    index = f[:, None] * D + d[None, :]
    inside = (f < D // 2)[:, None] & (d < D)[None, :]
    tl.store(du_x + part * (D // 2 * D) + index, product, mask=inside)
    tl.store(dfc1_bias + part * (D // 2) + f, db1, mask=f < D // 2)
    tl.store(dfc2_weight + part * (D // 2) + f, dw2, mask=f < D // 2)
    tl.store(dfc2_bias + part, db2)
