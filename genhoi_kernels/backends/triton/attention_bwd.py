"""Attention backward: docs/op.md, "Backward". No atomics: the same bits from run to run.

    delta = dO . O - dL                                 (attention_bwd_preprocess, or flow_gate_bwd)
    P = exp(S - L);  dP = dO V^T;  dS = P (dP - delta)
    dQ = scale dS K                                     (attention_bwd_dq: one program a query tile)
    dV = P^T dO;  dK = scale dS^T Q;  dbias = sum dS    (attention_bwd_dkdv: one a block of keys)

dO is the gradient of the ungated attention. Queries and keys come rotated, and so do their
gradients leave the kernels.
"""

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends.device_tables import host_integers
from genhoi_kernels.backends.triton.arguments import (
    all_strides,
    backward_scale,
    descriptors,
    has_references,
    mask_arguments,
    mask_strides,
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
from genhoi_kernels.backends.triton.flow_gate import flow_gate_backward
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two, strides
from genhoi_kernels.backends.triton.norm_rope import rotate_inputs, wanted_gradients
from genhoi_kernels.backends.triton.tuning import autotune, configs
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["H", "N"])
def attention_bwd_preprocess(
    dout,
    o,
    dlse,
    delta,
    H,
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    DLSE: tl.constexpr,
):
    """Compute delta ``[B, H, N]`` = dout . o - dL of ungated attention, BLOCK_M rows of a head."""
    start, b, h = tl.program_id(0) * BLOCK_M, tl.program_id(1) // H, tl.program_id(1) % H
    row = start + tl.arange(0, BLOCK_M)
    sample, lse_row = N.to(tl.int64) * H * D, (b.to(tl.int64) * H + h) * N + row
    dO = load_tile(head_pointer(dout, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    O = load_tile(head_pointer(o, b, h, sample, D), start, N, H * D, True, BLOCK_M, D, BLOCK_D)
    delta_row = tl.sum(dO.to(tl.float32) * O.to(tl.float32), 1)
    if DLSE:
        delta_row -= tl.load(dlse + lse_row, mask=row < N, other=0.0)
    tl.store(delta + lse_row, delta_row, mask=row < N)


@triton.jit
def probabilities(s, lse, factor, bias, BIAS: tl.constexpr, EXACT: tl.constexpr):
    """Compute P = exp(S - L); a bias of -inf makes it 0.

    factor: the scale, times log2 e unless EXACT, which subtracts before it turns to powers of two:
    an L of 20 times log2 e is off by 1e-6.
    """
    if EXACT:
        p = tl.exp2((s * factor + bias - lse) * LOG2_E)
    else:
        p = tl.exp2(s * factor + (bias - lse) * LOG2_E)
    if BIAS:
        p = tl.where(bias == float("-inf"), 0.0, p)
    return p


@triton.jit(do_not_specialize=["H", "N", "NK", "bits_b", "tile_bits_b"])
def attention_bwd_dkdv(
    Q,
    K,
    V,
    dO,
    Q_desc,
    dO_desc,
    lse,
    delta,
    dK,
    dV,
    bits,
    tile_bits,
    block_starts,
    block_ends,
    block_segments,
    ref_bias,
    dbias,
    q_b,
    q_n,
    q_h,
    k_b,
    k_n,
    k_h,
    v_b,
    v_n,
    v_h,
    bits_b,
    tile_bits_b,
    H,
    N,
    NK,
    scale,
    factor,
    SAMPLES: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    REFERENCES: tl.constexpr,
    MASK: tl.constexpr,
    BIAS: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute dK, dV of BLOCK_N keys of one head, of the video or (REFERENCES) of one segment.

    Q_desc, dO_desc: descriptors of Q and dO ``[B, H, N, D]``, or None (common.load_block). A
    reference that SAMPLES samples share gets the sum over them, in order.
    """
    block, b_key, h = tl.program_id(0), tl.program_id(1) // H, tl.program_id(1) % H
    if REFERENCES:
        start, end = tl.load(block_starts + block), tl.load(block_ends + block)
        segment = tl.load(block_segments + block)
    else:
        start, end = block * BLOCK_N, NK
        segment = 0
    bias = tl.load(ref_bias + segment) if BIAS else 0.0
    k = load_tile(head_pointer(K, b_key, h, k_b, k_h), start, end, k_n, True, BLOCK_N, D, BLOCK_D)
    v = load_tile(head_pointer(V, b_key, h, v_b, v_h), start, end, v_n, True, BLOCK_N, D, BLOCK_D)
    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    ds_sum = tl.zeros((BLOCK_N,), tl.float32)

    for sample in range(0, SAMPLES):
        b = b_key + sample
        Q_head, dO_head = (
            head_pointer(Q, b, h, q_b, q_h),
            head_pointer(dO, b, h, N.to(tl.int64) * H * D, D),
        )
        lse_head = (b.to(tl.int64) * H + h) * N
        for i in range(0, N, BLOCK_M):
            flags = 1
            if MASK:
                flags = load_tile_flags(tile_bits + b * tile_bits_b, i, N, BLOCK_M) >> segment & 1
            if flags != 0:
                row = i + tl.arange(0, BLOCK_M)
                q = load_block(Q_head, Q_desc, b, h, i, N, q_n, True, BLOCK_M, D, BLOCK_D)
                do = load_block(dO_head, dO_desc, b, h, i, N, H * D, True, BLOCK_M, D, BLOCK_D)
                L = tl.load(lse + lse_head + row, mask=row < N, other=float("inf"))
                delta_row = tl.load(delta + lse_head + row, mask=row < N, other=0.0)
                if MASK:
                    row_bits = tl.load(bits + b.to(tl.int64) * bits_b + row, mask=row < N, other=0)
                    seen = (row_bits >> segment & 1) != 0
                    q, do = tl.where(seen[:, None], q, 0.0), tl.where(seen[:, None], do, 0.0)

                s = tl.dot(k, tl.trans(q), input_precision=PRECISION)
                p = probabilities(s, L[None, :], factor, bias, BIAS, EXACT)
                dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
                ds = p * (dp - delta_row[None, :])
                if MASK:
                    p, ds = tl.where(seen[None, :], p, 0.0), tl.where(seen[None, :], ds, 0.0)
                dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
                dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
                if BIAS:
                    ds_sum += tl.sum(ds, 1)

    if REFERENCES:
        rows = end
    else:
        rows = NK
    sample = NK.to(tl.int64) * H * D
    store_tile(
        head_pointer(dK, b_key, h, sample, D), dk * scale, start, rows, H * D, BLOCK_N, D, BLOCK_D
    )
    store_tile(head_pointer(dV, b_key, h, sample, D), dv, start, rows, H * D, BLOCK_N, D, BLOCK_D)
    if BIAS:
        exists = start + tl.arange(0, BLOCK_N) < end
        dbias_block = tl.sum(tl.where(exists, ds_sum, 0.0), 0)
        tl.store(dbias + tl.program_id(1) * tl.num_programs(0) + block, dbias_block)


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
            for j in tl.range(first, last, BLOCK_R, num_stages=1):
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


class Upstream(NamedTuple):
    """What every kernel reads: dO ``[B, N, H, D]``, and the rows' lse and delta ``[B, H, N]``."""

    do: Tensor
    lse: Tensor
    delta: Tensor


class Kernels(NamedTuple):
    """Which kernels compute gradients that are wanted."""

    dq: bool
    dkdv: bool
    reference_dkdv: bool

    @staticmethod
    def needed(call: AttentionCall, t: AttentionTensors) -> "Kernels":
        """Leave out every kernel none of whose gradients is wanted."""
        wanted = call.wanted
        bias = wanted.ref_bias and t.ref_bias is not None
        return Kernels(
            dq=wanted.q,
            dkdv=wanted.k or wanted.v,
            reference_dkdv=t.k_ref is not None and (wanted.k_ref or wanted.v_ref or bias),
        )


def attention_backward(
    call: AttentionCall,
    t: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
    *,
    arch: str,
) -> AttentionTensors:
    """Compute the op's gradients that are wanted, and None for the others.

    o: the attention before the gate.
    """
    kernels, wanted = Kernels.needed(call, t), call.wanted
    gradients: dict[str, Tensor | GateWeights | None] = dict.fromkeys(wanted._fields)
    if any(kernels) or (wanted.gate and t.gate is not None):
        dO, delta, gradients["gate"] = preprocess(call, t, o, grads, arch=arch)
        upstream = Upstream(dO, lse, delta)
    if any(kernels):
        t = rotate_inputs(
            call,
            t,
            k=kernels.dq or kernels.dkdv,
            k_ref=kernels.dq or kernels.reference_dkdv,
        )
    if kernels.dq:
        gradients["q"] = query_gradient(call, t, upstream, arch=arch)
    if kernels.dkdv:
        gradients["k"], gradients["v"] = key_gradients(call, t, upstream, arch=arch)
    if kernels.reference_dkdv:
        gradients["k_ref"], gradients["v_ref"], gradients["ref_bias"] = reference_gradients(
            call, t, upstream, arch=arch
        )
    return wanted_gradients(call, gradients)


def preprocess(
    call: AttentionCall, t: AttentionTensors, o: Tensor, grads: AttentionGrads, *, arch: str
) -> tuple[Tensor, Tensor, GateWeights | None]:
    """Go back through the gate: dO, delta ``[B, H, N]`` and the gradients of the gate's weights."""
    batch, rows, heads, _ = o.shape
    dout = torch.zeros_like(o) if grads.out is None else grads.out
    delta = o.new_empty((batch, heads, rows), dtype=torch.float32)
    if t.gate is not None:
        dO, dgate = flow_gate_backward(call, t.gate, o, dout, grads, delta=delta, arch=arch)
        return dO, delta, dgate
    launch = partial(preprocess_launch, o, dout, grads.lse, delta, arch=arch)
    autotune.tune_first_call("delta", o, launch, arch=arch)
    launch().run()
    return dout, delta, None


def preprocess_launch(
    o: Tensor, dout: Tensor, dlse: Tensor | None, delta: Tensor, *, arch: str
) -> Launch:
    """Make the launch of ``attention_bwd_preprocess``."""
    batch, rows, heads, head_dim = o.shape
    config = configs.config_for(arch, "delta", o)
    return Launch(
        kernel=attention_bwd_preprocess,
        grid=(ceil_div(rows, config.block_m), batch * heads),
        arguments={"dout": dout, "o": o, "dlse": dlse, "delta": delta, "H": heads, "N": rows},
        constants={
            "D": head_dim,
            "BLOCK_D": power_of_two(head_dim),
            "BLOCK_M": config.block_m,
            "DLSE": dlse is not None,
        },
        config=config,
    )


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
            **reference_flags(t),
            "EXACT": call.dtype == torch.float32,
            "PRECISION": precision(arch, call.dtype),
        },
        config=config,
    )


def key_gradients(
    call: AttentionCall, t: AttentionTensors, upstream: Upstream, *, arch: str
) -> tuple[Tensor, Tensor]:
    """Compute dK, rotated as k is, and dV, of the video."""
    dk, dv = t.k.new_empty(t.k.shape), t.v.new_empty(t.v.shape)
    launch = partial(dkdv_launch, call, t, upstream, dk, dv, arch=arch)
    autotune.tune_first_call("keys", t.q, launch, arch=arch)
    launch().run()
    return dk, dv


def dkdv_launch(
    call: AttentionCall,
    t: AttentionTensors,
    upstream: Upstream,
    dk: Tensor,
    dv: Tensor,
    *,
    arch: str,
) -> Launch:
    """Make the launch of ``attention_bwd_dkdv`` for the video's keys."""
    batch, rows, heads, _ = t.q.shape
    config = pipelined_config("keys", (t.q, upstream.do), arch=arch)
    of_references = ("block_starts", "block_ends", "block_segments", "ref_bias", "dbias")
    return Launch(
        kernel=attention_bwd_dkdv,
        grid=(ceil_div(t.k.shape[1], config.block_n), batch * heads),
        arguments={
            "Q": t.q,
            "K": t.k,
            "V": t.v,
            **descriptors(config, config.block_m, Q=t.q, dO=upstream.do),
            "dO": upstream.do,
            "lse": upstream.lse,
            "delta": upstream.delta,
            "dK": dk,
            "dV": dv,
            **dict.fromkeys(("bits", "tile_bits", *of_references)),
            **strides("q", t.q),
            **strides("k", t.k),
            **strides("v", t.v),
            "bits_b": 0,
            "tile_bits_b": 0,
            "H": heads,
            "N": rows,
            "NK": t.k.shape[1],
            **backward_scale(call),
        },
        constants={
            "SAMPLES": 1,
            "REFERENCES": False,
            "MASK": False,
            "BIAS": False,
            **_dkdv_constants(call, config, arch),
        },
        config=config,
    )


def _dkdv_constants(call: AttentionCall, config: Config, arch: str) -> dict[str, object]:
    return {
        "D": call.head_dim,
        "BLOCK_D": power_of_two(call.head_dim),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "EXACT": call.dtype == torch.float32,
        "PRECISION": precision(arch, call.dtype),
    }


class KeyBlock(NamedTuple):
    """A block of reference keys: start and end among the reference tokens, and its segment."""

    start: int
    end: int
    segment: int


def key_blocks(lengths: tuple[int, ...], size: int) -> list[KeyBlock]:
    """Divide the references into blocks of at most ``size`` tokens, none in two segments."""
    blocks, first = [], 0
    for segment, length in enumerate(lengths):
        last = first + length
        blocks += [KeyBlock(i, min(i + size, last), segment) for i in range(first, last, size)]
        first = last
    return blocks


def reference_gradients(
    call: AttentionCall, t: AttentionTensors, upstream: Upstream, *, arch: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute dk_ref, rotated as k_ref is, dv_ref and dbias, which is None without a bias."""
    assert t.k_ref is not None and t.v_ref is not None
    if not has_references(t) or 0 in t.q.shape:
        no_bias = None if t.ref_bias is None else torch.zeros_like(t.ref_bias)
        return torch.zeros_like(t.k_ref), torch.zeros_like(t.v_ref), no_bias
    dk_ref, dv_ref = t.k_ref.new_empty(t.k_ref.shape), t.v_ref.new_empty(t.v_ref.shape)

    def launch() -> Launch:
        _, dbias = empty_bias_sums(call, t, arch=arch)
        return reference_dkdv_launch(call, t, upstream, dk_ref, dv_ref, dbias, arch=arch)

    autotune.tune_first_call("reference_keys", t.q, launch, arch=arch)
    blocks, sums = empty_bias_sums(call, t, arch=arch)
    reference_dkdv_launch(call, t, upstream, dk_ref, dv_ref, sums, arch=arch).run()
    if sums is None or t.ref_bias is None:
        return dk_ref, dv_ref, None
    counts = [sum(block.segment == r for block in blocks) for r in range(len(call.ref_lengths))]
    dbias = torch.stack([of_segment.sum() for of_segment in sums.split(counts, -1)])
    return dk_ref, dv_ref, dbias.to(t.ref_bias.dtype)


def empty_bias_sums(
    call: AttentionCall, t: AttentionTensors, *, arch: str
) -> tuple[list[KeyBlock], Tensor | None]:
    """Give the blocks of reference keys, and allocate the sums of dS that each leaves, if asked."""
    assert t.k_ref is not None
    config = configs.config_for(arch, "reference_keys", t.q)
    blocks = key_blocks(call.ref_lengths, config.block_n)
    if t.ref_bias is None:
        return blocks, None
    shape = (t.k_ref.shape[0], t.q.shape[2], len(blocks))
    return blocks, t.q.new_empty(shape, dtype=torch.float32)


def reference_dkdv_launch(
    call: AttentionCall,
    t: AttentionTensors,
    upstream: Upstream,
    dk_ref: Tensor,
    dv_ref: Tensor,
    dbias: Tensor | None,
    *,
    arch: str,
) -> Launch:
    """Make the launch of ``attention_bwd_dkdv`` for references; dbias ``[B or 1, H, blocks]``."""
    assert t.k_ref is not None
    batch, rows, heads, _ = t.q.shape
    config = pipelined_config("reference_keys", (t.q, upstream.do), arch=arch)
    blocks = key_blocks(call.ref_lengths, config.block_n)
    flags, ref_batch = reference_flags(t), t.k_ref.shape[0]
    starts, ends, of_block = (
        host_integers(tuple(column), t.q.device) for column in zip(*blocks, strict=True)
    )
    return Launch(
        kernel=attention_bwd_dkdv,
        grid=(len(blocks), ref_batch * heads),
        arguments={
            "Q": t.q,
            "K": t.k_ref,
            "V": t.v_ref,
            **descriptors(config, config.block_m, Q=t.q, dO=upstream.do),
            "dO": upstream.do,
            "lse": upstream.lse,
            "delta": upstream.delta,
            "dK": dk_ref,
            "dV": dv_ref,
            **mask_arguments(t, masked=flags["MASK"]),
            "block_starts": starts,
            "block_ends": ends,
            "block_segments": of_block,
            "ref_bias": t.ref_bias if flags["BIAS"] else None,
            "dbias": dbias,
            **strides("q", t.q),
            **strides("k", t.k_ref),
            **strides("v", t.v_ref),
            **mask_strides(t),
            "H": heads,
            "N": rows,
            "NK": t.k_ref.shape[1],
            **backward_scale(call),
        },
        constants={
            "SAMPLES": batch if ref_batch == 1 else 1,
            **flags,
            **_dkdv_constants(call, config, arch),
        },
        config=config,
    )
