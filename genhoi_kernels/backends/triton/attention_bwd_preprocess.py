"""dO and delta: back through the gate, or, without one, delta alone."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends.triton.common import head_pointer, load_tile
from genhoi_kernels.backends.triton.flow_gate import flow_gate_backward
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.tuning import autotune, configs
from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors


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
