"""Attention in two passes of a FlashAttention: docs/op.md, "The flash backend".

One call goes over the video's keys with all rows, one more per reference with the rows that see
any. A call without a row or a key is left out. Where samples share the references, the gathered
rows of all samples are the rows of one sample: nothing is shown twice, and gradients of the
references are summed inside the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from genhoi_kernels.backends.flash import merge
from genhoi_kernels.backends.flash.adapter import FlashAttention
from genhoi_kernels.backends.triton.arguments import has_references
from genhoi_kernels.backends.triton.attention_bwd_preprocess import preprocess
from genhoi_kernels.backends.triton.launch import ceil_div
from genhoi_kernels.backends.triton.norm_rope import rotate_inputs, wanted_gradients
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors, InputGrads


@dataclass(frozen=True)
class Gathered:
    """The rows that see a reference, in groups that share keys.

    groups: 1 where samples share the references, else B. count: slots of a group. rows
    ``[groups, count]`` int64: which of the B N rows a slot holds; None: all of them, in order. A
    group with fewer rows than slots is filled with rows that see nothing.
    """

    groups: int
    count: int
    rows: Tensor | None

    def of(self, x: Tensor) -> Tensor:
        """Gather x ``[B, N, ...]`` to ``[groups, count, ...]``."""
        if self.rows is None:
            return x.reshape(self.groups, self.count, *x.shape[2:])
        flat = x.flatten(0, 1).index_select(0, self.rows.flatten())
        return flat.view(self.groups, self.count, *x.shape[2:])

    def add_to(self, x: Tensor, gathered: Tensor) -> Tensor:
        """Add ``[groups, count, ...]`` to x ``[B, N, ...]``, contiguous, at the rows."""
        if self.rows is None:
            return (x + gathered.view(x.shape)).to(x.dtype)
        flat, rows = x.flatten(0, 1), self.rows.flatten()
        total = flat.index_select(0, rows) + gathered.flatten(0, 1)
        # Every row occurs once: the order of writing does not matter.
        return flat.index_copy(0, rows, total.to(x.dtype)).view(x.shape)


@dataclass(frozen=True)
class Segment:
    """One reference that has tokens: its number (its bit), and its keys and values."""

    number: int
    tokens: slice
    k: Tensor
    v: Tensor


def gather(call: AttentionCall, t: AttentionTensors, multiple: int) -> Gathered | None:
    """Choose the rows that attend to the references; None for none.

    Slots come in multiples of ``multiple``, as far as there are rows to fill them with.
    Synchronises with the host if the caller gave a mask that is no MaskGate.
    """
    if not has_references(t) or 0 in t.q.shape:
        return None
    assert t.k_ref is not None
    batch, n = t.q.shape[:2]
    groups = t.k_ref.shape[0]
    everything = Gathered(groups, batch * n // groups, None)
    if t.bits is None:
        return everything
    gate = t.mask_gate or MaskGate.build(low_bits(call, t.bits))
    counts = gate.row_counts.tolist() * (batch // len(gate.row_counts))
    if not any(counts):
        return None
    if all(count == n for count in counts):
        return everything
    first = torch.arange(batch, device=t.q.device)[:, None] * n
    rows = gate.rows.long() + first  # of each sample those that see anything, then the others
    if groups > 1:
        slots = min(ceil_div(max(counts), multiple) * multiple, n)
        return Gathered(groups, slots, rows[:, :slots].contiguous())
    slots = min(ceil_div(sum(counts), multiple) * multiple, batch * n)
    seeing = [rows[b, :count] for b, count in enumerate(counts)]
    blind = [rows[b, count:] for b, count in enumerate(counts)]
    return Gathered(1, slots, torch.cat(seeing + blind)[None, :slots].contiguous())


def low_bits(call: AttentionCall, bits: Tensor) -> Tensor:
    """Drop the bits above those of the call's references."""
    references = len(call.ref_lengths)
    return bits if references >= 32 else bits & ((1 << references) - 1)


def segments(call: AttentionCall, t: AttentionTensors) -> Iterator[Segment]:
    """Go through the references that have tokens."""
    assert t.k_ref is not None and t.v_ref is not None
    first = 0
    for number, length in enumerate(call.ref_lengths):
        tokens = slice(first, first + length)
        first += length
        if length:
            yield Segment(number, tokens, t.k_ref[:, tokens], t.v_ref[:, tokens])


def aligned(x: Tensor) -> Tensor:
    """Make x ``[B, tokens, H, D]`` readable by all: 16 bytes at a time, no zero stride."""
    whole = all(stride % 8 == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    shown_again = x.shape[0] > 1 and x.stride(0) == 0
    return x if whole and not shown_again and x.stride(-1) == 1 else x.contiguous()


def call_forward(
    flash: FlashAttention, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute output ``[B, rows, H, D]`` and lse ``[B, H, rows]``, contiguous; no key: 0, -inf."""
    if 0 in q.shape or 0 in k.shape:
        batch, rows, heads, _ = q.shape
        lse = torch.full((batch, heads, rows), -torch.inf, dtype=torch.float32, device=q.device)
        return q.new_zeros(q.shape), lse
    out, lse = flash.forward(aligned(q), aligned(k), aligned(v), scale)
    return out.contiguous(), lse.contiguous()


def attention_forward(
    call: AttentionCall, t: AttentionTensors, flash: FlashAttention, *, arch: str
) -> AttentionResult:
    """Run the op's forward pass."""
    rotated = rotate_inputs(call, t)
    o, lse = call_forward(flash, rotated.q, rotated.k, rotated.v, call.scale)
    rows = gather(call, t, flash.row_multiple)
    if rows is not None:
        q = rows.of(rotated.q)
        parts = list(segments(call, rotated))
        results = [call_forward(flash, q, part.k, part.v, call.scale) for part in parts]
        merge.merge_launch(
            o,
            lse,
            part_out=_stacked([part_out for part_out, _ in results]),
            part_lse=_stacked([part_lse for _, part_lse in results]),
            rows=rows.rows,
            bits=None if t.bits is None else t.bits.contiguous(),
            ref_bias=t.ref_bias,
            segments=tuple(part.number for part in parts),
        ).run()
    return merge.apply_gate(call, t, o, lse, arch=arch)


def _stacked(parts: list[Tensor]) -> Tensor:
    """Put one after another; a single one is not copied."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


class Upstream(NamedTuple):
    """What a backward pass is given of the whole attention.

    do ``[B, N, H, D]``: gradient of the ungated output o; lse ``[B, H, N]``; delta: rows' do . o.
    """

    do: Tensor
    o: Tensor
    lse: Tensor
    delta: Tensor


def attention_backward(
    call: AttentionCall,
    t: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
    flash: FlashAttention,
    *,
    arch: str,
) -> InputGrads:
    """Compute the op's gradients that are wanted, and None for the others.

    o: the attention before the gate. No gradient reaches lse. A FlashAttention gives dq, dk and dv
    at once: it is called if one of them is wanted. Every call is given the whole attention's output
    and lse, so that its probabilities and its delta are the whole attention's.
    """
    assert grads.lse is None
    wanted = call.wanted
    of_video = wanted.q or wanted.k or wanted.v
    of_references = _references_wanted(call, t)
    gradients: dict[str, Tensor | GateWeights | None] = dict.fromkeys(wanted._fields)
    if of_video or of_references or (wanted.gate and t.gate is not None):
        do, delta, gradients["gate"] = preprocess(call, t, o, grads, arch=arch)
    if of_video or of_references:
        rotated = rotate_inputs(call, t, k=of_video, k_ref=of_references or wanted.q)
    if of_references:
        gradients |= ReferenceGrads.zeros(t)._asdict()
    dq = None
    if of_video:
        dq, gradients["k"], gradients["v"] = call_backward(
            flash, rotated.q, rotated.k, rotated.v, do=do, o=o, lse=lse, scale=call.scale
        )
    rows = gather(call, t, flash.row_multiple) if of_references or wanted.q else None
    if rows is not None:
        upstream = Upstream(do, o, lse, delta)
        ref_dq, references = reference_gradients(call, rotated, rows, flash, upstream)
        gradients |= references._asdict()
        dq = dq if dq is None else rows.add_to(dq, ref_dq)
    gradients["q"] = dq
    return wanted_gradients(call, gradients)


def _references_wanted(call: AttentionCall, t: AttentionTensors) -> bool:
    """Say whether a gradient of the references is wanted."""
    wanted = call.wanted
    bias = wanted.ref_bias and t.ref_bias is not None
    return t.k_ref is not None and (wanted.k_ref or wanted.v_ref or bias)


def call_backward(
    flash: FlashAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    do: Tensor,
    o: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dq, dk and dv of one call, contiguous."""
    if 0 in q.shape or 0 in k.shape:
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    do, q, k, v, o = (aligned(x) for x in (do, q, k, v, o))
    dq, dk, dv = flash.backward(do, q, k, v, o, lse.contiguous(), scale)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


class ReferenceGrads(NamedTuple):
    """Gradients of the references; k_ref's is rotated as k_ref is."""

    k_ref: Tensor
    v_ref: Tensor
    ref_bias: Tensor | None

    @staticmethod
    def zeros(t: AttentionTensors) -> ReferenceGrads:
        """Make zeros, for references that nobody sees."""
        assert t.k_ref is not None and t.v_ref is not None
        bias = None if t.ref_bias is None else torch.zeros_like(t.ref_bias)
        k_ref, v_ref = (x.new_zeros(x.shape) for x in (t.k_ref, t.v_ref))
        return ReferenceGrads(k_ref, v_ref, bias)


def reference_gradients(
    call: AttentionCall,
    t: AttentionTensors,
    rows: Gathered,
    flash: FlashAttention,
    upstream: Upstream,
) -> tuple[Tensor, ReferenceGrads]:
    """Compute what the references add to the gathered rows' dq, and their own gradients."""
    references = ReferenceGrads.zeros(t)
    batch, n = t.q.shape[:2]
    q, do, o = (rows.of(x) for x in (t.q, upstream.do, upstream.o))
    # [groups, count, H]
    lse, delta = (rows.of(x.transpose(1, 2)) for x in (upstream.lse, upstream.delta))
    bits = None if t.bits is None else rows.of(t.bits.expand(batch, n))
    dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for part in segments(call, t):
        sees, takes_part, part_lse = torch.ones_like(lse, dtype=torch.bool), lse != -torch.inf, lse
        if bits is not None:
            sees = ((bits >> part.number) & 1 != 0)[..., None].expand_as(lse)
        if t.ref_bias is not None:
            bias = t.ref_bias[part.number]
            part_lse, takes_part = lse - bias, takes_part & (bias != -torch.inf)
        # Rows that take no part in this call are all zero in it: they add zero to every sum.
        takes_part = takes_part & sees
        part_q, part_do, part_o = (_where(takes_part, x) for x in (q, do, o))
        part_lse = torch.where(takes_part, part_lse, 0.0)
        dq_part, dk, dv = call_backward(
            flash,
            part_q,
            part.k,
            part.v,
            do=part_do,
            o=part_o,
            lse=part_lse.transpose(1, 2),
            scale=call.scale,
        )
        dq += _where(takes_part, dq_part)
        seen = sees.flatten(1).any(1)[:, None, None, None]  # else a NaN that nobody saw gets in
        references.k_ref[:, part.tokens] = torch.where(seen, dk, 0.0)
        references.v_ref[:, part.tokens] = torch.where(seen, dv, 0.0)
        if references.ref_bias is not None and call.wanted.ref_bias:
            # sum_m dS_im = share_i (dO_i . O_i of this part alone - delta_i)
            alone, alone_lse = call_forward(flash, part_q, part.k, part.v, call.scale)
            share = torch.exp(alone_lse.transpose(1, 2) - part_lse)
            dS = share * ((part_do.float() * alone.float()).sum(-1) - delta)
            references.ref_bias[part.number] = torch.where(takes_part, dS, 0.0).sum()
    return dq, references


def _where(rows: Tensor, x: Tensor) -> Tensor:
    """Keep x ``[groups, count, H, D]`` where rows ``[groups, count, H]``, else 0."""
    return torch.where(rows[..., None], x, 0.0)
