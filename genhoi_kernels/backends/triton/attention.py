"""Launches of the attention kernels (forward.py, gate_backward.py, backward.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels.backends.device_tables import host_integers, segments
from genhoi_kernels.backends.triton import attention_bwd as backward
from genhoi_kernels.backends.triton import attention_fwd as forward
from genhoi_kernels.backends.triton import flow_gate_bwd as gate_backward
from genhoi_kernels.backends.triton.launch import (
    Launch,
    ceil_div,
    descriptor,
    has_descriptor,
    power_of_two,
    strides,
)
from genhoi_kernels.backends.triton.rotate import rotated
from genhoi_kernels.backends.triton.tuning import autotune
from genhoi_kernels.backends.triton.tuning.compiler import is_sound, safe_form
from genhoi_kernels.backends.triton.tuning.configs import Config, config, key_of
from genhoi_kernels.flow_gate import GateSums, GateWeights
from genhoi_kernels.mask_gate import TILE_ROWS, tile_bits
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors

GATE_PROGRAMS = 256
"""Parts into which the tiles are cut for the gradients of the gate's weights."""


def attention(call: AttentionCall, t: AttentionTensors, *, arch: str) -> AttentionResult:
    """The op's forward pass; one launch where q, k and k_ref come rotated."""
    t = with_rotation(call, t)

    def launch() -> Launch:
        return forward_launch(call, t, *empty_result(call, t, arch=arch), arch=arch)

    _tune("forward", t.q, launch, arch=arch)
    result, sums = empty_result(call, t, arch=arch)
    forward_launch(call, t, result, sums, arch=arch).run()
    if call.gate_mode == "sum":
        result = result._replace(gate_sum=sums.sum(-1))
    return result


def _tune(kernel: str, q: Tensor, launch: Callable[[], Launch], *, arch: str) -> None:
    """Where autotuning is asked for, before the kernel's first large call; q ``[B, N, H, D]``."""
    if autotune.enabled() and q.device.type == "cuda" and q.shape[1] >= autotune.MINIMUM_ROWS:
        autotune.tune(key_of(arch, kernel, q.element_size(), q.shape[-1]), launch)


def with_rotation(call: AttentionCall, t: AttentionTensors) -> AttentionTensors:
    """q, k and k_ref turned by their rotations, those that have one."""
    return replace(
        t,
        q=rotated(t.q, call.rope),
        k=rotated(t.k, call.rope),
        k_ref=None if t.k_ref is None else rotated(t.k_ref, call.ref_rope),
    )


def empty_result(
    call: AttentionCall, t: AttentionTensors, *, arch: str
) -> tuple[AttentionResult, Tensor]:
    """What the forward kernel writes to, and the gate's sums of each tile ``[B, H, tiles]``."""
    batch, rows, heads, head_dim = t.q.shape
    cut = config(arch, "forward", t.q.element_size(), head_dim)
    keep = call.gate_mode == "token" and call.needs_grad
    wide = torch.float32
    tiles = ceil_div(rows, cut.block_m) if call.gate_mode == "sum" else 0
    result = AttentionResult(
        out=t.q.new_empty(t.q.shape),
        lse=t.q.new_empty((batch, heads, rows), dtype=wide),
        gate_sum=t.q.new_zeros((batch, heads), dtype=wide),
        ungated=t.q.new_empty(t.q.shape if keep else (0,)),
    )
    return result, t.q.new_empty((batch, heads, tiles), dtype=wide)


def forward_launch(
    call: AttentionCall, t: AttentionTensors, result: AttentionResult, sums: Tensor, *, arch: str
) -> Launch:
    """Of forward.attention_forward; q, k and k_ref rotated already."""
    batch, rows, heads, head_dim = t.q.shape
    cut = _pipelined("forward", (t.k, t.v), arch=arch)
    keep = call.gate_mode == "token" and call.needs_grad
    return Launch(
        kernel=forward.attention_forward,
        grid=(ceil_div(rows, cut.block_m), batch * heads),
        arguments=dict(
            Q=t.q, K=t.k, V=t.v, **_blocks_of(cut, cut.block_n, K=t.k, V=t.v),
            **_references(call, t), **_gate(t.gate),
            out=result.out, ungated=result.ungated if keep else None, lse=result.lse,
            gate_sums=sums if call.gate_mode == "sum" else None,
            **_strides(t), H=heads, N=rows, NK=t.k.shape[1], R=len(call.ref_lengths),
            factor=abs(call.scale) * math.log2(math.e),
        ),
        constants=dict(
            D=head_dim, BLOCK_D=power_of_two(head_dim), BLOCK_M=cut.block_m, BLOCK_N=cut.block_n,
            BLOCK_R=cut.block_r, BLOCK_F=cut.block_f or power_of_two(head_dim // 2),
            **_which(call, t), GATE=call.gate_mode, KEEP_UNGATED=keep, NEGATIVE=call.scale < 0,
            PRECISION=precision(arch, call.dtype),
        ),
        config=cut,
    )  # fmt: skip


def precision(arch: str, dtype: torch.dtype) -> str:
    """How tl.dot multiplies float32: on tensor cores of NVIDIA's by parts of 11 bits."""
    if not arch.startswith("sm_") or (dtype == torch.float32 and not is_sound(arch)):
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"


def has_references(t: AttentionTensors) -> bool:
    """There is a reference token."""
    return t.k_ref is not None and t.k_ref.shape[1] > 0


def _pipelined(kernel: str, copied: tuple[Tensor, Tensor], *, arch: str) -> Config:
    """The configuration of a kernel whose loop multiplies what it copies of these tensors."""
    found = config(arch, kernel, copied[0].element_size(), copied[0].shape[-1])
    return safe_form(found, arch, has_descriptors=all(map(has_descriptor, copied)))


def _blocks_of(cut: Config, rows: int, **copied: Tensor) -> dict[str, Any]:
    """Descriptors of what a loop copies, ``rows`` at a time, if the configuration asks for them."""
    usable = cut.descriptors and all(map(has_descriptor, copied.values()))
    return {
        f"{name}_blocks": descriptor(x, (rows, power_of_two(x.shape[3]))) if usable else None
        for name, x in copied.items()
    }


def _which(call: AttentionCall, t: AttentionTensors) -> dict[str, bool]:
    references = has_references(t)
    return {
        "REFERENCES": references,
        "MASK": references and t.bits is not None,
        "BIAS": references and t.ref_bias is not None,
    }


def _references(call: AttentionCall, t: AttentionTensors) -> dict[str, Any]:
    """What describes the references to a kernel that goes through all of them."""
    which = _which(call, t)
    return dict(
        K_ref=t.k_ref if which["REFERENCES"] else None,
        V_ref=t.v_ref if which["REFERENCES"] else None,
        **_mask(t, there=which["MASK"]),
        segments=segments(call.ref_lengths, t.q.device) if which["REFERENCES"] else None,
        ref_bias=t.ref_bias if which["BIAS"] else None,
    )


def _mask(t: AttentionTensors, *, there: bool) -> dict[str, Any]:
    if not there or t.bits is None:
        return {"bits": None, "tile_bits": None}
    flags = tile_bits(t.bits) if t.mask_gate is None else t.mask_gate.tile_bits
    return {"bits": t.bits.contiguous(), "tile_bits": flags.contiguous()}


def _strides(t: AttentionTensors) -> dict[str, int]:
    return {
        **strides("q", t.q), **strides("k", t.k), **strides("v", t.v),
        **strides("k_ref", t.k_ref), **strides("v_ref", t.v_ref), **_mask_strides(t),
    }  # fmt: skip


def _mask_strides(t: AttentionTensors) -> dict[str, int]:
    if t.bits is None or t.bits.shape[0] == 1:
        return {"bits_b": 0, "tile_bits_b": 0}
    rows = t.bits.shape[1]
    return {"bits_b": rows, "tile_bits_b": ceil_div(rows, TILE_ROWS)}


def _gate(gate: GateWeights | None) -> dict[str, Tensor | None]:
    if gate is None:
        return dict.fromkeys(GateWeights._fields)
    return {name: weight.contiguous() for name, weight in gate._asdict().items()}


def attention_backward(
    call: AttentionCall,
    t: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
    *,
    arch: str,
) -> AttentionTensors:
    """The op's gradients; o is the attention before the gate."""
    dout = torch.zeros_like(o) if grads.out is None else grads.out
    turned = with_rotation(call, t)
    dO, delta, dgate = through_gate(call, t, o, dout, grads, arch=arch)
    dq = t.q.new_empty(t.q.shape)
    dk, dv = t.k.new_empty(t.k.shape), t.v.new_empty(t.v.shape)
    queries = partial(queries_launch, call, turned, dO, lse, delta, dq, arch=arch)
    keys = partial(keys_launch, call, turned, dO, lse, delta, dk, dv, arch=arch)
    for kernel, launch in (("queries", queries), ("keys", keys)):
        _tune(kernel, turned.q, launch, arch=arch)
        launch().run()
    dk_ref, dv_ref, dbias = _reference_gradients(call, turned, dO, lse, delta, arch=arch)
    return AttentionTensors(
        q=rotated(dq, call.rope, inverse=True),
        k=rotated(dk, call.rope, inverse=True),
        v=dv,
        k_ref=None if dk_ref is None else rotated(dk_ref, call.ref_rope, inverse=True),
        v_ref=dv_ref,
        bits=None,
        ref_bias=dbias,
        gate=dgate,
    )


def through_gate(
    call: AttentionCall,
    t: AttentionTensors,
    o: Tensor,
    dout: Tensor,
    grads: AttentionGrads,
    *,
    arch: str,
) -> tuple[Tensor, Tensor, GateWeights | None]:
    """dO, delta ``[B, H, N]`` and the gradients of the gate's weights."""
    batch, rows, heads, _ = o.shape
    delta = o.new_empty((batch, heads, rows), dtype=torch.float32)
    if t.gate is None:
        without = partial(delta_launch, o, dout, grads.lse, delta, arch=arch)
        _tune("delta", o, without, arch=arch)
        without().run()
        return dout, delta, None
    gate, dO = t.gate, o.new_empty(o.shape)

    def launch(sums: GateSums | None = None) -> Launch:
        found = empty_sums(gate, o, arch=arch) if sums is None else sums
        return gate_launch(call, gate, o, dout, grads, dO, delta, found, arch=arch)

    _tune("gate_backward", o, launch, arch=arch)
    sums = empty_sums(gate, o, arch=arch)
    launch(sums).run()
    return dO, delta, sums.gradients(gate)


def empty_sums(gate: GateWeights, o: Tensor, *, arch: str) -> GateSums:
    """What gate_backward's programs write their shares to."""
    batch, rows, heads, head_dim = o.shape
    cut = config(arch, "gate_backward", o.element_size(), head_dim)
    parts = min(ceil_div(rows, cut.block_m) * batch * heads, GATE_PROGRAMS)
    shapes = (gate.fc1_weight.shape, gate.fc1_bias.shape, gate.fc2_weight.shape, (1,))
    return GateSums(*(o.new_empty((parts, *shape), dtype=torch.float32) for shape in shapes))


def delta_launch(
    o: Tensor, dout: Tensor, dlse: Tensor | None, delta: Tensor, *, arch: str
) -> Launch:
    """Of gate_backward.attention_delta."""
    batch, rows, heads, head_dim = o.shape
    cut = config(arch, "delta", o.element_size(), head_dim)
    return Launch(
        kernel=gate_backward.attention_delta,
        grid=(ceil_div(rows, cut.block_m), batch * heads),
        arguments=dict(dout=dout, o=o, dlse=dlse, delta=delta, H=heads, N=rows),
        constants=dict(
            D=head_dim, BLOCK_D=power_of_two(head_dim), BLOCK_M=cut.block_m, DLSE=dlse is not None
        ),
        config=cut,
    )


def gate_launch(
    call: AttentionCall,
    gate: GateWeights,
    o: Tensor,
    dout: Tensor,
    grads: AttentionGrads,
    dO: Tensor,
    delta: Tensor,
    sums: GateSums,
    *,
    arch: str,
) -> Launch:
    """Of gate_backward.gate_backward."""
    batch, rows, heads, head_dim = o.shape
    cut = config(arch, "gate_backward", o.element_size(), head_dim)
    tiles, parts = ceil_div(rows, cut.block_m) * batch * heads, len(sums.fc2_bias)
    dgate_sum = None
    if call.gate_mode == "sum":
        zeros = o.new_zeros((batch, heads), dtype=torch.float32)
        dgate_sum = zeros if grads.gate_sum is None else grads.gate_sum
    return Launch(
        kernel=gate_backward.gate_backward,
        grid=(parts,),
        arguments=dict(
            dout=dout, o=o, dlse=grads.lse, dgate_sum=dgate_sum, **_gate(gate), dO_out=dO,
            delta=delta, du_x=sums.du_x, dfc1_bias=sums.fc1_bias, dfc2_weight=sums.fc2_weight,
            dfc2_bias=sums.fc2_bias,
            H=heads, N=rows, tiles=tiles, tiles_each=ceil_div(tiles, max(parts, 1)),
        ),
        constants=dict(
            D=head_dim, BLOCK_D=power_of_two(head_dim), BLOCK_F=power_of_two(head_dim // 2),
            BLOCK_M=cut.block_m, GATE=call.gate_mode, DLSE=grads.lse is not None,
            PRECISION=precision(arch, call.dtype),
        ),
        config=cut,
    )  # fmt: skip


def queries_launch(
    call: AttentionCall,
    t: AttentionTensors,
    dO: Tensor,
    lse: Tensor,
    delta: Tensor,
    dq: Tensor,
    *,
    arch: str,
) -> Launch:
    """Of backward.gradient_of_queries."""
    batch, rows, heads, head_dim = t.q.shape
    cut = _pipelined("queries", (t.k, t.v), arch=arch)
    return Launch(
        kernel=backward.gradient_of_queries,
        grid=(ceil_div(rows, cut.block_m), batch * heads),
        arguments=dict(
            Q=t.q, K=t.k, V=t.v, **_blocks_of(cut, cut.block_n, K=t.k, V=t.v),
            **_references(call, t), dO=dO, lse=lse, delta=delta, dQ=dq,
            **_strides(t), H=heads, N=rows, NK=t.k.shape[1], R=len(call.ref_lengths),
            **_scale(call),
        ),
        constants=dict(
            D=head_dim, BLOCK_D=power_of_two(head_dim), BLOCK_M=cut.block_m, BLOCK_N=cut.block_n,
            BLOCK_R=cut.block_r, **_which(call, t), EXACT=call.dtype == torch.float32,
            PRECISION=precision(arch, call.dtype),
        ),
        config=cut,
    )  # fmt: skip


def _scale(call: AttentionCall) -> dict[str, float]:
    exact = call.dtype == torch.float32
    return {"scale": call.scale, "factor": call.scale if exact else call.scale * math.log2(math.e)}


def keys_launch(
    call: AttentionCall,
    t: AttentionTensors,
    dO: Tensor,
    lse: Tensor,
    delta: Tensor,
    dk: Tensor,
    dv: Tensor,
    *,
    arch: str,
) -> Launch:
    """Of backward.gradient_of_keys, for the video's keys."""
    batch, rows, heads, _ = t.q.shape
    cut = _pipelined("keys", (t.q, dO), arch=arch)
    nothing = ("bits", "tile_bits", "block_starts", "block_ends", "block_segments", "ref_bias")
    return Launch(
        kernel=backward.gradient_of_keys,
        grid=(ceil_div(t.k.shape[1], cut.block_n), batch * heads),
        arguments=dict(
            Q=t.q, K=t.k, V=t.v, dO=dO, **_blocks_of(cut, cut.block_m, Q=t.q, dO=dO),
            lse=lse, delta=delta, dK=dk, dV=dv,
            **dict.fromkeys(nothing), dbias=None, **strides("q", t.q), **strides("k", t.k),
            **strides("v", t.v), bits_b=0, tile_bits_b=0, H=heads, N=rows, NK=t.k.shape[1],
            **_scale(call),
        ),
        constants=dict(
            SAMPLES=1, REFERENCES=False, MASK=False, BIAS=False,
            **_keys_constants(call, t, cut, arch),
        ),
        config=cut,
    )  # fmt: skip


def _keys_constants(
    call: AttentionCall, t: AttentionTensors, cut: Config, arch: str
) -> dict[str, Any]:
    head_dim = t.q.shape[-1]
    return dict(
        D=head_dim, BLOCK_D=power_of_two(head_dim), BLOCK_M=cut.block_m, BLOCK_N=cut.block_n,
        EXACT=call.dtype == torch.float32, PRECISION=precision(arch, call.dtype),
    )  # fmt: skip


def _blocks(lengths: tuple[int, ...], size: int) -> list[tuple[int, int, int]]:
    """(start, end, segment) of blocks of at most ``size`` tokens, none in two segments."""
    blocks, first = [], 0
    for segment, length in enumerate(lengths):
        last = first + length
        blocks += [(i, min(i + size, last), segment) for i in range(first, last, size)]
        first = last
    return blocks


def reference_keys_launch(
    call: AttentionCall,
    t: AttentionTensors,
    dO: Tensor,
    lse: Tensor,
    delta: Tensor,
    dk_ref: Tensor,
    dv_ref: Tensor,
    dbias: Tensor | None,
    *,
    arch: str,
) -> Launch:
    """Of backward.gradient_of_keys, for the references; dbias ``[B or 1, H, blocks]``."""
    assert t.k_ref is not None
    batch, rows, heads, _ = t.q.shape
    cut = _pipelined("reference_keys", (t.q, dO), arch=arch)
    blocks = _blocks(call.ref_lengths, cut.block_n)
    device, which = t.q.device, _which(call, t)
    starts, ends, of_block = (host_integers(tuple(x), device) for x in zip(*blocks, strict=True))
    ref_batch = t.k_ref.shape[0]
    return Launch(
        kernel=backward.gradient_of_keys,
        grid=(len(blocks), ref_batch * heads),
        arguments=dict(
            Q=t.q, K=t.k_ref, V=t.v_ref, dO=dO, **_blocks_of(cut, cut.block_m, Q=t.q, dO=dO),
            lse=lse, delta=delta, dK=dk_ref, dV=dv_ref,
            **_mask(t, there=which["MASK"]),
            block_starts=starts, block_ends=ends, block_segments=of_block,
            ref_bias=t.ref_bias if which["BIAS"] else None, dbias=dbias, **strides("q", t.q),
            **strides("k", t.k_ref), **strides("v", t.v_ref), **_mask_strides(t), H=heads, N=rows,
            NK=t.k_ref.shape[1], **_scale(call),
        ),
        constants=dict(
            SAMPLES=batch if ref_batch == 1 else 1, **which, **_keys_constants(call, t, cut, arch)
        ),
        config=cut,
    )  # fmt: skip


def _reference_gradients(
    call: AttentionCall, t: AttentionTensors, dO: Tensor, lse: Tensor, delta: Tensor, *, arch: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dk_ref (rotated still), dv_ref and dbias; None of what there is none of."""
    if t.k_ref is None or t.v_ref is None:
        return None, None, None
    if not has_references(t) or 0 in t.q.shape:
        no_bias = None if t.ref_bias is None else torch.zeros_like(t.ref_bias)
        return torch.zeros_like(t.k_ref), torch.zeros_like(t.v_ref), no_bias
    dk_ref, dv_ref = t.k_ref.new_empty(t.k_ref.shape), t.v_ref.new_empty(t.v_ref.shape)

    def launch() -> Launch:
        _, sums = _bias_sums(call, t, arch=arch)
        return reference_keys_launch(call, t, dO, lse, delta, dk_ref, dv_ref, sums, arch=arch)

    _tune("reference_keys", t.q, launch, arch=arch)
    blocks, sums = _bias_sums(call, t, arch=arch)
    reference_keys_launch(call, t, dO, lse, delta, dk_ref, dv_ref, sums, arch=arch).run()
    if sums is None or t.ref_bias is None:
        return dk_ref, dv_ref, None
    counts = [sum(s == r for _, _, s in blocks) for r in range(len(call.ref_lengths))]
    dbias = torch.stack([part.sum() for part in sums.split(counts, -1)])
    return dk_ref, dv_ref, dbias.to(t.ref_bias.dtype)


def _bias_sums(
    call: AttentionCall, t: AttentionTensors, *, arch: str
) -> tuple[list[tuple[int, int, int]], Tensor | None]:
    """The blocks of reference keys, and where each leaves its part of the bias's gradient."""
    assert t.k_ref is not None
    cut = config(arch, "reference_keys", t.q.element_size(), t.q.shape[-1])
    blocks = _blocks(call.ref_lengths, cut.block_n)
    if t.ref_bias is None:
        return blocks, None
    shape = (t.k_ref.shape[0], t.q.shape[2], len(blocks))
    return blocks, t.q.new_empty(shape, dtype=torch.float32)
