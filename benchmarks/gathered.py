"""The strongest peer: two calls of PyTorch's own attention, merged by their log-sum-exps.

All rows attend to the video's keys; the rows that see the reference, gathered, attend to its keys:

    L = log(exp L1 + exp L2);  O = exp(L1 - L) O1 + exp(L2 - L) O2

Given O and L, the two backward passes are independent: P = exp(S - L) needs nothing else.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gathered_attention"]

aten = torch.ops.aten


class _Part(NamedTuple):
    """Attention ``[1, H, N, D]``, its log-sum-exp ``[1, H, N]``, and what the backward wants."""

    out: Tensor
    lse: Tensor
    rest: tuple[Any, ...]


def gathered_attention(
    Q: Tensor, K: Tensor, V: Tensor, K_ref: Tensor, V_ref: Tensor, rows: Tensor
) -> Tensor:
    """Attention in which only `rows` see the reference; differentiable.

    Args:
        Q, K, V: ``[1, H, N, D]``. K_ref, V_ref: ``[1, H, M, D]``.
        rows: int64, which queries see the reference.

    Returns:
        ``[1, H, N, D]``.
    """
    if torch.is_grad_enabled() and Q.requires_grad:
        out: Tensor = _Gathered.apply(Q, K, V, K_ref, V_ref, rows)
        return out
    return _merged(Q, K, V, K_ref, V_ref, rows)[0]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> Tensor:
        out, lse, rests = _merged(*args)
        ctx.save_for_backward(*args, out, lse)
        ctx.rests = rests
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        Q, K, V, K_ref, V_ref, rows, out, lse = ctx.saved_tensors
        (dout,), (first, second) = grads, ctx.rests
        dQ, dK, dV = _attend_backward(dout, Q, K, V, _Part(out, lse, first))
        if second is None:
            return dQ, dK, dV, torch.zeros_like(K_ref), torch.zeros_like(V_ref), None
        dout, Q, out, lse = (x.index_select(2, rows) for x in (dout, Q, out, lse))
        dQ_rows, dK_ref, dV_ref = _attend_backward(dout, Q, K_ref, V_ref, _Part(out, lse, second))
        dQ.index_add_(2, rows, dQ_rows)
        return dQ, dK, dV, dK_ref, dV_ref, None


def _merged(
    Q: Tensor, K: Tensor, V: Tensor, K_ref: Tensor, V_ref: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, tuple[Any, Any]]:
    out, lse, rest = _attend(Q, K, V)
    if len(rows) == 0 or K_ref.shape[2] == 0:
        return out, lse, (rest, None)
    second = _attend(Q.index_select(2, rows), K_ref, V_ref)
    first_lse, first_out = lse.index_select(2, rows), out.index_select(2, rows)
    both = torch.logaddexp(first_lse, second.lse)
    merged = first_out * torch.exp(first_lse - both)[..., None]
    merged += second.out * torch.exp(second.lse - both)[..., None]
    out.index_copy_(2, rows, merged.to(out.dtype))
    lse.index_copy_(2, rows, both)
    return out, lse, (rest, second.rest)


# PyTorch's own kernels that hand out a log-sum-exp: one on the CPU; on CUDA flash attention, and
# the memory-efficient one for float32.


def _attend(Q: Tensor, K: Tensor, V: Tensor) -> _Part:
    if Q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(Q, K, V)
        return _Part(out, lse, ())
    if Q.dtype != torch.float32:
        out, lse, *rest = aten._scaled_dot_product_flash_attention(Q, K, V)
        return _Part(out, lse, tuple(rest[:-1]))
    out, lse, *rest = aten._scaled_dot_product_efficient_attention(Q, K, V, None, True)
    return _Part(out, lse[..., : Q.shape[2]], tuple(rest))


def _attend_backward(
    dout: Tensor, Q: Tensor, K: Tensor, V: Tensor, part: _Part
) -> tuple[Tensor, Tensor, Tensor]:
    out, lse, rest = part
    if Q.device.type == "cpu":
        cpu = aten._scaled_dot_product_flash_attention_for_cpu_backward
        dQ, dK, dV = cpu(dout, Q, K, V, out, lse, 0.0, False)
    elif Q.dtype != torch.float32:
        *sizes, seed, offset = rest
        flash = aten._scaled_dot_product_flash_attention_backward
        dQ, dK, dV = flash(dout, Q, K, V, out, lse, *sizes, 0.0, False, seed, offset)
    else:
        lse = F.pad(lse, (0, -lse.shape[2] % 32))  # as the forward kernel aligns it
        efficient = aten._scaled_dot_product_efficient_attention_backward
        wanted = [True, True, True, False]
        dQ, dK, dV, _ = efficient(dout, Q, K, V, None, out, lse, *rest, 0.0, wanted)
    return dQ, dK, dV
