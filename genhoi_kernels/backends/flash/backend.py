"""A FlashAttention in two calls, merged by log-sum-exp in a Triton kernel.

The first call goes over the video's keys; the second over the reference's, with the rows that the
mask gate gathered. Rotation, merge and flow gate are Triton kernels.

Which FlashAttention: an installed package, or one of torch's two, cuDNN's and FlashAttention 2, in
the order of ``versions.tried``; ``chosen(call).package`` names the one that takes a call.
Gradients are the same from run to run, but for cuDNN's: it takes no call that needs any unless the
environment has GENHOI_CUDNN_BACKWARD=1 and torch.use_deterministic_algorithms does not forbid it.
GENHOI_FLASH in the environment names the only one to be taken.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from genhoi_kernels.backends.flash import torch_own, versions
from genhoi_kernels.backends.flash.adapter import FlashAttention, Generation
from genhoi_kernels.backends.triton import backend as triton
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import Rope
from genhoi_kernels.spec import (
    AttentionCall,
    AttentionGrads,
    AttentionTensors,
    InputGrads,
    RopeCall,
)

DESCRIPTION = (
    "FlashAttention 2, 3 or 4, torch's own or cuDNN's, merged by Triton kernels; bfloat16, float16"
)

_DTYPES = (torch.bfloat16, torch.float16)
_INSTALL = (
    "no FlashAttention is installed, and this torch has none (pip install flash-attn for any GPU "
    "from sm_80 on, flash-attn-4 for sm_90 and sm_100, fa3-fwd for inference on sm_90)"
)


def unavailable() -> str | None:
    """Say why no call can run here, or None."""
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs"
    problem = triton.unavailable()
    if problem is not None:
        return f"its own kernels need Triton and a GPU: {problem}"
    reasons = [torch_own.switched_off(flash) for flash in versions.installed()]
    return None if None in reasons else "; ".join(filter(None, reasons)) or _INSTALL


def description() -> str:
    """Describe the backend, and name the FlashAttentions that are here."""
    names = ", ".join(flash.package for flash in versions.installed())
    return f"{DESCRIPTION}; here: {names}"


def supports(call: AttentionCall | RopeCall) -> str | None:
    """Refuse all but 16-bit GPU tensors, head dims that 8 divides up to 128, positive scales."""
    problem = triton.supports(call)
    if problem is not None or isinstance(call, RopeCall):
        return problem
    if call.dtype not in _DTYPES:
        return f"it takes {', '.join(str(d) for d in _DTYPES)}, not {call.dtype}"
    if call.head_dim % 8:
        return f"head dim {call.head_dim} is not a multiple of 8"
    if not call.scale > 0:
        return f"it takes positive scales, not {call.scale}"
    reasons = list(_refusals(call).values())
    if not reasons:
        only = os.environ[versions.ONLY]
        return f"{versions.ONLY} asks for {only}, which is not here"
    return None if None in reasons else "; ".join(reason for reason in reasons if reason)


def _refusals(call: AttentionCall) -> dict[FlashAttention, str | None]:
    arch = triton.architecture(call.device)
    return {
        flash: flash.refuses(arch, call.dtype, call.head_dim, call.needs_grad)
        for flash in versions.tried(arch)
    }


def chosen(call: AttentionCall) -> FlashAttention:
    """Give the FlashAttention that takes a call which ``supports`` lets pass."""
    return next(flash for flash, reason in _refusals(call).items() if reason is None)


def generation(call: AttentionCall) -> Generation | None:
    """Say which FlashAttention would take this call; None if none would."""
    if unavailable() is not None or supports(call) is not None:
        return None
    return chosen(call).generation


# The launches' modules import triton, which need not be installed: each is imported when called.


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """Run the forward pass of two_pass.py."""
    from genhoi_kernels.backends.flash import two_pass

    return two_pass.attention_forward(
        call, tensors, chosen(call), arch=triton.architecture(call.device)
    )


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> InputGrads:
    """Run the backward pass of two_pass.py; a gradient of lse takes the Triton kernels'."""
    from genhoi_kernels.backends.flash import two_pass

    if grads.lse is not None:  # not every FlashAttention has a place for it
        return triton.attention_backward(call, tensors, o, lse, grads)
    arch = triton.architecture(call.device)
    return two_pass.attention_backward(call, tensors, o, lse, grads, chosen(call), arch=arch)


norm_rope_forward = triton.norm_rope_forward
norm_rope_backward = triton.norm_rope_backward


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """Rotate by the Triton kernel."""
    return triton.apply_rope(x, rope, inverse)
