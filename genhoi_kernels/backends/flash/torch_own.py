"""torch's own FlashAttention 2, and cuDNN's attention by way of torch."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels.backends.flash.adapter import INTERPRETER, FlashAttention, Generation

CUDNN_BACKWARD = "GENHOI_CUDNN_BACKWARD"
"""Environment variable: "1" lets cuDNN train, whose gradients differ a little from run to run."""

aten: Any = torch.ops.aten
"""Where torch's own are called; tests put stand-ins here."""


class TorchFlash:
    """torch's own FlashAttention 2: sm_80 and later, head dims that 8 divides, up to 256.

    ``torch.nn.attention.activate_flash_attention_impl`` puts another behind the same operators.
    """

    generation = Generation.TORCH_FLASH
    package = "torch's FlashAttention"
    row_multiple = 1

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Say why it can't take such a call on such a GPU, or None."""
        return switched_off(self) or _needs_gpu(self.package, arch)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Compute the output and lse of q over k and v."""
        out, lse, *_ = aten._flash_attention_forward(
            q,
            k,
            v,
            cum_seq_q=None,
            cum_seq_k=None,
            max_q=q.shape[1],
            max_k=k.shape[1],
            dropout_p=0.0,
            is_causal=False,
            return_debug_mask=False,
            scale=scale,
        )
        return out, lse

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute dq, dk and dv, the same from run to run."""
        unread = torch.zeros(2, dtype=torch.uint64, device=q.device)  # dropout's random state
        with _deterministic():
            dq, dk, dv = aten._flash_attention_backward(
                dout,
                q,
                k,
                v,
                out,
                lse,
                cum_seq_q=None,
                cum_seq_k=None,
                max_q=q.shape[1],
                max_k=k.shape[1],
                dropout_p=0.0,
                is_causal=False,
                rng_state=unread,
                unused=unread[:0],
                scale=scale,
            )
        return dq, dk, dv


class TorchCudnn:
    """cuDNN's attention, by way of torch: sm_80 and later, head dims that 8 divides, up to 128.

    cuDNN makes a plan for each shape, which takes it long: hence ``row_multiple``. Its gradients
    are not the same from run to run, and there is no asking for it.
    """

    generation = Generation.TORCH_CUDNN
    package = "torch's cuDNN attention"
    row_multiple = 256

    def __init__(self) -> None:
        self._for_one = TorchFlash()  # cuDNN refuses a single key, and on some GPUs a single row

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Say why it can't take such a call on such a GPU, or None."""
        if head_dim > 128:
            return f"{self.package} takes head dims up to 128, not {head_dim}"
        if needs_grad and os.environ.get(CUDNN_BACKWARD) != "1":
            return (
                f"{self.package} has gradients that differ from run to run, and this call needs "
                f"some ({CUDNN_BACKWARD}=1 allows it)"
            )
        if needs_grad and _only_deterministic():
            return (
                f"{self.package} has gradients that differ from run to run, and "
                f"torch.use_deterministic_algorithms is on"
            )
        if needs_grad and os.environ.get("TORCH_CUDNN_SDPA_AVOID_RECOMPILE") == "1":
            return f"{self.package} wants another lse with TORCH_CUDNN_SDPA_AVOID_RECOMPILE=1"
        return switched_off(self) or _needs_gpu(self.package, arch)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Compute the output and lse of q over k and v."""
        if 1 in (q.shape[1], k.shape[1]):
            return self._for_one.forward(q, k, v, scale)
        Q, K, V = (x.transpose(1, 2) for x in (q, k, v))
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(
            Q, K, V, attn_bias=None, compute_log_sumexp=True, scale=scale
        )
        # lse: [B, H, rows, 1], in older versions [B, H, rows].
        return out.transpose(1, 2), lse.reshape(Q.shape[:3])

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute dq, dk and dv; their last bits differ from run to run."""
        if 1 in (q.shape[1], k.shape[1]):
            return self._for_one.backward(dout, q, k, v, out, lse, scale)
        # torch finds a plan again by the strides of q, k and v alone (2.11), and the plan has those
        # of the others in it: they have to be the same in every call.
        Q, K, V = (x.transpose(1, 2) for x in (q, k, v))
        O, dO = (x.contiguous().transpose(1, 2) for x in (out, dout))
        unread = torch.zeros((), dtype=torch.int64, device=q.device)  # dropout's random state
        gradients = aten._scaled_dot_product_cudnn_attention_backward(
            dO,
            Q,
            K,
            V,
            O,
            lse.contiguous()[..., None],
            philox_seed=unread,
            philox_offset=unread,
            attn_bias=None,
            cum_seq_q=None,
            cum_seq_k=None,
            max_q=q.shape[1],
            max_k=k.shape[1],
            dropout_p=0.0,
            is_causal=False,
            scale=scale,
        )
        dq, dk, dv = (x.transpose(1, 2) for x in gradients)
        return dq, dk, dv


def torch_has_flash() -> bool:
    """Say whether this torch was built for CUDA, with FlashAttention, and has a GPU."""
    built = torch.version.cuda is not None and torch.backends.cuda.is_flash_attention_available()
    return built and torch.cuda.is_available()


def cudnn_version() -> int:
    """Give the version of torch's cuDNN, 91501 for 9.15.1; 0 if there is none."""
    try:
        return torch.backends.cudnn.version() or 0
    except RuntimeError:  # it is not the one that torch was built for
        return 0


def switched_off(flash: FlashAttention) -> str | None:
    """Say that it takes no call because of torch's switches for it, or None."""
    switches = torch.backends.cuda
    if isinstance(flash, TorchFlash) and not switches.flash_sdp_enabled():
        return f"{flash.package} is switched off (torch.backends.cuda.enable_flash_sdp)"
    if isinstance(flash, TorchCudnn) and not switches.cudnn_sdp_enabled():
        return f"{flash.package} is switched off (torch.backends.cuda.enable_cudnn_sdp)"
    return None


def _only_deterministic() -> bool:
    """Say whether torch is to refuse what is not deterministic."""
    return (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )


def _needs_gpu(package: str, arch: str) -> str | None:
    """Refuse the CPU tensors of Triton's interpreter, unless stand-ins take the call."""
    if arch == INTERPRETER and aten is torch.ops.aten:
        return f"{package} needs a GPU"
    return None


_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Turn on torch's deterministic algorithms, in the block alone.

    torch's FlashAttention has no other way to be asked. The setting is the process's: another
    thread can meet it while the block runs, which is a launch's time; two blocks at once would
    restore each other's. ``torch.use_deterministic_algorithms`` would set Inductor's, too. Memory
    is not filled with NaN for it, unless the caller wants that himself.
    """
    with _ONE_AT_A_TIME:
        enabled = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        fills = torch._C._get_deterministic_fill_uninitialized_memory()
        torch._C._set_deterministic_fill_uninitialized_memory(fills and enabled)
        torch._C._set_deterministic_algorithms(True, warn_only=False)
        try:
            yield
        finally:
            torch._C._set_deterministic_fill_uninitialized_memory(fills)
            torch._C._set_deterministic_algorithms(enabled, warn_only=warns)
