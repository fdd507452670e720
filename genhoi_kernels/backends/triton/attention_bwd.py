"""Attention backward: docs/op.md, "Backward". Two kernels, no atomics.

    P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta)
    dV = P^T dO;  dK = scale dS^T Q;  dbias = sum dS    (gradient_of_keys: one program a key block)
    dQ = scale dS K                                     (gradient_of_queries: one a query tile)

Queries and keys come rotated, and so do their gradients leave.
"""

import triton
import triton.language as tl

from genhoi_kernels.backends.triton.common import (
    flags_of_tile,
    head_of,
    load_block,
    load_tile,
    store_tile,
)

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def probabilities(s, lse, factor, bias, BIAS: tl.constexpr, EXACT: tl.constexpr):
    """P = exp(S - L); factor is scale, times log2 e unless EXACT; a bias of -inf makes it 0.

    EXACT subtracts before it turns to powers of two: an L of 20 times log2 e is off by 1e-6.
    """
    if EXACT:
        p = tl.exp2((s * factor + bias - lse) * LOG2_E)
    else:
        p = tl.exp2(s * factor + (bias - lse) * LOG2_E)
    if BIAS:
        p = tl.where(bias == float("-inf"), 0.0, p)
    return p


@triton.jit(do_not_specialize=["H", "N", "NK", "bits_b", "tile_bits_b"])
def gradient_of_keys(
    Q,
    K,
    V,
    dO,
    Q_blocks,
    dO_blocks,
    lse,
    delta,
    dK,
    dV,
    bits,
    tile_bits,
    block_starts,
    block_ends,
    block_segments,
    ref_bias,
    dbias,
    q_b,
    q_n,
    q_h,
    k_b,
    k_n,
    k_h,
    v_b,
    v_n,
    v_h,
    bits_b,
    tile_bits_b,
    H,
    N,
    NK,
    scale,
    factor,
    SAMPLES: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    REFERENCES: tl.constexpr,
    MASK: tl.constexpr,
    BIAS: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dK, dV of BLOCK_N keys of one head, of the video or (REFERENCES) of one segment.

    Q_blocks, dO_blocks: descriptors of Q and dO ``[B, H, N, D]``, or None (tiles.py, load_block).

    A reference that SAMPLES samples share gets the sum over them, in order.
    """
    block, b_key, h = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
    if REFERENCES:
        start, end = tl.load(block_starts + block), tl.load(block_ends + block)
        segment = tl.load(block_segments + block)
    else:
        start, end = block * BLOCK_N, NK
        segment = 0
    bias = tl.load(ref_bias + segment) if BIAS else 0.0
    k = load_tile(head_of(K, b_key, h, k_b, k_h), start, end, k_n, True, BLOCK_N, D, BLOCK_D)
    v = load_tile(head_of(V, b_key, h, v_b, v_h), start, end, v_n, True, BLOCK_N, D, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    ds_sum = tl.zeros((BLOCK_N,), tl.float32)

    for sample in range(0, SAMPLES):
        b = b_key + sample
        Q_head, dO_head = head_of(Q, b, h, q_b, q_h), head_of(dO, b, h, N.to(tl.int64) * H * D, D)
        lse_head = (b.to(tl.int64) * H + h) * N
        for i in range(0, N, BLOCK_M):
            flags = 1
            if MASK:
                flags = flags_of_tile(tile_bits + b * tile_bits_b, i, N, BLOCK_M) >> segment & 1
            if flags != 0:
                row = i + tl.arange(0, BLOCK_M)
                q = load_block(Q_head, Q_blocks, b, h, i, N, q_n, True, BLOCK_M, D, BLOCK_D)
                do = load_block(dO_head, dO_blocks, b, h, i, N, H * D, True, BLOCK_M, D, BLOCK_D)
                L = tl.load(lse + lse_head + row, mask=row < N, other=float("inf"))
                delta_row = tl.load(delta + lse_head + row, mask=row < N, other=0.0)
                if MASK:
                    row_bits = tl.load(bits + b.to(tl.int64) * bits_b + row, mask=row < N, other=0)
                    seen = (row_bits >> segment & 1) != 0
                    q, do = tl.where(seen[:, None], q, 0.0), tl.where(seen[:, None], do, 0.0)

                s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
                p = probabilities(s, L[None, :], factor, bias, BIAS, EXACT)
                dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
                ds = p * (dp - delta_row[None, :])
                if MASK:
                    p, ds = tl.where(seen[None, :], p, 0.0), tl.where(seen[None, :], ds, 0.0)
                dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
                if BIAS:
                    ds_sum += tl.sum(ds, 1)

    if REFERENCES:
        rows = end
    else:
        rows = NK
    sample = NK.to(tl.int64) * H * D
    store_tile(
        head_of(dK, b_key, h, sample, D), dk * scale, start, rows, H * D, BLOCK_N, D, BLOCK_D
    )
    store_tile(head_of(dV, b_key, h, sample, D), dv, start, rows, H * D, BLOCK_N, D, BLOCK_D)
    if BIAS:
        there = start + tl.arange(0, BLOCK_N) < end
        total = tl.sum(tl.where(there, ds_sum, 0.0), 0)
        tl.store(dbias + tl.program_id(1) * tl.num_programs(0) + block, total)


@triton.jit
def query_step(
    q,
    do,
    k,
    v,
    L,
    delta_row,
    keys,
    bias,
    dq,
    factor,
    CHECK_KEYS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dQ with one more block of keys, of which ``keys`` exist (looked at if CHECK_KEYS)."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    p = probabilities(s, L[:, None], factor, bias, BIAS, EXACT)
    if CHECK_KEYS:
        p = tl.where((tl.arange(0, BLOCK_N) < keys)[None, :], p, 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - delta_row[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["H", "N", "NK", "R", "bits_b", "tile_bits_b"])
def gradient_of_queries(
    Q,
    K,
    V,
    K_blocks,
    V_blocks,
    K_ref,
    V_ref,
    dO,
    lse,
    delta,
    dQ,
    bits,
    tile_bits,
    segments,
    ref_bias,
    q_b,
    q_n,
    q_h,
    k_b,
    k_n,
    k_h,
    v_b,
    v_n,
    v_h,
    k_ref_b,
    k_ref_n,
    k_ref_h,
    v_ref_b,
    v_ref_n,
    v_ref_h,
    bits_b,
    tile_bits_b,
    H,
    N,
    NK,
    R,
    scale,
    factor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    REFERENCES: tl.constexpr,
    MASK: tl.constexpr,
    BIAS: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dQ of BLOCK_M rows of one head, over the same keys in the same order as forward.

    K_blocks, V_blocks: descriptors of K and V ``[B, H, Nk, D]``, or None (tiles.py, load_block).
    """
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    row, sample = start + tl.arange(0, BLOCK_M), N.to(tl.int64) * H * D
    q = load_tile(head_of(Q, b, h, q_b, q_h), start, N, q_n, True, BLOCK_M, D, BLOCK_D)
    do = load_tile(head_of(dO, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    lse_row = (b.to(tl.int64) * H + h) * N + row
    L = tl.load(lse + lse_row, mask=row < N, other=float("inf"))
    delta_row = tl.load(delta + lse_row, mask=row < N, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    K, V = head_of(K, b, h, k_b, k_h), head_of(V, b, h, v_b, v_h)
    whole = NK // BLOCK_N * BLOCK_N
    for j in range(0, whole, BLOCK_N):
        k = load_block(K, K_blocks, b, h, j, NK, k_n, False, BLOCK_N, D, BLOCK_D)
        v = load_block(V, V_blocks, b, h, j, NK, v_n, False, BLOCK_N, D, BLOCK_D)
        dq = query_step(
            q,
            do,
            k,
            v,
            L,
            delta_row,
            BLOCK_N,
            0.0,
            dq,
            factor,
            False,
            False,
            BLOCK_N,
            EXACT,
            PRECISION,
        )
    for j in tl.range(whole, NK, BLOCK_R, num_stages=1):
        k = load_tile(K, j, NK, k_n, True, BLOCK_R, D, BLOCK_D)
        v = load_tile(V, j, NK, v_n, True, BLOCK_R, D, BLOCK_D)
        dq = query_step(
            q,
            do,
            k,
            v,
            L,
            delta_row,
            NK - j,
            0.0,
            dq,
            factor,
            True,
            False,
            BLOCK_R,
            EXACT,
            PRECISION,
        )

    if REFERENCES:
        K_ref = head_of(K_ref, b, h, k_ref_b, k_ref_h)
        V_ref = head_of(V_ref, b, h, v_ref_b, v_ref_h)
        if MASK:
            flags = flags_of_tile(tile_bits + b * tile_bits_b, start, N, BLOCK_M)
        for r in range(0, R):
            first, last = tl.load(segments + r), tl.load(segments + r + 1)
            if MASK:
                last = tl.where((flags >> r) & 1 != 0, last, first)
                row_bits = tl.load(bits + b.to(tl.int64) * bits_b + row, mask=row < N, other=0)
                seen = (row_bits >> r) & 1 != 0
            bias = tl.load(ref_bias + r) if BIAS else 0.0
            for j in tl.range(first, last, BLOCK_R, num_stages=1):
                k = load_tile(K_ref, j, last, k_ref_n, True, BLOCK_R, D, BLOCK_D)
                v = load_tile(V_ref, j, last, v_ref_n, True, BLOCK_R, D, BLOCK_D)
                dq_new = query_step(
                    q, do, k, v, L, delta_row, last - j, bias, dq, factor, True, BIAS, BLOCK_R,
                    EXACT, PRECISION,
                )  # fmt: skip
                dq = tl.where(seen[:, None], dq_new, dq) if MASK else dq_new
    store_tile(head_of(dQ, b, h, sample, D), dq * scale, start, N, H * D, BLOCK_M, D, BLOCK_D)
