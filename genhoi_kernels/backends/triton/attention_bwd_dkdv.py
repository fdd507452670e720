"""dK and dV, and sums for dbias: one program a block of keys, which goes over the queries.

The video's keys come in one launch, the references' in another.
"""

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends.device_tables import host_integers
from genhoi_kernels.backends.triton.arguments import (
    backward_scale,
    descriptors,
    mask_arguments,
    mask_strides,
    pipelined_config,
    precision,
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
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two, strides
from genhoi_kernels.backends.triton.tuning import autotune, configs
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.spec import AttentionCall, AttentionTensors


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


def reference_key_gradients(
    call: AttentionCall, t: AttentionTensors, upstream: Upstream, *, arch: str
) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
    """Compute dk_ref, rotated as k_ref is, dv_ref and the sums of dS, which are None without bias.

    The sums are a tensor ``[B or 1, H, its blocks]`` for each reference.
    """
    assert t.k_ref is not None and t.v_ref is not None
    dk_ref, dv_ref = t.k_ref.new_empty(t.k_ref.shape), t.v_ref.new_empty(t.v_ref.shape)

    def launch() -> Launch:
        _, dbias = empty_bias_sums(call, t, arch=arch)
        return reference_dkdv_launch(call, t, upstream, dk_ref, dv_ref, dbias, arch=arch)

    autotune.tune_first_call("reference_keys", t.q, launch, arch=arch)
    blocks, sums = empty_bias_sums(call, t, arch=arch)
    reference_dkdv_launch(call, t, upstream, dk_ref, dv_ref, sums, arch=arch).run()
    if sums is None:
        return dk_ref, dv_ref, None
    counts = [sum(block.segment == r for block in blocks) for r in range(len(call.ref_lengths))]
    return dk_ref, dv_ref, sums.split(counts, -1)


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


def _dkdv_constants(call: AttentionCall, config: Config, arch: str) -> dict[str, object]:
    return {
        "D": call.head_dim,
        "BLOCK_D": power_of_two(call.head_dim),
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "EXACT": call.dtype == torch.float32,
        "PRECISION": precision(arch, call.dtype),
    }
