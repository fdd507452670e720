"""Attention forward: docs/op.md, "Forward". One program: BLOCK_M query rows of one head.

Read from top to bottom the kernel loads a tile of queries, multiplies it with the video's keys (the
mainloop), then with those of the references that one of its rows sees, and in the epilogue divides
by the row sums, gates and stores. Queries and keys come rotated (norm_rope.py). Logits are in units
of log2 e, so that exp2 makes probabilities of them.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends.triton.arguments import (
    all_strides,
    descriptors,
    gate_arguments,
    pipelined_config,
    precision,
    reference_arguments,
    reference_flags,
)
from genhoi_kernels.backends.triton.common import (
    head_pointer,
    load_block,
    load_tile,
    load_tile_flags,
    store_tile,
)
from genhoi_kernels.backends.triton.flow_gate import gate_logits, sigmoid
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.norm_rope import rotate_inputs
from genhoi_kernels.backends.triton.tuning import autotune, configs
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.spec import AttentionCall, AttentionTensors

LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def softmax_step(
    q,
    k,
    v,
    keys,
    bias,
    row_max,
    row_sum,
    acc_o,
    scale_log2,
    CHECK_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take one block of keys into row_max, row_sum and acc_o, the sum of values.

    keys: how many of the block exist, looked at if CHECK_KEYS. bias: added to every logit.
    """
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if CHECK_KEYS:
        s = tl.where((tl.arange(0, BLOCK_N) < keys)[None, :], s, float("-inf"))
    row_max_new = tl.maximum(row_max, tl.max(s, 1) * scale_log2 + bias)
    shift = row_max_new
    if CHECK_KEYS:  # a bias of -inf, before any key
        shift = tl.where(row_max_new == float("-inf"), 0.0, row_max_new)
    p = tl.exp2(s * scale_log2 - (shift - bias)[:, None])
    rescale = tl.exp2(row_max - shift)
    row_sum = row_sum * rescale + tl.sum(p, 1)
    acc_o = tl.dot(p.to(v.dtype), v, acc_o * rescale[:, None], input_precision=PRECISION)
    return row_max_new, row_sum, acc_o


@triton.jit(do_not_specialize=["H", "N", "NK", "R", "bits_b", "tile_bits_b"])
def attention_fwd(
    Q,
    K,
    V,
    K_desc,
    V_desc,
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
    scale_log2,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    STAGES_R: tl.constexpr,
    REFERENCES: tl.constexpr,
    MASK: tl.constexpr,
    BIAS: tl.constexpr,
    GATE: tl.constexpr,
    KEEP_UNGATED: tl.constexpr,
    NEGATIVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute out, lse and what else is asked for.

    scale_log2: |scale| log2 e; NEGATIVE is the scale's sign. K_desc, V_desc: descriptors of K and V
    ``[B, H, Nk, D]``, or None (common.load_block). segments ``[R + 1]``: where each reference
    starts and ends among the reference tokens. gate_sums ``[B, H, tiles]``: the sum of each tile's
    gate logits (GATE "sum").
    """
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    row = start + tl.arange(0, BLOCK_M)
    q = load_tile(head_pointer(Q, b, h, q_b, q_h), start, N, q_n, True, BLOCK_M, D, BLOCK_D)
    if NEGATIVE:
        q = -q
    row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    acc_o = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)

    # Mainloop over the video's keys: whole blocks, then what is left.
    K, V = head_pointer(K, b, h, k_b, k_h), head_pointer(V, b, h, v_b, v_h)
    whole = NK // BLOCK_N * BLOCK_N
    for j in range(0, whole, BLOCK_N):
        k = load_block(K, K_desc, b, h, j, NK, k_n, False, BLOCK_N, D, BLOCK_D)
        v = load_block(V, V_desc, b, h, j, NK, v_n, False, BLOCK_N, D, BLOCK_D)
        row_max, row_sum, acc_o = softmax_step(
            q,
            k,
            v,
            keys=BLOCK_N,
            bias=0.0,
            row_max=row_max,
            row_sum=row_sum,
            acc_o=acc_o,
            scale_log2=scale_log2,
            CHECK_KEYS=False,
            BLOCK_N=BLOCK_N,
            PRECISION=PRECISION,
        )
    for j in tl.range(whole, NK, BLOCK_R, num_stages=1):
        k = load_tile(K, j, NK, k_n, True, BLOCK_R, D, BLOCK_D)
        v = load_tile(V, j, NK, v_n, True, BLOCK_R, D, BLOCK_D)
        row_max, row_sum, acc_o = softmax_step(
            q,
            k,
            v,
            keys=NK - j,
            bias=0.0,
            row_max=row_max,
            row_sum=row_sum,
            acc_o=acc_o,
            scale_log2=scale_log2,
            CHECK_KEYS=True,
            BLOCK_N=BLOCK_R,
            PRECISION=PRECISION,
        )

    # The references: none of them for a tile whose rows all see nothing.
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
            bias = tl.load(ref_bias + r) * 1.4426950408889634 if BIAS else 0.0
            for j in tl.range(first, last, BLOCK_R, num_stages=STAGES_R):
                k = load_tile(K_ref, j, last, k_ref_n, True, BLOCK_R, D, BLOCK_D)
                v = load_tile(V_ref, j, last, v_ref_n, True, BLOCK_R, D, BLOCK_D)
                row_max_new, row_sum_new, acc_o_new = softmax_step(
                    q,
                    k,
                    v,
                    keys=last - j,
                    bias=bias,
                    row_max=row_max,
                    row_sum=row_sum,
                    acc_o=acc_o,
                    scale_log2=scale_log2,
                    CHECK_KEYS=True,
                    BLOCK_N=BLOCK_R,
                    PRECISION=PRECISION,
                )
                if MASK:  # a row that doesn't see the segment keeps its bits, come NaN or Inf
                    row_max = tl.where(seen, row_max_new, row_max)
                    row_sum = tl.where(seen, row_sum_new, row_sum)
                    acc_o = tl.where(seen[:, None], acc_o_new, acc_o)
                else:
                    row_max, row_sum, acc_o = row_max_new, row_sum_new, acc_o_new

    # Epilogue. A row without any key: O = 0, L = -inf.
    o = acc_o * tl.where(row_sum == 0.0, 0.0, 1.0 / row_sum)[:, None]
    lse_head = lse + (b.to(tl.int64) * H + h) * N
    tl.store(lse_head + row, (row_max + tl.log2(row_sum)) * LN2, mask=row < N)

    if KEEP_UNGATED:
        U = head_pointer(ungated, b, h, N.to(tl.int64) * H * D, D)
        store_tile(U, o, start, N, H * D, BLOCK_M, D, BLOCK_D)

    if GATE != "none":
        logits = gate_logits(
            o,
            norm_weight,
            norm_bias,
            fc1_weight,
            fc1_bias,
            fc2_weight,
            fc2_bias,
            dtype=Q.dtype.element_ty,
            PRECISION=PRECISION,
            D=D,
            BLOCK_D=BLOCK_D,
            BLOCK_F=BLOCK_F,
        )
    if GATE == "sum":
        tile = (b * H + h).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        tl.store(gate_sums + tile, tl.sum(tl.where(row < N, logits, 0.0), 0))
    if GATE == "token":
        o *= sigmoid(logits)[:, None]
    O = head_pointer(out, b, h, N.to(tl.int64) * H * D, D)
    store_tile(O, o, start, N, H * D, BLOCK_M, D, BLOCK_D)


def attention_forward(call: AttentionCall, t: AttentionTensors, *, arch: str) -> AttentionResult:
    """Run the op's forward pass; it is one launch where q, k and k_ref come rotated."""
    t = rotate_inputs(call, t)

    def launch() -> Launch:
        result, gate_sums = empty_result(call, t, arch=arch)
        return forward_launch(call, t, result, gate_sums, arch=arch)

    autotune.tune_first_call("forward", t.q, launch, arch=arch)
    result, gate_sums = empty_result(call, t, arch=arch)
    forward_launch(call, t, result, gate_sums, arch=arch).run()
    if call.gate_mode == "sum":
        result = result._replace(gate_sum=gate_sums.sum(-1))
    return result


def empty_result(
    call: AttentionCall, t: AttentionTensors, *, arch: str
) -> tuple[AttentionResult, Tensor]:
    """Allocate what the kernel writes to, and the gate's sums of each tile ``[B, H, tiles]``."""
    batch, rows, heads, _ = t.q.shape
    config = configs.config_for(arch, "forward", t.q)
    keep = call.gate_mode == "token" and call.needs_grad
    wide = torch.float32
    tiles = ceil_div(rows, config.block_m) if call.gate_mode == "sum" else 0
    result = AttentionResult(
        out=t.q.new_empty(t.q.shape),
        lse=t.q.new_empty((batch, heads, rows), dtype=wide),
        gate_sum=t.q.new_zeros((batch, heads), dtype=wide),
        ungated=t.q.new_empty(t.q.shape if keep else (0,)),
    )
    return result, t.q.new_empty((batch, heads, tiles), dtype=wide)


def forward_launch(
    call: AttentionCall,
    t: AttentionTensors,
    result: AttentionResult,
    gate_sums: Tensor,
    *,
    arch: str,
) -> Launch:
    """Make the launch of ``attention_fwd``; q, k and k_ref are rotated already."""
    batch, rows, heads, head_dim = t.q.shape
    config = pipelined_config("forward", (t.k, t.v), arch=arch)
    keep = call.gate_mode == "token" and call.needs_grad
    return Launch(
        kernel=attention_fwd,
        grid=(ceil_div(rows, config.block_m), batch * heads),
        arguments={
            "Q": t.q,
            "K": t.k,
            "V": t.v,
            **descriptors(config, config.block_n, K=t.k, V=t.v),
            **reference_arguments(call, t),
            **gate_arguments(t.gate),
            "out": result.out,
            "ungated": result.ungated if keep else None,
            "lse": result.lse,
            "gate_sums": gate_sums if call.gate_mode == "sum" else None,
            **all_strides(t),
            "H": heads,
            "N": rows,
            "NK": t.k.shape[1],
            "R": len(call.ref_lengths),
            "scale_log2": abs(call.scale) * math.log2(math.e),
        },
        constants={
            "D": head_dim,
            "BLOCK_D": power_of_two(head_dim),
            "BLOCK_F": config.block_f or power_of_two(head_dim // 2),
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_R": config.block_r,
            "STAGES_R": config.stages_r,
            **reference_flags(t),
            "GATE": call.gate_mode,
            "KEEP_UNGATED": keep,
            "NEGATIVE": call.scale < 0,
            "PRECISION": precision(arch, call.dtype),
        },
        config=config,
    )
