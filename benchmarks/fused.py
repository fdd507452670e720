"""The suite `fused`: attention with the rotation of q and k and a token gate inside.

Peers rotate q and k, attend and gate with PyTorch's calls. The reference's keys come rotated for
everybody, as they are cached once a clip. Tables of angles, mask and rows are made outside the
clock; keys and values are joined outside it too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import genhoi_kernels as gk
from benchmarks.bare_attention import attention_flops, attention_moved, op_backends, op_label
from benchmarks.case import Case, Contender, Results, Workload
from benchmarks.checks import Part, attention_truth, choose_part
from benchmarks.context import Context
from benchmarks.gathered import CUDNN, Attention, default_attention, gathered_attention
from benchmarks.peers import GATHERED_CUDNN, strongest
from benchmarks.torch_parts import cos_sin, rotate, token_gate
from genhoi_kernels import GateWeights, MaskGate, VideoRope
from genhoi_kernels.flow_gate import gate_shapes

__all__ = ["build_fused", "peer_labels", "random_gate"]

_GATHERED = "eager RoPE, gathered two-pass, eager gate"
_GATHERED_CUDNN = "eager RoPE, gathered two-pass on cuDNN, eager gate"
_ADDITIVE = "eager RoPE, SDPA with additive mask, eager gate"
Call = Callable[[], Tensor]


def build_fused(case: Case) -> Workload:
    """The op on every usable backend, the strongest peer, and the release's way."""
    ctx = Context(case)
    part = choose_part(ctx)
    rope = VideoRope(case.shape.grid, head_dim=case.shape.head_dim)
    gate = random_gate(case.shape.head_dim, case.dtype, case.device)
    truth = functools.cache(
        functools.partial(attention_truth, ctx, part, masked=True, rope=rope, gate=gate)
    )
    names = op_backends(case.device, case.backends)
    labels = peer_labels(case.device)
    calls: dict[str, Call | None] = {op_label(name): _op(ctx, rope, gate, name) for name in names}
    calls[_GATHERED] = _gathered(ctx, rope, gate, default_attention(ctx.device, ctx.dtype))
    if _GATHERED_CUDNN in labels:
        calls[_GATHERED_CUDNN] = _gathered(ctx, rope, gate, CUDNN)
    calls[_ADDITIVE] = _additive(ctx, rope, gate)
    work = Workload(
        op_label(names[0]), labels[0], attention_flops(case), attention_moved(case),
        fallback=_GATHERED,
    )  # fmt: skip
    for label, call in calls.items():
        if call is None:
            work.contenders.append(Contender(label, reason=ctx.reason))
            continue
        work.contenders.append(Contender(label, call, _results(call, part), truth))
    return work


def peer_labels(device: torch.device) -> tuple[str, ...]:
    """The peers on a device, the strongest first."""
    peers = _GATHERED, _ADDITIVE
    return (_GATHERED_CUDNN, *peers) if strongest(device) == GATHERED_CUDNN else peers


def _results(call: Call, part: Part) -> Callable[[], Results]:
    return lambda: {"out": part.of(call())}


def random_gate(dim: int, dtype: torch.dtype, device: torch.device) -> GateWeights:
    """A gate whose values spread over (0, 1)."""
    draw = torch.Generator().manual_seed(1)
    weights = {}
    for name, shape in gate_shapes(dim).items():
        x = torch.randn(shape, generator=draw) / max(shape[-1], 1) ** 0.5
        weights[name] = (1 + 0.3 * x if name == "norm_weight" else x).to(device, dtype)
    return GateWeights(**weights)


def _op(ctx: Context, rope: VideoRope, gate: GateWeights, backend: str) -> Call:
    mask = MaskGate.build(ctx.mask)

    @torch.no_grad()
    def call() -> Tensor:
        out = gk.reference_attention(
            *ctx.inputs, mask=mask, rope=rope, gate=gate, gate_reduction="token", backend=backend
        )
        assert isinstance(out, Tensor)
        return out

    return call


def _gathered(ctx: Context, rope: VideoRope, gate: GateWeights, attention: Attention) -> Call:
    rows = ctx.mask[0].nonzero()[:, 0]
    table = cos_sin(rope, ctx.shape.n, ctx.device)
    *_, K_ref, V_ref = ctx.heads_first

    @torch.no_grad()
    def call() -> Tensor:
        q, k = rotate(ctx.q, table), rotate(ctx.k, table)
        Q, K, V = (x.transpose(1, 2) for x in (q, k, ctx.v))
        out = gathered_attention(Q, K, V, K_ref, V_ref, rows, attention)
        return token_gate(out.transpose(1, 2), gate)

    return call


def _additive(ctx: Context, rope: VideoRope, gate: GateWeights) -> Call | None:
    n = ctx.shape.n
    if not ctx.has_room(n * (n + ctx.shape.m) * ctx.dtype.itemsize):
        return None
    bias, table = ctx.additive_mask, cos_sin(rope, n, ctx.device)
    joined, V = ctx.joined[1].clone(), ctx.joined[2].transpose(1, 2)

    @torch.no_grad()
    def call() -> Tensor:
        Q = rotate(ctx.q, table).transpose(1, 2)
        joined[:, :n] = rotate(ctx.k, table)
        out = F.scaled_dot_product_attention(Q, joined.transpose(1, 2), V, attn_mask=bias)
        return token_gate(out.transpose(1, 2), gate)

    return call
