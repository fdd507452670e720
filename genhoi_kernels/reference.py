"""The oracle: eager PyTorch that reads like the formulas of docs/op.md.

Nothing here is fast, and the attention builds its N x (Nk + M) logits. Every kernel is tested
against these functions, in float64 and in its own dtype. Arithmetic is done in ``wide_dtype``
(float32, or float64 for float64 inputs); q, k, the probabilities and the result are rounded to the
inputs' dtype, as a kernel with tensor cores would.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.rope import AxisTables, Rope, rope_runs, token_places
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors, InputGrads

GATE_NORM_EPS = 1e-5


class AttentionResult(NamedTuple):
    """What an attention backend hands back.

    out ``[B, N, H, D]``: gated for the token gate, else ungated; lse ``[B, H, N]``: natural log,
    before the gate; gate_sum ``[B, H]``: sum of the gate's logits over the rows (sequence gate),
    else zeros; ungated ``[B, N, H, D]``: attention before the token gate where a backward pass
    needs it, else empty.
    """

    out: Tensor
    lse: Tensor
    gate_sum: Tensor
    ungated: Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of softmax, LSE, gate and accumulators for inputs of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rotation(tables: AxisTables, places: Tensor, heads: int | None) -> Tensor:
    """Return R of tokens at ``places``: unit complex numbers, ``[tokens, H or 1, D/2]``.

    heads: H where the tokens turn per head, None where they don't.
    """
    frame, row, col = (torch.view_as_complex(table) for table in tables)
    t, y, x = places.to(torch.int64)[:, None].unbind(-1)
    if heads is not None:
        t = ~t + torch.arange(heads, device=t.device)
    space = torch.cat((row[y], col[x]), dim=-1)
    return torch.cat((frame[t], space.expand(-1, t.shape[1], -1)), dim=-1)


def apply_rope(x: Tensor, rope: Rope, *, inverse: bool = False) -> Tensor:
    """Rotate the interleaved pairs (2i, 2i+1) of x ``[B, N, H, D]`` as complex numbers."""
    wide, runs = wide_dtype(x.dtype), rope_runs(rope, x.shape[1])
    tables = rope.tables(device=x.device, dtype=wide)
    places = token_places(rope, x.shape[1], x.device)
    pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)).contiguous())
    rotated = []
    lengths = [tokens for tokens, _ in runs]
    for (_, by_head), some, at in zip(
        runs, pairs.split(lengths, 1), places.split(lengths), strict=True
    ):
        unit = rotation(tables, at, x.shape[2] if by_head else None)
        # conj() is lazy, which not every dispatch mode resolves.
        rotated.append(some * (torch.conj_physical(unit) if inverse else unit))
    whole = rotated[0] if len(rotated) == 1 else torch.cat(rotated, 1)
    return torch.view_as_real(whole).flatten(-2).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight over the last dimension, in ``wide_dtype``."""
    wide = x.to(wide_dtype(x.dtype))
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.to(wide.dtype)


def norm_rope(x: Tensor, weight: Tensor, rope: Rope, *, eps: float) -> Tensor:
    """Norm x ``[B, N, H*D]`` over all heads, then rotate it: ``[B, N, H, D]``."""
    normed = rms_norm(x, weight, eps=eps).unflatten(-1, (-1, rope.head_dim))
    return apply_rope(normed, rope).to(x.dtype)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute gradients of x and weight: with g = R^-1 grad and r = 1 / sqrt(mean(x^2) + eps),

    dweight = sum over rows of g x r;  dx = r (g weight - x r^2 mean(g weight x)).
    """
    wide = wide_dtype(x.dtype)
    g = apply_rope(grad.to(wide), rope, inverse=True).flatten(-2)
    X, W = x.to(wide), weight.to(wide)
    r = torch.rsqrt(X.square().mean(-1, keepdim=True) + eps)
    dx = r * (g * W - X * r.square() * (g * W * X).mean(-1, keepdim=True))
    return dx.to(x.dtype), (g * X * r).sum((0, 1)).to(weight.dtype)


def flow_gate_logits(o: Tensor, gate: GateWeights) -> Tensor:
    """Compute w2 . GELU(W1 LN(o) + b1) + b2 of each attention row o ``[..., D]``: ``[...]``."""
    w = GateWeights(*(weight.to(o.dtype) for weight in gate))
    normed = F.layer_norm(o, o.shape[-1:], w.norm_weight, w.norm_bias, GATE_NORM_EPS)
    hidden = F.gelu(F.linear(normed, w.fc1_weight, w.fc1_bias))
    return F.linear(hidden, w.fc2_weight, w.fc2_bias)[..., 0]


def flow_gate_logits_backward(
    o: Tensor, gate: GateWeights, grad: Tensor, *, weights: bool = True
) -> tuple[Tensor, GateWeights | None]:
    """Compute gradients of o ``[..., D]`` and the six weights from that of the logits ``[...]``.

    weights: whether theirs are wanted; None comes in their place if not.
    """
    w = GateWeights(*(weight.to(o.dtype) for weight in gate))
    dims = o.shape[-1:]
    normed, mean, rstd = torch.native_layer_norm(o, dims, w.norm_weight, w.norm_bias, GATE_NORM_EPS)
    u = F.linear(normed, w.fc1_weight, w.fc1_bias)
    du = torch.ops.aten.gelu_backward(grad[..., None] * w.fc2_weight[0], u)
    do, dnorm_weight, dnorm_bias = torch.ops.aten.native_layer_norm_backward(
        du @ w.fc1_weight, o, dims, mean, rstd, w.norm_weight, w.norm_bias, [True, weights, weights]
    )
    if not weights:
        return do, None
    rows = du.flatten(0, -2)
    grads = GateWeights(
        norm_weight=dnorm_weight,
        norm_bias=dnorm_bias,
        fc1_weight=rows.mT @ normed.flatten(0, -2),
        fc1_bias=rows.sum(0),
        fc2_weight=grad.reshape(1, -1) @ F.gelu(u).flatten(0, -2),
        fc2_bias=grad.sum().reshape(1),
    )
    return do, GateWeights(*(g.to(x.dtype) for g, x in zip(grads, gate, strict=True)))


def flow_gate(o: Tensor, gate: GateWeights, *, reduction: str) -> Tensor:
    """Gate attention rows o ``[B, N, H, D]``: g * o; "sequence" has one g per sample and head."""
    logits = flow_gate_logits(o.to(wide_dtype(o.dtype)), gate)
    if reduction == "sequence":
        return scale_by_gate_sum(o, logits.sum(1))
    return (torch.sigmoid(logits)[..., None] * o).to(o.dtype)


def scale_by_gate_sum(o: Tensor, gate_sum: Tensor) -> Tensor:
    """Multiply o ``[B, N, H, D]`` by sigmoid(mean of the gate's logits); gate_sum ``[B, H]``."""
    g = torch.sigmoid(gate_sum / max(o.shape[1], 1))
    return (g[:, None, :, None] * o).to(o.dtype)


def sees(bits: Tensor | None, segment: int, rows: int, device: torch.device) -> Tensor:
    """Say which rows see one reference: bool ``[B or 1, 1, N, 1]``."""
    if bits is None:
        return torch.ones(1, 1, rows, 1, dtype=torch.bool, device=device)
    return (bits >> segment & 1).bool()[:, None, :, None]


class Source(NamedTuple):
    """Keys K and values V ``[B or 1, H, keys, D]``, rotated; which rows see them; their bias."""

    K: Tensor
    V: Tensor
    seen: Tensor
    bias: Tensor | float


def _rotated(call: AttentionCall, t: AttentionTensors) -> tuple[Tensor, list[Source]]:
    """Return Q ``[B, H, N, D]``, and the video's keys followed by each reference's."""
    wide = wide_dtype(t.q.dtype)

    def heads_first(x: Tensor, rope: Rope | None = None) -> Tensor:
        return (x if rope is None else apply_rope(x, rope)).to(wide).transpose(1, 2)

    rows, device = t.q.shape[1], t.q.device
    everyone = sees(None, 0, rows, device)
    sources = [Source(heads_first(t.k, call.rope), heads_first(t.v), everyone, 0.0)]
    if t.k_ref is not None and t.v_ref is not None:
        lengths = list(call.ref_lengths)
        keys = heads_first(t.k_ref, call.ref_rope).split(lengths, 2)
        values = heads_first(t.v_ref).split(lengths, 2)
        for r, (K_r, V_r) in enumerate(zip(keys, values, strict=True)):
            bias = 0.0 if t.ref_bias is None else t.ref_bias[r].to(wide)
            sources.append(Source(K_r, V_r, sees(t.bits, r, rows, device), bias))
    return heads_first(t.q, call.rope), sources


# Rows that do not see a source are taken out before *and* after each product with it: 0 * NaN is
# NaN, and what an unseen reference holds must not reach a row or its gradient.
def _only(seen: Tensor, x: Tensor) -> Tensor:
    return torch.where(seen, x, 0.0)


def _logits(Q: Tensor, source: Source, scale: float) -> Tensor:
    """Compute S_ij = Q_i . K_j * scale + bias if row i sees source j, else -inf."""
    K, _, seen, bias = source
    return torch.where(seen, _only(seen, Q) @ K.mT * scale + bias, -torch.inf)


def attention(call: AttentionCall, t: AttentionTensors) -> AttentionResult:
    """Compute the op as it is written; arguments were checked by ``reference_attention``.

    Q_i = R(t, y, x) q_i;  K_j = R(t, y, x) k_j;  K'_m = R(tau_h, y + h, x + w) k_r,m
    S_ij = Q_i . K_j * scale;  S'_im = Q_i . K'_m * scale + bias  if row i sees m, else -inf
    L_i = log sum exp [S_i | S'_i];  P_i = exp([S_i | S'_i] - L_i);  O_i = P_i [V ; V_r]
    out_i = sigmoid(logit(O_i)) * O_i
    """
    dtype, wide = t.q.dtype, wide_dtype(t.q.dtype)
    Q, sources = _rotated(call, t)
    S = torch.cat([_logits(Q, source, call.scale) for source in sources], dim=-1)
    blind = (S == -torch.inf).all(-1, keepdim=True)  # no key at all: O = 0, L = -inf
    L = torch.logsumexp(S.masked_fill(blind, 0.0), -1, keepdim=True)
    P = torch.exp(S - L).to(dtype).to(wide)

    O = torch.zeros_like(Q)
    for P_s, (_, V, seen, _) in zip(
        P.split([s.K.shape[2] for s in sources], -1), sources, strict=True
    ):
        O = O + _only(seen, _only(seen, P_s) @ V)
    O = O.transpose(1, 2)  # [B, N, H, D]
    lse = L.masked_fill(blind, -torch.inf)[..., 0]

    no_sum, no_ungated = lse.new_zeros(lse.shape[:2]), t.q.new_empty(0)
    if t.gate is None:
        return AttentionResult(O.to(dtype), lse, no_sum, no_ungated)
    logits = flow_gate_logits(O, t.gate)
    if call.gate_mode == "sum":
        return AttentionResult(O.to(dtype), lse, logits.sum(1), no_ungated)
    out = torch.sigmoid(logits)[..., None] * O
    ungated = O.to(dtype) if call.needs_grad else no_ungated
    return AttentionResult(out.to(dtype), lse, no_sum, ungated)


def attention_backward(
    call: AttentionCall, t: AttentionTensors, o: Tensor, lse: Tensor, grads: AttentionGrads
) -> InputGrads:
    """Compute the wanted gradients of the op as they are written in docs/op.md, "Backward".

    P = exp(S - L);  delta_i = dO_i . O_i - dL_i;  dP = dO V^T;  dS = P (dP - delta)
    dV = P^T dO;  dQ = scale dS K;  dK = scale dS^T Q;  dbias = sum dS
    """
    dtype, wide, wanted = t.q.dtype, wide_dtype(t.q.dtype), call.wanted
    dO, dgate = _through_gate(call, t, o.to(wide), grads)
    delta = (dO * o.to(wide)).sum(-1).transpose(1, 2)
    if grads.lse is not None:
        delta = delta - grads.lse
    L, delta, dO = lse[..., None], delta[..., None], dO.transpose(1, 2)

    Q, sources = _rotated(call, t)
    dQ = torch.zeros_like(Q)
    # Of the video, then of each reference.
    dK: list[Tensor] = []
    dV: list[Tensor] = []
    dbias: list[Tensor] = []
    for source in sources:
        K, V, seen, _ = source
        of_video = source is sources[0]
        wants_k = wanted.k if of_video else wanted.k_ref
        wants_v = wanted.v if of_video else wanted.v_ref
        wants_bias = wanted.ref_bias and t.ref_bias is not None and not of_video
        batch = len(K)
        if not (wanted.q or wants_k or wants_v or wants_bias):
            continue
        S = _logits(Q, source, call.scale)
        P = torch.where(S == -torch.inf, 0.0, torch.exp(S - L))
        if wants_v:
            dV.append(_sum_to_batch(_rounded(P, dtype).mT @ _only(seen, dO), batch))
        if not (wanted.q or wants_k or wants_bias):
            continue
        dP = _only(seen, dO) @ V.mT
        dS = _only(seen, P * (dP - delta))
        if wants_bias:
            dbias.append(dS.sum())
        dS = _rounded(dS, dtype)
        if wanted.q:
            dQ = dQ + _only(seen, dS @ K) * call.scale
        if wants_k:
            dK.append(_sum_to_batch(dS.mT @ _only(seen, Q), batch) * call.scale)

    def tokens_first(x: Tensor, rope: Rope | None = None) -> Tensor:
        x = x.transpose(1, 2)
        return (x if rope is None else apply_rope(x, rope, inverse=True)).to(dtype)

    dk, dk_ref = _video_and_references(dK, wanted.k, wanted.k_ref and t.k_ref is not None)
    dv, dv_ref = _video_and_references(dV, wanted.v, wanted.v_ref and t.v_ref is not None)
    return InputGrads(
        q=tokens_first(dQ, call.rope) if wanted.q else None,
        k=None if dk is None else tokens_first(dk, call.rope),
        v=None if dv is None else tokens_first(dv),
        k_ref=None if dk_ref is None else tokens_first(dk_ref, call.ref_rope),
        v_ref=None if dv_ref is None else tokens_first(dv_ref),
        ref_bias=_bias_grad(dbias, t.ref_bias) if wanted.ref_bias else None,
        gate=dgate,
    )


def _bias_grad(of_references: list[Tensor], bias: Tensor | None) -> Tensor | None:
    return None if bias is None else torch.stack(of_references).to(bias.dtype)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).to(x.dtype)


def _video_and_references(
    grads: list[Tensor], video: bool, references: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Split gradients of keys or values into the video's, which come first, and the references'."""
    of_video, of_references = grads[:video], grads[video:]
    return (
        of_video[0] if video else None,
        torch.cat(of_references, 2) if references else None,
    )


def _sum_to_batch(x: Tensor, batch: int) -> Tensor:
    """Sum x over the samples that share one reference."""
    return x.sum(0, keepdim=True) if batch == 1 else x


def _through_gate(
    call: AttentionCall,
    t: AttentionTensors,
    O: Tensor,
    grads: AttentionGrads,
) -> tuple[Tensor, GateWeights | None]:
    """Compute gradients of the ungated attention O ``[B, N, H, D]`` and of the gate's weights."""
    dout = torch.zeros_like(O) if grads.out is None else grads.out.to(O.dtype)
    if t.gate is None:
        return dout, None
    if call.gate_mode == "sum":
        dlogits = O.new_zeros(O.shape[:-1])
        if grads.gate_sum is not None:
            dlogits = dlogits + grads.gate_sum[:, None]
        dO = dout
    else:
        g = torch.sigmoid(flow_gate_logits(O, t.gate))
        dlogits = (dout * O).sum(-1) * g * (1 - g)
        dO = dout * g[..., None]
    dO_gate, dgate = flow_gate_logits_backward(O, t.gate, dlogits, weights=call.wanted.gate)
    return dO + dO_gate, dgate
