"""Every form of the kernels that a GPU may be given, described for compilation without one.

They are made of the very launches that run, on tensors without memory (torch's "meta" device).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.static.variant import Variant
from genhoi_kernels.backends.triton import (
    attention_bwd_dkdv,
    attention_bwd_dq,
    attention_bwd_preprocess,
    attention_fwd,
    flow_gate,
    norm_rope,
)
from genhoi_kernels.backends.triton.attention_bwd_common import Upstream
from genhoi_kernels.backends.triton.launch import Launch, power_of_two
from genhoi_kernels.backends.triton.tuning.configs import ARCHS, KERNELS
from genhoi_kernels.flow_gate import GateSums, GateWeights, gate_shapes
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.rope import HeadSlidingRope, VideoRope
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors

META = torch.device("meta")
# Head dims compiled: those of entries, and 96, which is padded.
HEAD_DIMS = (64, 96, 128)
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
# Whether a kernel comes bare, with everything that can be asked of it, or both.
EXTRAS = {
    "forward": (False, True),
    "queries": (False, True),
    "keys": (False,),
    "reference_keys": (True,),
    "gate_backward": (True,),
    "delta": (True,),
}
_POINTERS = {**DTYPES, torch.int32: "i32"}

# 480p, 81 frames, two references; one head is as good as many.
GRID, REF_GRIDS, HEADS = (21, 30, 52), ((32, 32), (16, 16)), 12
TOKENS, REF_TOKENS = 32760, 1280


def variants() -> list[Variant]:
    """List the table's variants, in bfloat16; float16 differs in the names of instructions only.

    float32 is not among them: each product is made of three, which spills registers. It is there
    for tests and small models, and not fast.
    """
    return [
        variant
        for arch in ARCHS
        for head_dim in HEAD_DIMS
        for variant in variants_of(arch, torch.bfloat16, head_dim)
    ]


def variants_of(arch: str, dtype: torch.dtype, head_dim: int) -> Iterator[Variant]:
    """List each kernel, bare and with everything that can be asked of it."""
    for kernel in KERNELS:
        for extras in EXTRAS[kernel]:
            yield from kernel_variants(kernel, arch, dtype, head_dim, extras=extras)
    yield from prologue_variants(arch, dtype, head_dim)


def kernel_variants(
    kernel: str, arch: str, dtype: torch.dtype, head_dim: int, *, extras: bool
) -> Iterator[Variant]:
    """List an attention kernel's variants.

    Extras are references of two objects, mask, bias, token gate and dlse.
    """
    launch = _launch(kernel, arch, dtype, head_dim, extras=extras)
    name = f"{kernel}+extras" if extras and len(EXTRAS[kernel]) > 1 else kernel
    # The loop of reference_keys skips tiles of queries, and is not pipelined for it.
    loop = kernel in ("forward", "queries", "keys")
    products = loop or kernel == "reference_keys"
    yield _variant(name, arch, dtype, head_dim, launch, main_loop=loop, products=products)


def _launch(kernel: str, arch: str, dtype: torch.dtype, head_dim: int, *, extras: bool) -> Launch:
    call, t = _example(dtype, head_dim, extras=extras)
    o, lse = torch.empty_like(t.q), _rows(t)
    grads = AttentionGrads(o, lse if extras else None, None)
    upstream = Upstream(o, lse, lse)
    if kernel == "forward":
        result, gate_sums = attention_fwd.empty_result(call, t, arch=arch)
        return attention_fwd.forward_launch(call, t, result, gate_sums, arch=arch)
    if kernel == "queries":
        return attention_bwd_dq.dq_launch(call, t, upstream, o, arch=arch)
    if kernel == "keys":
        return attention_bwd_dkdv.dkdv_launch(call, t, upstream, t.k, t.v, arch=arch)
    if kernel == "reference_keys":
        assert t.k_ref is not None
        dbias = torch.empty(1, HEADS, 1, device=META)
        return attention_bwd_dkdv.reference_dkdv_launch(
            call, t, upstream, t.k_ref, t.k_ref, dbias, arch=arch
        )
    if kernel == "gate_backward":
        assert t.gate is not None
        sums = GateSums(*(torch.empty(1, 1, device=META) for _ in range(4)))
        return flow_gate.gate_backward_launch(
            call, t.gate, o, o, grads, dO=o, delta=lse, sums=sums, arch=arch
        )
    return attention_bwd_preprocess.preprocess_launch(o, o, grads.lse, lse, arch=arch)


def prologue_variants(arch: str, dtype: torch.dtype, head_dim: int) -> Iterator[Variant]:
    """List norm and rotation of the video's tokens, of a reference's, and the way back."""
    x = torch.empty(1, TOKENS, HEADS, head_dim, device=META, dtype=dtype)
    ref = torch.empty(1, REF_TOKENS, HEADS, head_dim, device=META, dtype=dtype)
    weight = torch.empty(HEADS * head_dim, device=META)
    rope = VideoRope(GRID, head_dim=head_dim)
    ref_rope = HeadSlidingRope(GRID, REF_GRIDS, head_dim=head_dim, num_heads=HEADS)
    parts = torch.empty(norm_rope.BACKWARD_PROGRAMS, HEADS * head_dim, device=META)
    launches = {
        "norm_rope": norm_rope.forward_launch(x, x, weight, rope, eps=1e-6, inverse=False),
        "rope": norm_rope.forward_launch(ref, ref, None, ref_rope, eps=0.0, inverse=False),
        "norm_rope_backward": norm_rope.backward_launch(
            x, x.flatten(2), weight, x, parts, rope, eps=1e-6
        ),
    }
    for name, launch in launches.items():
        yield _variant(name, arch, dtype, head_dim, launch)


def _example(
    dtype: torch.dtype, head_dim: int, *, extras: bool
) -> tuple[AttentionCall, AttentionTensors]:
    """Make a call of the size of a real clip; q, k and v are chunks of one projection."""
    fused = torch.empty(1, TOKENS, 3, HEADS, head_dim, device=META, dtype=dtype)
    q, k, v = fused.unbind(2)
    ref = torch.empty(1, REF_TOKENS, HEADS, head_dim, device=META, dtype=dtype)
    lengths = tuple(h * w for h, w in REF_GRIDS)
    call = AttentionCall(
        device=META,
        dtype=dtype,
        head_dim=head_dim,
        ref_lengths=lengths if extras else (),
        rope=None,
        ref_rope=None,
        gate_mode="token" if extras else "none",
        scale=head_dim**-0.5,
        needs_grad=extras,
    )
    if not extras:
        return call, AttentionTensors(q, k, v, None, None, None, None, None)
    gate = GateWeights(
        *(torch.empty(shape, device=META) for shape in gate_shapes(head_dim).values())
    )
    bits = torch.empty(1, TOKENS, device=META, dtype=torch.int32)
    tiles = torch.empty(1, -(-TOKENS // 64), device=META, dtype=torch.int32)
    mask_gate = MaskGate(bits, tiles, bits, torch.zeros(1, dtype=torch.int64))
    bias = torch.empty(len(lengths), device=META)
    return call, AttentionTensors(q, k, v, ref, ref, bits, bias, gate, mask_gate)


def _rows(t: AttentionTensors) -> Tensor:
    batch, rows, heads, _ = t.q.shape
    return torch.empty(batch, heads, rows, device=META)


def _variant(
    name: str,
    arch: str,
    dtype: torch.dtype,
    head_dim: int,
    launch: Launch,
    *,
    main_loop: bool = False,
    products: bool = False,
) -> Variant:
    """Describe a launch with its arguments specialised as Triton would."""
    constants = dict(launch.constants)
    kept = launch.kernel.params
    signature: dict[str, str] = {}
    aligned: list[str] = []
    for parameter in kept:
        argument = parameter.name
        if argument in constants or launch.arguments[argument] is None:
            signature[argument] = "constexpr"
            constants.setdefault(argument, None)
            continue
        value = launch.arguments[argument]
        signature[argument] = _type(value)
        if isinstance(value, Tensor) or (
            isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
        ):
            aligned.append(argument)
    options: dict[str, Any] = dict(launch.compile_options())
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    config = launch.config
    return Variant(
        name=name,
        arch=arch,
        kernel=launch.kernel,
        signature=signature,
        constexprs=constants,
        divisible_by_16=tuple(aligned),
        num_warps=warps,
        num_stages=stages,
        extra_options=options,
        dtype=DTYPES[dtype],
        head_dim=head_dim,
        tile=(config.block_m, config.block_n, power_of_two(head_dim)) if products else None,
        main_loop=main_loop,
        how=config.how,
    )


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + _POINTERS[value.dtype]
    if hasattr(value, "block_shape"):  # a tensor descriptor
        return f"tensordesc<{_POINTERS[value.base.dtype]}{list(value.block_shape)}>"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
