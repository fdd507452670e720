"""Attentions over different keys become one, and the flow gate: docs/op.md, "The flash backend".

With O_s, L_s the output and log-sum-exp over the keys of part s, and b_s a reference's bias:

    L = log sum_s exp(L_s + b_s);  O = sum_s exp(L_s + b_s - L) O_s
"""

import triton
import triton.language as tl

from genhoi_kernels.backends.triton.common import head_of, load_tile, store_tile
from genhoi_kernels.backends.triton.flow_gate import gate_logits, sigmoid


# A number that is 1 would become a constant, which has no dtype: none of them is specialized.
@triton.jit(do_not_specialize=["bits_b", "G", "C", "H", "N", "S"])
def merge_references(
    out,
    lse,
    part_out,
    part_lse,
    rows,
    bits,
    segments,
    ref_bias,
    bits_b,
    G,
    C,
    H,
    N,
    S,
    GATHERED: tl.constexpr,
    MASK: tl.constexpr,
    BIAS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Merge the references' parts into out ``[B, N, H, D]`` and lse ``[B, H, N]``, in place.

    part_out ``[S, G, C, H, D]`` and part_lse ``[S, G, H, C]``: slot c of group g belongs to row
    ``rows[g, c]`` of the B N rows (GATHERED), else to row g C + c. segments ``[S]``: each part's
    number, which is its bit and the place of its bias.
    """
    g, h = tl.program_id(1) // H, tl.program_id(1) % H
    slot = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = slot < C
    place = g.to(tl.int64) * C + slot
    row = tl.load(rows + place, mask=there, other=0) if GATHERED else place
    b, n = row // N, row % N
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = there[:, None] & (d < D)
    at_out = ((row * H + h) * D)[:, None] + d
    at_lse = (b * H + h) * N + n
    if MASK:
        row_bits = tl.load(bits + b * bits_b + n, mask=there, other=0)

    o = tl.load(out + at_out, mask=inside, other=0.0)
    L = tl.load(lse + at_lse, mask=there, other=float("-inf"))
    acc, m = o.to(tl.float32), L
    l = tl.where(L == float("-inf"), 0.0, 1.0)
    merged = there & False
    for s in range(0, S):
        segment = tl.load(segments + s)
        seen = (row_bits >> segment) & 1 != 0 if MASK else there
        part = tl.cast(s, tl.int64) * G + g
        L_s = tl.load(part_lse + (part * H + h) * C + slot, mask=there, other=float("-inf"))
        if BIAS:
            L_s += tl.load(ref_bias + segment)
        at_part = (((part * C + slot) * H + h) * D)[:, None] + d
        o_s = tl.load(part_out + at_part, mask=inside, other=0.0).to(tl.float32)
        highest = tl.maximum(m, L_s)
        safe = tl.where(highest == float("-inf"), 0.0, highest)
        before, weight = tl.exp(m - safe), tl.exp(L_s - safe)
        # A row that doesn't see the part keeps its bits, come NaN or Inf.
        acc = tl.where(seen[:, None], acc * before[:, None] + o_s * weight[:, None], acc)
        l = tl.where(seen, l * before + weight, l)
        m = tl.where(seen, highest, m)
        merged = merged | seen
    acc *= tl.where(l == 0.0, 0.0, 1.0 / l)[:, None]
    safe = tl.where(m == float("-inf"), 0.0, m)
    tl.store(out + at_out, acc.to(out.dtype.element_ty), mask=inside & merged[:, None])
    tl.store(lse + at_lse, safe + tl.log(l), mask=merged)


@triton.jit(do_not_specialize=["H", "N"])
def flow_gate(
    o,
    out,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    gate_sums,
    H,
    N,
    GATE: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """out = g o (GATE "token"), or gate_sums ``[B, H, tiles]`` of the logits (GATE "sum")."""
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    sample = N.to(tl.int64) * H * D
    tile = load_tile(head_of(o, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    wide = tile.to(tl.float32)
    logits = gate_logits(
        wide, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
        o.dtype.element_ty, PRECISION, D, BLOCK_D, BLOCK_F,
    )  # fmt: skip
    if GATE == "sum":
        row = start + tl.arange(0, BLOCK_M)
        at = (b * H + h).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        tl.store(gate_sums + at, tl.sum(tl.where(row < N, logits, 0.0), 0))
    else:
        gated = wide * sigmoid(logits)[:, None]
        store_tile(head_of(out, b, h, sample, D), gated, start, N, H * D, BLOCK_M, D, BLOCK_D)
