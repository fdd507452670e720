"""Merging attentions over different keys, and the flow gate: docs/op.md, "The flash backend".

With O_s, L_s the output and log-sum-exp over the keys of part s, and b_s a reference's bias:

    L = log sum_s exp(L_s + b_s);  O = sum_s exp(L_s + b_s - L) O_s
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends.device_tables import host_integers
from genhoi_kernels.backends.triton.arguments import gate_arguments, precision
from genhoi_kernels.backends.triton.common import head_pointer, load_tile, store_tile
from genhoi_kernels.backends.triton.flow_gate import gate_logits, sigmoid
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.spec import AttentionCall, AttentionTensors

BLOCK_M = 64
"""Rows of a program."""


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
    valid = slot < C
    place = g.to(tl.int64) * C + slot
    row = tl.load(rows + place, mask=valid, other=0) if GATHERED else place
    b, n = row // N, row % N
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = valid[:, None] & (d < D)
    at_out = ((row * H + h) * D)[:, None] + d
    at_lse = (b * H + h) * N + n
    if MASK:
        row_bits = tl.load(bits + b * bits_b + n, mask=valid, other=0)

    o = tl.load(out + at_out, mask=inside, other=0.0)
    L = tl.load(lse + at_lse, mask=valid, other=float("-inf"))
    acc_o, row_max = o.to(tl.float32), L
    row_sum = tl.where(L == float("-inf"), 0.0, 1.0)
    merged = valid & False
    for s in range(0, S):
        segment = tl.load(segments + s)
        seen = (row_bits >> segment) & 1 != 0 if MASK else valid
        part = tl.cast(s, tl.int64) * G + g
        L_s = tl.load(part_lse + (part * H + h) * C + slot, mask=valid, other=float("-inf"))
        if BIAS:
            L_s += tl.load(ref_bias + segment)
        at_part = (((part * C + slot) * H + h) * D)[:, None] + d
        o_s = tl.load(part_out + at_part, mask=inside, other=0.0).to(tl.float32)
        row_max_new = tl.maximum(row_max, L_s)
        shift = tl.where(row_max_new == float("-inf"), 0.0, row_max_new)
        rescale, weight = tl.exp(row_max - shift), tl.exp(L_s - shift)
        # A row that doesn't see the part keeps its bits, come NaN or Inf.
        acc_o_new = acc_o * rescale[:, None] + o_s * weight[:, None]
        acc_o = tl.where(seen[:, None], acc_o_new, acc_o)
        row_sum = tl.where(seen, row_sum * rescale + weight, row_sum)
        row_max = tl.where(seen, row_max_new, row_max)
        merged = merged | seen
    acc_o *= tl.where(row_sum == 0.0, 0.0, 1.0 / row_sum)[:, None]
    shift = tl.where(row_max == float("-inf"), 0.0, row_max)
    tl.store(out + at_out, acc_o.to(out.dtype.element_ty), mask=inside & merged[:, None])
    tl.store(lse + at_lse, shift + tl.log(row_sum), mask=merged)


@triton.jit(do_not_specialize=["H", "N"])
def flow_gate_fwd(
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
    """Store out = g o (GATE "token"), or gate_sums ``[B, H, tiles]`` of the logits (GATE "sum")."""
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    sample = N.to(tl.int64) * H * D
    tile = load_tile(head_pointer(o, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    wide = tile.to(tl.float32)
    logits = gate_logits(
        wide,
        norm_weight,
        norm_bias,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        dtype=o.dtype.element_ty,
        PRECISION=PRECISION,
        D=D,
        BLOCK_D=BLOCK_D,
        BLOCK_F=BLOCK_F,
    )
    if GATE == "sum":
        row = start + tl.arange(0, BLOCK_M)
        at = (b * H + h).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        tl.store(gate_sums + at, tl.sum(tl.where(row < N, logits, 0.0), 0))
    else:
        gated = wide * sigmoid(logits)[:, None]
        store_tile(head_pointer(out, b, h, sample, D), gated, start, N, H * D, BLOCK_M, D, BLOCK_D)


def merge_launch(
    out: Tensor,
    lse: Tensor,
    part_out: Tensor,
    part_lse: Tensor,
    *,
    rows: Tensor | None,
    bits: Tensor | None,
    ref_bias: Tensor | None,
    segments: tuple[int, ...],
) -> Launch:
    """Make the launch of ``merge_references``.

    Tensors are contiguous: rows ``[G, C]`` (None: all), bits ``[B or 1, N]``.
    """
    _, n, heads, head_dim = out.shape
    _, groups, slots = part_out.shape[:3]
    return Launch(
        kernel=merge_references,
        grid=(ceil_div(slots, BLOCK_M), groups * heads),
        arguments={
            "out": out,
            "lse": lse,
            "part_out": part_out,
            "part_lse": part_lse,
            "rows": rows,
            "bits": bits,
            "segments": host_integers(segments, out.device),
            "ref_bias": ref_bias,
            "bits_b": 0 if bits is None or bits.shape[0] == 1 else n,
            "G": groups,
            "C": slots,
            "H": heads,
            "N": n,
            "S": len(segments),
        },
        constants={
            "GATHERED": rows is not None,
            "MASK": bits is not None,
            "BIAS": ref_bias is not None,
            "D": head_dim,
            "BLOCK_D": power_of_two(head_dim),
            "BLOCK_M": BLOCK_M,
        },
        config=_config(head_dim),
    )


def gate_launch(
    call: AttentionCall,
    gate: GateWeights,
    *,
    o: Tensor,
    out: Tensor | None,
    gate_sums: Tensor | None,
    arch: str,
) -> Launch:
    """Make the launch of ``flow_gate_fwd``; o and out may be one contiguous tensor."""
    batch, n, heads, head_dim = o.shape
    return Launch(
        kernel=flow_gate_fwd,
        grid=(ceil_div(n, BLOCK_M), batch * heads),
        arguments={
            "o": o,
            "out": out,
            **gate_arguments(gate),
            "gate_sums": gate_sums,
            "H": heads,
            "N": n,
        },
        constants={
            "GATE": call.gate_mode,
            "PRECISION": precision(arch, call.dtype),
            "D": head_dim,
            "BLOCK_D": power_of_two(head_dim),
            "BLOCK_F": power_of_two(head_dim // 2),
            "BLOCK_M": BLOCK_M,
        },
        config=_config(head_dim),
    )


def _config(head_dim: int) -> Config:
    block_d = power_of_two(head_dim)
    warps = min(max(block_d // 16, 4), 16)  # as few as hold a tile in registers
    how = "one pass over memory, nothing to reuse; nothing was tuned"
    return Config(BLOCK_M, block_d, 0, warps, 1, how=how)


def apply_gate(
    call: AttentionCall, t: AttentionTensors, o: Tensor, lse: Tensor, *, arch: str
) -> AttentionResult:
    """Make the op's result of the attention before the gate; o is reused if nobody needs it."""
    batch, n, heads, _ = o.shape
    no_sum = torch.zeros((batch, heads), dtype=torch.float32, device=o.device)
    if t.gate is None:
        return AttentionResult(o, lse, no_sum, ungated=o.new_empty(0))
    if call.gate_mode == "sum":
        tiles = (batch, heads, ceil_div(n, BLOCK_M))
        sums = torch.empty(tiles, dtype=torch.float32, device=o.device)
        gate_launch(call, t.gate, o=o, out=None, gate_sums=sums, arch=arch).run()
        return AttentionResult(o, lse, sums.sum(-1), ungated=o.new_empty(0))
    out = torch.empty_like(o) if call.needs_grad else o
    gate_launch(call, t.gate, o=o, out=out, gate_sums=None, arch=arch).run()
    return AttentionResult(out, lse, no_sum, ungated=o if call.needs_grad else o.new_empty(0))
