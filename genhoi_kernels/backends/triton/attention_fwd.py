"""Attention forward: docs/op.md, "Forward". One program: BLOCK_M query rows of one head.

Read from top to bottom a tile is loaded, multiplied with the video's keys, then with those of the
references that one of its rows sees, divided by its total, gated and stored. Queries and keys come
rotated (norm_rope.py). Logits are in units of log2 e, so that exp2 makes probabilities of them.
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
from genhoi_kernels.backends.triton.flow_gate import gate_logits, sigmoid

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def softmax_step(
    q,
    k,
    v,
    keys,
    bias,
    m,
    l,
    acc,
    factor,
    CHECK_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys: the rows' new highest logit m, total l and sum of values acc.

    keys: how many of the block exist, looked at if CHECK_KEYS. bias: added to every logit.
    """
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CHECK_KEYS:
        s = tl.where((tl.arange(0, BLOCK_N) < keys)[None, :], s, float("-inf"))
    highest = tl.maximum(m, tl.max(s, 1) * factor + bias)
    shift = highest
    if CHECK_KEYS:  # a bias of -inf, before any key
        shift = tl.where(highest == float("-inf"), 0.0, highest)
    p = tl.exp2(s * factor - (shift - bias)[:, None])
    rescale = tl.exp2(m - shift)
    l = l * rescale + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
    return highest, l, acc


@triton.jit(do_not_specialize=["H", "N", "NK", "R", "bits_b", "tile_bits_b"])
def attention_forward(
    Q,
    K,
    V,
    K_blocks,
    V_blocks,
    K_ref,
    V_ref,
    bits,
    tile_bits,
    segments,
    ref_bias,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    out,
    ungated,
    lse,
    gate_sums,
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
    factor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    REFERENCES: tl.constexpr,
    MASK: tl.constexpr,
    BIAS: tl.constexpr,
    GATE: tl.constexpr,
    KEEP_UNGATED: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out, lse and what else is asked for; ``factor`` is |scale| log2 e, NEGATIVE the scale's sign.

    K_blocks, V_blocks: descriptors of K and V ``[B, H, Nk, D]``, or None (tiles.py, load_block).
    segments ``[R + 1]``: where each reference starts and ends among the reference tokens.
    gate_sums ``[B, H, tiles]``: the sum of each tile's gate logits (GATE "sum").
    """
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    row = start + tl.arange(0, BLOCK_M)
    q = load_tile(head_of(Q, b, h, q_b, q_h), start, N, q_n, True, BLOCK_M, D, BLOCK_D)
    if NEGATIVE:
        q = -q
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    # The video's keys: whole blocks, then what is left.
    K, V = head_of(K, b, h, k_b, k_h), head_of(V, b, h, v_b, v_h)
    whole = NK // BLOCK_N * BLOCK_N
    for j in range(0, whole, BLOCK_N):
        k = load_block(K, K_blocks, b, h, j, NK, k_n, False, BLOCK_N, D, BLOCK_D)
        v = load_block(V, V_blocks, b, h, j, NK, v_n, False, BLOCK_N, D, BLOCK_D)
        m, l, acc = softmax_step(
            q, k, v, BLOCK_N, 0.0, m, l, acc, factor, False, BLOCK_N, PRECISION
        )
    for j in tl.range(whole, NK, BLOCK_R, num_stages=1):
        k = load_tile(K, j, NK, k_n, True, BLOCK_R, D, BLOCK_D)
        v = load_tile(V, j, NK, v_n, True, BLOCK_R, D, BLOCK_D)
        m, l, acc = softmax_step(q, k, v, NK - j, 0.0, m, l, acc, factor, True, BLOCK_R, PRECISION)

    # The references: none of them for a tile whose rows all see nothing.
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
            bias = tl.load(ref_bias + r) * 1.4426950408889634 if BIAS else 0.0
            for j in tl.range(first, last, BLOCK_R, num_stages=1):
                k = load_tile(K_ref, j, last, k_ref_n, True, BLOCK_R, D, BLOCK_D)
                v = load_tile(V_ref, j, last, v_ref_n, True, BLOCK_R, D, BLOCK_D)
                m_new, l_new, acc_new = softmax_step(
                    q, k, v, last - j, bias, m, l, acc, factor, True, BLOCK_R, PRECISION
                )
                if MASK:  # a row that doesn't see the segment keeps its bits, come NaN or Inf
                    m, l = tl.where(seen, m_new, m), tl.where(seen, l_new, l)
                    acc = tl.where(seen[:, None], acc_new, acc)
                else:
                    m, l, acc = m_new, l_new, acc_new

    # A row without any key: O = 0, L = -inf.
    o = acc * tl.where(l == 0.0, 0.0, 1.0 / l)[:, None]
    tl.store(lse + (b.to(tl.int64) * H + h) * N + row, (m + tl.log2(l)) * LN2, mask=row < N)

    if KEEP_UNGATED:
        U = head_of(ungated, b, h, N.to(tl.int64) * H * D, D)
        store_tile(U, o, start, N, H * D, BLOCK_M, D, BLOCK_D)

    # The flow gate.
    if GATE != "none":
        logits = gate_logits(
            o, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
            Q.dtype.element_ty, PRECISION, D, BLOCK_D, BLOCK_F,
        )  # fmt: skip
    if GATE == "sum":
        tile = (b * H + h).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        tl.store(gate_sums + tile, tl.sum(tl.where(row < N, logits, 0.0), 0))
    if GATE == "token":
        o *= sigmoid(logits)[:, None]
    O = head_of(out, b, h, N.to(tl.int64) * H * D, D)
    store_tile(O, o, start, N, H * D, BLOCK_M, D, BLOCK_D)
