"""Attention in two passes of a FlashAttention: docs/op.md, "The flash backend".

One call goes over the video's keys with all rows, one more per reference with the rows that see
any. A call without a row or a key is left out. Where samples share the references, the gathered
rows of all samples are the rows of one sample: nothing is shown twice, and gradients of the
references are summed inside the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genhoi_kernels.backends.flash import merging
from genhoi_kernels.backends.flash.versions import Flash, Pair, Triple
from genhoi_kernels.backends.triton.attention import has_references, through_gate, with_rotation
from genhoi_kernels.backends.triton.launch import ceil_div
from genhoi_kernels.backends.triton.rotate import rotated
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors


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
        """x ``[B, N, ...]`` as ``[groups, count, ...]``."""
        if self.rows is None:
            return x.reshape(self.groups, self.count, *x.shape[2:])
        flat = x.flatten(0, 1).index_select(0, self.rows.flatten())
        return flat.view(self.groups, self.count, *x.shape[2:])

    def add_to(self, x: Tensor, found: Tensor) -> Tensor:
        """x ``[B, N, ...]``, contiguous, plus found ``[groups, count, ...]`` at its rows."""
        if self.rows is None:
            return (x + found.view(x.shape)).to(x.dtype)
        flat, rows = x.flatten(0, 1), self.rows.flatten()
        total = flat.index_select(0, rows) + found.flatten(0, 1)
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
    """Which rows the references are to be attended by; None for none.

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
    """Bits of the references that there are."""
    references = len(call.ref_lengths)
    return bits if references >= 32 else bits & ((1 << references) - 1)


def segments(call: AttentionCall, t: AttentionTensors) -> Iterator[Segment]:
    """The references that have tokens."""
    assert t.k_ref is not None and t.v_ref is not None
    first = 0
    for number, length in enumerate(call.ref_lengths):
        tokens = slice(first, first + length)
        first += length
        if length:
            yield Segment(number, tokens, t.k_ref[:, tokens], t.v_ref[:, tokens])


def aligned(x: Tensor) -> Tensor:
    """x ``[B, tokens, H, D]`` as all of them read it: 16 bytes at a time, no zero stride."""
    whole = all(stride % 8 == 0 for stride in x.stride()[:3]) and x.data_ptr() % 16 == 0
    shown_again = x.shape[0] > 1 and x.stride(0) == 0
    return x if whole and not shown_again and x.stride(-1) == 1 else x.contiguous()


def attend(flash: Flash, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Pair:
    """Output ``[B, rows, H, D]`` and lse ``[B, H, rows]``, contiguous; no key: 0 and -inf."""
    if 0 in q.shape or 0 in k.shape:
        batch, rows, heads, _ = q.shape
        lse = torch.full((batch, heads, rows), -torch.inf, dtype=torch.float32, device=q.device)
        return q.new_zeros(q.shape), lse
    out, lse = flash.forward(aligned(q), aligned(k), aligned(v), scale)
    return out.contiguous(), lse.contiguous()


def attention(
    call: AttentionCall, t: AttentionTensors, flash: Flash, *, arch: str
) -> AttentionResult:
    """The op's forward pass."""
    turned = with_rotation(call, t)
    o, lse = attend(flash, turned.q, turned.k, turned.v, call.scale)
    rows = gather(call, t, flash.row_multiple)
    if rows is not None:
        q = rows.of(turned.q)
        parts = list(segments(call, turned))
        found = [attend(flash, q, part.k, part.v, call.scale) for part in parts]
        merging.merge_launch(
            o,
            lse,
            *(_stacked([pair[i] for pair in found]) for i in (0, 1)),
            rows=rows.rows,
            bits=None if t.bits is None else t.bits.contiguous(),
            ref_bias=t.ref_bias,
            segments=tuple(part.number for part in parts),
        ).run()
    return merging.gated_result(call, t, o, lse, arch=arch)


def _stacked(parts: list[Tensor]) -> Tensor:
    """One after another; a single one is not copied."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def attention_backward(
    call: AttentionCall,
    t: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
    flash: Flash,
    *,
    arch: str,
) -> AttentionTensors:
    """The op's gradients; o is the attention before the gate. No gradient reaches lse.

    Every call is given the whole attention's output and lse, so that its probabilities and its
    delta are the whole attention's.
    """
    assert grads.lse is None
    dout = torch.zeros_like(o) if grads.out is None else grads.out
    turned = with_rotation(call, t)
    dO, delta, dgate = through_gate(call, t, o, dout, grads, arch=arch)
    dq, dk, dv = _gradients(flash, dO, turned.q, turned.k, turned.v, o, lse, call.scale)
    found = replace(t, q=dq, k=dk, v=dv, bits=None, gate=dgate, mask_gate=None)
    if t.k_ref is not None and t.v_ref is not None:
        bias = None if t.ref_bias is None else torch.zeros_like(t.ref_bias)
        k_ref, v_ref = (x.new_zeros(x.shape) for x in (t.k_ref, t.v_ref))
        found = replace(found, k_ref=k_ref, v_ref=v_ref, ref_bias=bias)
        rows = gather(call, t, flash.row_multiple)
        if rows is not None:
            found = _add_references(call, turned, rows, found, flash, dO, o, lse, delta)
    return replace(
        found,
        q=rotated(found.q, call.rope, inverse=True),
        k=rotated(found.k, call.rope, inverse=True),
        k_ref=None if found.k_ref is None else rotated(found.k_ref, call.ref_rope, inverse=True),
    )


def _gradients(
    flash: Flash,
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> Triple:
    """dq, dk and dv of one call, contiguous."""
    if 0 in q.shape or 0 in k.shape:
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    dq, dk, dv = flash.backward(
        aligned(dout), aligned(q), aligned(k), aligned(v), aligned(out), lse.contiguous(), scale
    )
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


def _add_references(
    call: AttentionCall,
    t: AttentionTensors,
    rows: Gathered,
    found: AttentionTensors,
    flash: Flash,
    dO: Tensor,
    o: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> AttentionTensors:
    """What the references add to ``found``: to dq, and all of dk_ref, dv_ref, dbias."""
    assert found.k_ref is not None and found.v_ref is not None
    q, dO, o = (rows.of(x) for x in (t.q, dO, o))
    lse, delta = (rows.of(x.transpose(1, 2)) for x in (lse, delta))  # [groups, count, H]
    bits = None
    if t.bits is not None:
        bits = rows.of(t.bits.expand(found.q.shape[:2]))
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
        part_q, part_dO, part_o = (_where(takes_part, x) for x in (q, dO, o))
        part_lse = torch.where(takes_part, part_lse, 0.0)
        dq_part, dk, dv = _gradients(
            flash, part_dO, part_q, part.k, part.v, part_o, part_lse.transpose(1, 2), call.scale
        )
        dq += _where(takes_part, dq_part)
        seen = sees.flatten(1).any(1)[:, None, None, None]  # else a NaN that nobody saw gets in
        found.k_ref[:, part.tokens] = torch.where(seen, dk, 0.0)
        found.v_ref[:, part.tokens] = torch.where(seen, dv, 0.0)
        if found.ref_bias is not None:
            # sum_m dS_im = share_i (dO_i . O_i of this part alone - delta_i)
            alone, alone_lse = attend(flash, part_q, part.k, part.v, call.scale)
            share = torch.exp(alone_lse.transpose(1, 2) - part_lse)
            dS = share * ((part_dO.float() * alone.float()).sum(-1) - delta)
            found.ref_bias[part.number] = torch.where(takes_part, dS, 0.0).sum()
    return replace(found, q=rows.add_to(found.q, dq))


def _where(rows: Tensor, x: Tensor) -> Tensor:
    """x ``[groups, count, H, D]`` where rows ``[groups, count, H]``, else 0."""
    return torch.where(rows[..., None], x, 0.0)
