"""Installed FlashAttentions, 2, 3 and 4, each called its own way."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genhoi_kernels.backends.flash.adapter import INTERPRETER, Generation

_NO_BACKWARD = "FLASHATTENTION_DISABLE_BACKWARD"
_NO_FLOAT16 = "FLASHATTENTION_DISABLE_FP16"

# What FlashAttention 2 could do besides, and is not asked for.
_PLAIN_ATTENTION: dict[str, Any] = {
    "dropout_p": 0.0,
    "causal": False,
    "window_size_left": -1,
    "window_size_right": -1,
    "softcap": 0.0,
    "alibi_slopes": None,
}


class FlashAttention2:
    """Package flash-attn, 2.7 or newer: sm_80 and later, head dims that 8 divides, up to 256."""

    generation = Generation.FLASH_2
    row_multiple = 1
    package = "flash-attn"

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Say why it can't take such a call on such a GPU, or None."""
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Compute the output and lse of q over k and v."""
        out, lse, *_ = self._module._flash_attn_forward(
            q, k, v, softmax_scale=scale, return_softmax=False, **_PLAIN_ATTENTION
        )
        return out, lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute dq, dk and dv, the same from run to run."""
        dq, dk, dv = _like(q), _like(k), _like(v)
        self._module._flash_attn_backward(
            dout,
            q,
            k,
            v,
            out,
            lse,
            dq,
            dk,
            dv,
            softmax_scale=scale,
            deterministic=True,
            rng_state=None,
            **_PLAIN_ATTENTION,
        )
        return dq, dk, dv


class _ForwardArguments3(NamedTuple):
    """The arguments of FlashAttention 3's forward up to ``causal``, in every version's order."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_new: None = None
    v_new: None = None
    qv: None = None
    out: None = None
    cu_seqlens_q: None = None
    cu_seqlens_k: None = None
    cu_seqlens_k_new: None = None
    seqused_q: None = None
    seqused_k: None = None
    max_seqlen_q: None = None
    max_seqlen_k: None = None
    page_table: None = None
    kv_batch_idx: None = None
    leftpad_k: None = None
    rotary_cos: None = None
    rotary_sin: None = None
    seqlens_rotary: None = None
    q_descale: None = None
    k_descale: None = None
    v_descale: None = None
    softmax_scale: float | None = None
    causal: bool = False


class _BackwardArguments3(NamedTuple):
    """The arguments of FlashAttention 3's backward up to ``causal``, in every version's order."""

    dout: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    softmax_lse: Tensor
    cu_seqlens_q: None = None
    cu_seqlens_k: None = None
    seqused_q: None = None
    seqused_k: None = None
    max_seqlen_q: None = None
    max_seqlen_k: None = None
    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None
    softmax_scale: float | None = None
    causal: bool = False


class FlashAttention3:
    """Module flash_attn_interface, or fa3_fwd_interface of a package without a backward: sm_90."""

    generation = Generation.FLASH_3
    row_multiple = 1

    def __init__(self, module: ModuleType, package: str, flags: dict[str, Any]) -> None:
        self._module, self._flags, self.package = module, flags, package

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Say why it can't take such a call on such a GPU, or None."""
        if arch not in ("sm_90", INTERPRETER):
            return f"{self.package} is for sm_90, not for {arch}"
        if needs_grad and self._flags.get(_NO_BACKWARD):
            return f"{self.package} has no backward pass, and this call needs gradients"
        if dtype == torch.float16 and self._flags.get(_NO_FLOAT16):
            return f"{self.package} was built without torch.float16"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Compute the output and lse of q over k and v."""
        out, lse, *_ = self._module._flash_attn_forward(
            *_ForwardArguments3(q, k, v, softmax_scale=scale)
        )
        return out, lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute dq, dk and dv, the same from run to run."""
        dq, dk, dv = _like(q), _like(k), _like(v)
        arguments = _BackwardArguments3(
            dout, q, k, v, out, lse, dq=dq, dk=dk, dv=dv, softmax_scale=scale
        )
        self._module._flash_attn_backward(*arguments, deterministic=True)
        return dq, dk, dv


class FlashAttention4:
    """Package flash-attn-4 (flash_attn.cute): sm_90, sm_100 to sm_110."""

    generation = Generation.FLASH_4
    row_multiple = 1
    package = "flash-attn-4"

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Say why it can't take such a call on such a GPU, or None."""
        if arch not in ("sm_90", "sm_100", "sm_103", "sm_110", INTERPRETER):
            return f"{self.package} is for sm_90 and sm_100 to sm_110, not for {arch}"
        if arch not in ("sm_90", INTERPRETER) and head_dim > 128 and head_dim != 256:
            return f"{self.package} takes head dims up to 128, and 256, on {arch}, not {head_dim}"
        return None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Compute the output and lse of q over k and v."""
        out, lse, *_ = self._module._flash_attn_fwd(
            q, k, v, softmax_scale=scale, causal=False, return_lse=True
        )
        return out, lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute dq, dk and dv, the same from run to run."""
        dq, dk, dv, *_ = self._module._flash_attn_bwd(
            q, k, v, out, dout, lse, softmax_scale=scale, causal=False, deterministic=True
        )
        return dq, dk, dv


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
