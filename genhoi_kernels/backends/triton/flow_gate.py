"""The flow gate inside a kernel, and its backward kernel: docs/op.md, "Flow gate" and "Backward".

o ``[BLOCK_M, BLOCK_D]`` are attention rows in float32, columns from D on zero. Weights are padded
the same way when they are loaded: columns from D on, and hidden units from D // 2 on, are zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from genhoi_kernels.backends.triton.arguments import gate_arguments, precision
from genhoi_kernels.backends.triton.common import head_pointer, load_tile, store_tile
from genhoi_kernels.backends.triton.launch import Launch, ceil_div, power_of_two
from genhoi_kernels.backends.triton.tuning import autotune, configs
from genhoi_kernels.flow_gate import GateSums, GateWeights
from genhoi_kernels.spec import AttentionCall, AttentionGrads

GATE_NORM_EPS: tl.constexpr = tl.constexpr(1e-5)

PROGRAMS = 256
"""Programs of the backward kernel at most: each sums its tiles' gradients of the weights."""


@triton.jit
def layer_norm(o, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Give x = (o - mean) / std of each row, zero from column D on, and 1 / std."""
    inside = (tl.arange(0, BLOCK_D) < D)[None, :]
    mean = tl.sum(o, 1) / D
    centred = tl.where(inside, o - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / D + GATE_NORM_EPS)
    return centred * rstd[:, None], rstd


@triton.jit
def load_vector(pointer, start, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Load weights start .. start + BLOCK in float32, zero from SIZE on: ``[1, BLOCK]``."""
    index = start + tl.arange(0, BLOCK)
    return tl.load(pointer + index, mask=index < SIZE, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_fc1(fc1_weight, start, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr):
    """Load rows start .. start + BLOCK_F of W1 ``[D // 2, D]``."""
    f, d = start + tl.arange(0, BLOCK_F)[:, None], tl.arange(0, BLOCK_D)[None, :]
    return tl.load(fc1_weight + f * D + d, mask=(f < D // 2) & (d < D), other=0.0)


@triton.jit
def normal_cdf(u):
    """Compute Phi(u), of which GELU(u) = u Phi(u).

    The fit is that of csrc/cpu/flow_gate.h: 2 Phi(-|u|) exp(u^2 / 2) as a polynomial in
    1 / (1 + c |u|), off by 5e-8 of its value at most. tl.erf branches, and the compiler copies what
    follows into both branches, with shuffles that want the whole warp.
    """
    t = 1.0 / (1.0 + tl.abs(u) * (0.325 * 0.7071067811865476))
    p = t * -0.158139527 + 0.587833285
    p = p * t - 0.568460763
    p = p * t + 0.614742160
    p = p * t - 0.0728278011
    p = p * t + 0.241426930
    p = p * t + 0.170809418
    p = p * t + 0.184675500
    p = p * t - 5.92748511e-5
    tail = 0.5 * p * tl.exp2(u * u * -0.7213475204444817)
    return tl.where(u < 0.0, tail, 1.0 - tail)


@triton.jit
def sigmoid(x):
    """Compute 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * x))


@triton.jit
def gate_logits(
    o,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    dtype: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Compute w2 . GELU(W1 LN(o) + b1) + b2 of each row: ``[BLOCK_M]``.

    W1's product is computed in ``dtype``, BLOCK_F hidden units at a time.
    """
    x, _ = layer_norm(o, D, BLOCK_D)
    gamma, beta = load_vector(norm_weight, 0, D, BLOCK_D), load_vector(norm_bias, 0, D, BLOCK_D)
    n = (x * gamma + beta).to(dtype)
    logits = tl.zeros((o.shape[0],), tl.float32) + tl.load(fc2_bias).to(tl.float32)
    for f in tl.static_range(0, D // 2, BLOCK_F):
        W1 = load_fc1(fc1_weight, f, D, BLOCK_D, BLOCK_F).to(dtype)
        u = tl.dot(n, tl.trans(W1), input_precision=PRECISION)
        u += load_vector(fc1_bias, f, D // 2, BLOCK_F)
        gelu = u * normal_cdf(u)
        logits += tl.sum(gelu * load_vector(fc2_weight, f, D // 2, BLOCK_F), 1)
    return logits


@triton.jit(do_not_specialize=["H", "N", "tiles", "tiles_each"])
def flow_gate_bwd(
    dout,
    o,
    dlse,
    dgate_sum,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    dO_out,
    delta,
    du_x,
    dfc1_bias,
    dfc2_weight,
    dfc2_bias,
    H,
    N,
    tiles,
    tiles_each,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    GATE: tl.constexpr,
    DLSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute dO ``[B, N, H, D]``, delta, and this program's share of sums over all rows.

    A program takes tiles_each of all tiles (of BLOCK_M rows of one head), one after another: the
    sums ``[programs, ...]`` are the same from run to run. du_x is sum du x^T ``[D // 2, D]``, which
    gives the gradients of W1, gamma and beta (GateSums.gradients).
    """
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    gamma, beta = load_vector(norm_weight, 0, D, BLOCK_D), load_vector(norm_bias, 0, D, BLOCK_D)
    b1 = load_vector(fc1_bias, 0, D // 2, BLOCK_F)
    w2 = load_vector(fc2_weight, 0, D // 2, BLOCK_F)
    b2 = tl.load(fc2_bias).to(tl.float32)
    acc_du_x = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
    db1, dw2 = tl.zeros((BLOCK_F,), tl.float32), tl.zeros((BLOCK_F,), tl.float32)
    db2 = 0.0

    sample, tiles_of_head = N.to(tl.int64) * H * D, tl.cdiv(N, BLOCK_M)
    first = tl.program_id(0) * tiles_each
    for tile in range(first, tl.minimum(first + tiles_each, tiles)):
        start = tile % tiles_of_head * BLOCK_M
        b, h = tile // tiles_of_head // H, tile // tiles_of_head % H
        row = start + tl.arange(0, BLOCK_M)
        head = head_pointer(o, b, h, sample, D)
        O = load_tile(head, start, N, H * D, True, BLOCK_M, D, BLOCK_D).to(tl.float32)
        head = head_pointer(dout, b, h, sample, D)
        dout_tile = load_tile(head, start, N, H * D, True, BLOCK_M, D, BLOCK_D).to(tl.float32)

        # The logit, once more.
        x, rstd = layer_norm(O, D, BLOCK_D)
        n = x * gamma + beta
        W1 = load_fc1(fc1_weight, 0, D, BLOCK_D, BLOCK_F).to(tl.float32)
        u = tl.dot(n, tl.trans(W1), input_precision=PRECISION) + b1
        phi = normal_cdf(u)
        if GATE == "token":
            g = sigmoid(tl.sum(u * phi * w2, 1) + b2)
            dlogit = tl.sum(dout_tile * O, 1) * g * (1.0 - g)
            dO = dout_tile * g[:, None]
        else:
            dlogit = tl.zeros((BLOCK_M,), tl.float32) + tl.load(dgate_sum + b * H + h)
            dO = dout_tile
        dlogit = tl.where(row < N, dlogit, 0.0)

        # Its gradient.
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * u * u)
        du = dlogit[:, None] * w2 * (phi + u * density)
        acc_du_x = tl.dot(tl.trans(du), x, acc_du_x, input_precision=PRECISION)
        db2 += tl.sum(dlogit, 0)
        dw2 += tl.sum(dlogit[:, None] * u * phi, 0)
        db1 += tl.sum(du, 0)
        dn = tl.dot(du, W1, input_precision=PRECISION)
        dx = dn * gamma
        mean, along = tl.sum(dx, 1) / D, tl.sum(dx * x, 1) / D
        dO += (dx - mean[:, None] - x * along[:, None]) * rstd[:, None]

        dO = tl.where((d < D)[None, :], dO, 0.0)
        head = head_pointer(dO_out, b, h, sample, D)
        store_tile(head, dO, start, N, H * D, BLOCK_M, D, BLOCK_D, BEHIND_LOOP=False)
        lse_row = (b.to(tl.int64) * H + h) * N + row
        delta_row = tl.sum(dO * O, 1)
        if DLSE:
            delta_row -= tl.load(dlse + lse_row, mask=row < N, other=0.0)
        tl.store(delta + lse_row, delta_row, mask=row < N)

    program = tl.program_id(0)
    index = f[:, None] * D + d[None, :]
    inside = (f < D // 2)[:, None] & (d < D)[None, :]
    tl.store(du_x + program * (D // 2 * D) + index, acc_du_x, mask=inside)
    tl.store(dfc1_bias + program * (D // 2) + f, db1, mask=f < D // 2)
    tl.store(dfc2_weight + program * (D // 2) + f, dw2, mask=f < D // 2)
    tl.store(dfc2_bias + program, db2)


def flow_gate_backward(
    call: AttentionCall,
    gate: GateWeights,
    o: Tensor,
    dout: Tensor,
    grads: AttentionGrads,
    *,
    delta: Tensor,
    arch: str,
) -> tuple[Tensor, GateWeights]:
    """Give dO and the gradients of the gate's weights, and write delta ``[B, H, N]``."""
    dO = o.new_empty(o.shape)

    def launch(sums: GateSums) -> Launch:
        return gate_backward_launch(
            call, gate, o, dout, grads, dO=dO, delta=delta, sums=sums, arch=arch
        )

    autotune.tune_first_call(
        "gate_backward", o, lambda: launch(empty_sums(gate, o, arch=arch)), arch=arch
    )
    sums = empty_sums(gate, o, arch=arch)
    launch(sums).run()
    return dO, sums.gradients(gate)


def empty_sums(gate: GateWeights, o: Tensor, *, arch: str) -> GateSums:
    """Allocate what the programs of ``flow_gate_bwd`` write their shares to."""
    batch, rows, heads, _ = o.shape
    config = configs.config_for(arch, "gate_backward", o)
    programs = min(ceil_div(rows, config.block_m) * batch * heads, PROGRAMS)
    shapes = (gate.fc1_weight.shape, gate.fc1_bias.shape, gate.fc2_weight.shape, (1,))
    return GateSums(*(o.new_empty((programs, *shape), dtype=torch.float32) for shape in shapes))


def gate_backward_launch(
    call: AttentionCall,
    gate: GateWeights,
    o: Tensor,
    dout: Tensor,
    grads: AttentionGrads,
    *,
    dO: Tensor,
    delta: Tensor,
    sums: GateSums,
    arch: str,
) -> Launch:
    """Make the launch of ``flow_gate_bwd``."""
    batch, rows, heads, head_dim = o.shape
    config = configs.config_for(arch, "gate_backward", o)
    tiles, programs = ceil_div(rows, config.block_m) * batch * heads, len(sums.fc2_bias)
    dgate_sum = None
    if call.gate_mode == "sum":
        zeros = o.new_zeros((batch, heads), dtype=torch.float32)
        dgate_sum = zeros if grads.gate_sum is None else grads.gate_sum
    return Launch(
        kernel=flow_gate_bwd,
        grid=(programs,),
        arguments={
            "dout": dout,
            "o": o,
            "dlse": grads.lse,
            "dgate_sum": dgate_sum,
            **gate_arguments(gate),
            "dO_out": dO,
            "delta": delta,
            "du_x": sums.du_x,
            "dfc1_bias": sums.fc1_bias,
            "dfc2_weight": sums.fc2_weight,
            "dfc2_bias": sums.fc2_bias,
            "H": heads,
            "N": rows,
            "tiles": tiles,
            "tiles_each": ceil_div(tiles, max(programs, 1)),
        },
        constants={
            "D": head_dim,
            "BLOCK_D": power_of_two(head_dim),
            "BLOCK_F": power_of_two(head_dim // 2),
            "BLOCK_M": config.block_m,
            "GATE": call.gate_mode,
            "DLSE": grads.lse is not None,
            "PRECISION": precision(arch, call.dtype),
        },
        config=config,
    )
