"""dQ: one program a tile of queries, which goes over the keys."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends.triton.arguments import (
    all_strides,
    backward_scale,
    descriptors,
    pipelined_config,
    precision,
    reference_arguments,
    reference_flags,
)
from genhoi_kernels.backends.triton.attention_bwd_common import Upstream, probabilities
from genhoi_kernels.backends.triton.common import (
    head_pointer,
    load_block,
    load_tile,
    load_tile_flags,
    store_tile,
)
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.tuning import autotune
from genhoi_kernels.spec import AttentionCall, AttentionTensors


@triton.jit
def dq_step(
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
    """Add one more block of keys to dQ; ``keys`` of them exist (looked at if CHECK_KEYS)."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    p = probabilities(s, L[:, None], factor, bias, BIAS, EXACT)
    if CHECK_KEYS:
        p = tl.where((tl.arange(0, BLOCK_N) < keys)[None, :], p, 0.0)
    dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - delta_row[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["H", "N", "NK", "R", "bits_b", "tile_bits_b"])
def attention_bwd_dq(
    Q,
    K,
    V,
    K_desc,
    V_desc,
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
    STAGES_R: tl.constexpr,
    REFERENCES: tl.constexpr,
    MASK: tl.constexpr,
    BIAS: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute dQ of BLOCK_M rows of one head, over the keys in the order of attention_fwd.

    K_desc, V_desc: descriptors of K and V ``[B, H, Nk, D]``, or None (common.load_block).
    """
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    row, sample = start + tl.arange(0, BLOCK_M), N.to(tl.int64) * H * D
    q = load_tile(head_pointer(Q, b, h, q_b, q_h), start, N, q_n, True, BLOCK_M, D, BLOCK_D)
    do = load_tile(head_pointer(dO, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    lse_row = (b.to(tl.int64) * H + h) * N + row
    L = tl.load(lse + lse_row, mask=row < N, other=float("inf"))
    delta_row = tl.load(delta + lse_row, mask=row < N, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    K, V = head_pointer(K, b, h, k_b, k_h), head_pointer(V, b, h, v_b, v_h)
    whole = NK // BLOCK_N * BLOCK_N
    for j in range(0, whole, BLOCK_N):
        k = load_block(K, K_desc, b, h, j, NK, k_n, False, BLOCK_N, D, BLOCK_D)
        v = load_block(V, V_desc, b, h, j, NK, v_n, False, BLOCK_N, D, BLOCK_D)
        dq = dq_step(
            q,
            do,
            k,
            v,
            L,
            delta_row,
            keys=BLOCK_N,
            bias=0.0,
            dq=dq,
            factor=factor,
            CHECK_KEYS=False,
            BIAS=False,
            BLOCK_N=BLOCK_N,
            EXACT=EXACT,
            PRECISION=PRECISION,
        )
    for j in tl.range(whole, NK, BLOCK_R, num_stages=1):
        k = load_tile(K, j, NK, k_n, True, BLOCK_R, D, BLOCK_D)
        v = load_tile(V, j, NK, v_n, True, BLOCK_R, D, BLOCK_D)
        dq = dq_step(
            q,
            do,
            k,
            v,
            L,
            delta_row,
            keys=NK - j,
            bias=0.0,
            dq=dq,
            factor=factor,
            CHECK_KEYS=True,
            BIAS=False,
            BLOCK_N=BLOCK_R,
            EXACT=EXACT,
            PRECISION=PRECISION,
        )

    if REFERENCES:
        K_ref = head_pointer(K_ref, b, h, k_ref_b, k_ref_h)
        V_ref = head_pointer(V_ref, b, h, v_ref_b, v_ref_h)
        if MASK:
            flags = load_tile_flags(tile_bits + b * tile_bits_b, start, N, BLOCK_M)
        for r in range(0, R):
            first, last = tl.load(segments + r), tl.load(segments + r + 1)
            if MASK:
                last = tl.where((flags >> r) & 1 != 0, last, first)
                row_bits = tl.load(bits + b.to(tl.int64) * bits_b + row, mask=row < N, other=0)
                seen = (row_bits >> r) & 1 != 0
            bias = tl.load(ref_bias + r) if BIAS else 0.0
            for j in tl.range(first, last, BLOCK_R, num_stages=STAGES_R):
                k = load_tile(K_ref, j, last, k_ref_n, True, BLOCK_R, D, BLOCK_D)
                v = load_tile(V_ref, j, last, v_ref_n, True, BLOCK_R, D, BLOCK_D)
                dq_new = dq_step(
                    q,
                    do,
                    k,
                    v,
                    L,
                    delta_row,
                    keys=last - j,
                    bias=bias,
                    dq=dq,
                    factor=factor,
                    CHECK_KEYS=True,
                    BIAS=BIAS,
                    BLOCK_N=BLOCK_R,
                    EXACT=EXACT,
                    PRECISION=PRECISION,
                )
                dq = tl.where(seen[:, None], dq_new, dq) if MASK else dq_new
    store_tile(head_pointer(dQ, b, h, sample, D), dq * scale, start, N, H * D, BLOCK_M, D, BLOCK_D)


def query_gradient(
    call: AttentionCall, t: AttentionTensors, upstream: Upstream, *, arch: str
) -> Tensor:
    """Compute dQ, rotated as q is."""
    dq = t.q.new_empty(t.q.shape)
    launch = partial(dq_launch, call, t, upstream, dq, arch=arch)
    autotune.tune_first_call("queries", t.q, launch, arch=arch)
    launch().run()
    return dq


def dq_launch(
    call: AttentionCall, t: AttentionTensors, upstream: Upstream, dq: Tensor, *, arch: str
) -> Launch:
    """Make the launch of ``attention_bwd_dq``."""
    batch, rows, heads, head_dim = t.q.shape
    config = pipelined_config("queries", (t.k, t.v), arch=arch)
    return Launch(
        kernel=attention_bwd_dq,
        grid=(ceil_div(rows, config.block_m), batch * heads),
        arguments={
            "Q": t.q,
            "K": t.k,
            "V": t.v,
            **descriptors(config, config.block_n, K=t.k, V=t.v),
            **reference_arguments(call, t),
            "dO": upstream.do,
            "lse": upstream.lse,
            "delta": upstream.delta,
            "dQ": dq,
            **all_strides(t),
            "H": heads,
            "N": rows,
            "NK": t.k.shape[1],
            "R": len(call.ref_lengths),
            **backward_scale(call),
        },
        constants={
            "D": head_dim,
            "BLOCK_D": power_of_two(head_dim),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_R": config.block_r,
            "STAGES_R": config.stages_r,
            **reference_flags(t),
            "EXACT": call.dtype == torch.float32,
            "PRECISION": precision(arch, call.dtype),
        },
        config=config,
    )
