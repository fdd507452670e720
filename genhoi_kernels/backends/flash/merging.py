"""Launches of the kernels that merge and gate what FlashAttention computed (merge.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from genhoi_kernels.backends.device_tables import host_integers
from genhoi_kernels.backends.flash import merge
from genhoi_kernels.backends.triton.attention import precision
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.spec import AttentionCall, AttentionTensors

BLOCK_M = 64
_WHY = "one pass over memory, nothing to reuse; nothing was tuned"


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
    """Of merge.merge_references; tensors are contiguous: rows ``[G, C]``, bits ``[B or 1, N]``."""
    _, n, heads, head_dim = out.shape
    _, groups, count = part_out.shape[:3]
    return Launch(
        kernel=merge.merge_references,
        grid=(ceil_div(count, BLOCK_M), groups * heads),
        arguments=dict(
            out=out, lse=lse, part_out=part_out, part_lse=part_lse, rows=rows, bits=bits,
            segments=host_integers(segments, out.device), ref_bias=ref_bias,
            bits_b=0 if bits is None or bits.shape[0] == 1 else n,
            G=groups, C=count, H=heads, N=n, S=len(segments),
        ),
        constants=dict(
            GATHERED=rows is not None, MASK=bits is not None, BIAS=ref_bias is not None,
            D=head_dim, BLOCK_D=power_of_two(head_dim), BLOCK_M=BLOCK_M,
        ),
        config=_config(head_dim),
    )  # fmt: skip


def gate_launch(
    call: AttentionCall,
    t: AttentionTensors,
    o: Tensor,
    out: Tensor | None,
    sums: Tensor | None,
    *,
    arch: str,
) -> Launch:
    """Of merge.flow_gate; o and out ``[B, N, H, D]`` are contiguous, and may be one tensor."""
    assert t.gate is not None
    batch, n, heads, head_dim = o.shape
    return Launch(
        kernel=merge.flow_gate,
        grid=(ceil_div(n, BLOCK_M), batch * heads),
        arguments=dict(
            o=o, out=out, **{name: w.contiguous() for name, w in t.gate._asdict().items()},
            gate_sums=sums, H=heads, N=n,
        ),
        constants=dict(
            GATE=call.gate_mode, PRECISION=precision(arch, call.dtype), D=head_dim,
            BLOCK_D=power_of_two(head_dim), BLOCK_F=power_of_two(head_dim // 2), BLOCK_M=BLOCK_M,
        ),
        config=_config(head_dim),
    )  # fmt: skip


def _config(head_dim: int) -> Config:
    block_d = power_of_two(head_dim)
    warps = min(max(block_d // 16, 4), 16)  # as few as hold a tile in registers
    return Config(BLOCK_M, block_d, 0, warps, 1, how=_WHY)


def gated_result(
    call: AttentionCall, t: AttentionTensors, o: Tensor, lse: Tensor, *, arch: str
) -> AttentionResult:
    """The op's result from the attention o before the gate; o is overwritten if nobody needs it."""
    batch, n, heads, _ = o.shape
    no_sum = torch.zeros((batch, heads), dtype=torch.float32, device=o.device)
    if call.gate_mode == "none":
        return AttentionResult(o, lse, no_sum, o.new_empty(0))
    if call.gate_mode == "sum":
        sums = torch.empty(
            (batch, heads, ceil_div(n, BLOCK_M)), dtype=torch.float32, device=o.device
        )
        gate_launch(call, t, o, None, sums, arch=arch).run()
        return AttentionResult(o, lse, sums.sum(-1), o.new_empty(0))
    out = torch.empty_like(o) if call.needs_grad else o
    gate_launch(call, t, o, out, None, arch=arch).run()
    return AttentionResult(out, lse, no_sum, o if call.needs_grad else o.new_empty(0))
