"""The strongest peers: two calls of PyTorch's own attention, merged by their log-sum-exps.

All rows attend to the video's keys; the rows that see the reference, gathered, attend to its keys:

    L = log(exp L1 + exp L2);  O = exp(L1 - L) O1 + exp(L2 - L) O2

Given O and L, the two backward passes are independent: P = exp(S - L) needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CUDNN", "FLASH", "Attention", "default_attention", "gathered_attention"]

aten = torch.ops.aten


class _Part(NamedTuple):
    """Attention ``[1, H, N, D]``, its log-sum-exp ``[1, H, N]``, and what the backward wants."""

    out: Tensor
    lse: Tensor
    rest: tuple[Any, ...]


class Attention(NamedTuple):
    """One of PyTorch's kernels that hand out a log-sum-exp.

    kernel: its name in tables. attend: ``(Q, K, V)`` to a `_Part`. attend_backward: ``(dout, Q, K,
    V, part)`` to dQ, dK, dV, where the part's out and lse may be those of more keys than K.
    """

    kernel: str
    attend: Callable[[Tensor, Tensor, Tensor], _Part]
    attend_backward: Callable[
        [Tensor, Tensor, Tensor, Tensor, _Part], tuple[Tensor, Tensor, Tensor]
    ]


def gathered_attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    K_ref: Tensor,
    V_ref: Tensor,
    rows: Tensor,
    attention: Attention | None = None,
) -> Tensor:
    """Compute attention in which only `rows` see the reference; differentiable.

    Args:
        Q, K, V: ``[1, H, N, D]``. K_ref, V_ref: ``[1, H, M, D]``.
        rows: int64, which queries see the reference.
        attention: what each of the two calls runs; None for `default_attention`.

    Returns:
        ``[1, H, N, D]``.
    """
    attention = attention or default_attention(Q.device, Q.dtype)
    if torch.is_grad_enabled() and Q.requires_grad:
        out: Tensor = _Gathered.apply(attention, Q, K, V, K_ref, V_ref, rows)
        return out
    return _merged(attention, Q, K, V, K_ref, V_ref, rows)[0]


def default_attention(device: torch.device, dtype: torch.dtype) -> Attention:
    """Return PyTorch's flash attention, or for float32 on CUDA its efficient attention."""
    if device.type == "cpu":
        return _ON_CPU
    return FLASH if dtype != torch.float32 else _EFFICIENT


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attention: Attention, *args: Tensor) -> Tensor:
        out, lse, rests = _merged(attention, *args)
        ctx.save_for_backward(*args, out, lse)
        ctx.attention, ctx.rests = attention, rests
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        Q, K, V, K_ref, V_ref, rows, out, lse = ctx.saved_tensors
        (dout,), (first, second) = grads, ctx.rests
        back = ctx.attention.attend_backward
        dQ, dK, dV = back(dout, Q, K, V, _Part(out, lse, first))
        if second is None:
            return None, dQ, dK, dV, torch.zeros_like(K_ref), torch.zeros_like(V_ref), None
        dout, Q, out, lse = (x.index_select(2, rows) for x in (dout, Q, out, lse))
        dQ_rows, dK_ref, dV_ref = back(dout, Q, K_ref, V_ref, _Part(out, lse, second))
        dQ.index_add_(2, rows, dQ_rows)
        return None, dQ, dK, dV, dK_ref, dV_ref, None


def _merged(
    attention: Attention,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    K_ref: Tensor,
    V_ref: Tensor,
    rows: Tensor,
) -> tuple[Tensor, Tensor, tuple[Any, Any]]:
    out, lse, rest = attention.attend(Q, K, V)
    if len(rows) == 0 or K_ref.shape[2] == 0:
        return out, lse, (rest, None)
    second = attention.attend(Q.index_select(2, rows), K_ref, V_ref)
    first_lse, first_out = lse.index_select(2, rows), out.index_select(2, rows)
    both = torch.logaddexp(first_lse, second.lse)
    merged = first_out * torch.exp(first_lse - both)[..., None]
    merged += second.out * torch.exp(second.lse - both)[..., None]
    out.index_copy_(2, rows, merged.to(out.dtype))
    lse.index_copy_(2, rows, both)
    return out, lse, (rest, second.rest)


# ------------------------------------------------------------------ kernels with a log-sum-exp

Gradients = tuple[Tensor, Tensor, Tensor]


def _cpu(Q: Tensor, K: Tensor, V: Tensor) -> _Part:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(Q, K, V)
    return _Part(out, lse, ())


def _cpu_backward(dout: Tensor, Q: Tensor, K: Tensor, V: Tensor, part: _Part) -> Gradients:
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    dQ, dK, dV = backward(dout, Q, K, V, part.out, part.lse, 0.0, False)
    return dQ, dK, dV


def _flash(Q: Tensor, K: Tensor, V: Tensor) -> _Part:
    out, lse, *rest = aten._scaled_dot_product_flash_attention(Q, K, V)
    return _Part(out, lse, tuple(rest[:-1]))


def _flash_backward(dout: Tensor, Q: Tensor, K: Tensor, V: Tensor, part: _Part) -> Gradients:
    *sizes, seed, offset = part.rest
    backward = aten._scaled_dot_product_flash_attention_backward
    dQ, dK, dV = backward(dout, Q, K, V, part.out, part.lse, *sizes, 0.0, False, seed, offset)
    return dQ, dK, dV


def _efficient(Q: Tensor, K: Tensor, V: Tensor) -> _Part:
    out, lse, *rest = aten._scaled_dot_product_efficient_attention(Q, K, V, None, True)
    return _Part(out, lse[..., : Q.shape[2]], tuple(rest))


def _efficient_backward(dout: Tensor, Q: Tensor, K: Tensor, V: Tensor, part: _Part) -> Gradients:
    lse = F.pad(part.lse, (0, -part.lse.shape[2] % 32))  # as the forward kernel aligns it
    backward = aten._scaled_dot_product_efficient_attention_backward
    wanted = [True, True, True, False]
    dQ, dK, dV, _ = backward(dout, Q, K, V, None, part.out, lse, *part.rest, 0.0, wanted)
    return dQ, dK, dV


def _cudnn(Q: Tensor, K: Tensor, V: Tensor) -> _Part:
    out, lse, *rest = aten._scaled_dot_product_cudnn_attention(Q, K, V, None, True)
    # [1, H, N, 1] or [1, H, N], as the version of torch has it; backward wants its own form back.
    return _Part(out, lse.reshape(lse.shape[:3]), (lse.dim(), *rest))


def _cudnn_backward(dout: Tensor, Q: Tensor, K: Tensor, V: Tensor, part: _Part) -> Gradients:
    dims, first_query, first_key, rows, keys, seed, offset, _ = part.rest
    # torch caches cuDNN's graphs by the layout of Q, K and V alone: all else keeps to one layout.
    out, lse, dout = part.out.contiguous(), part.lse.contiguous(), dout.contiguous()
    lse = lse[..., None] if dims == 4 else lse
    backward = aten._scaled_dot_product_cudnn_attention_backward
    dQ, dK, dV = backward(
        dout, Q, K, V, out, lse, seed, offset, None, first_query, first_key, rows, keys, 0.0, False
    )
    return dQ, dK, dV


_ON_CPU = Attention("flash", _cpu, _cpu_backward)
FLASH = Attention("flash", _flash, _flash_backward)
_EFFICIENT = Attention("efficient", _efficient, _efficient_backward)
CUDNN = Attention("cuDNN", _cudnn, _cudnn_backward)
