"""A FlashAttention in two calls, merged by log-sum-exp in a Triton kernel.

The first call goes over the video's keys; the second over the reference's, with the rows that the
mask gate gathered. Rotation, merge and flow gate are Triton kernels.

Which FlashAttention: an installed package, or one of torch's two, cuDNN's and FlashAttention 2, in
the order of ``flash_versions.tried``; ``chosen(call).package`` names the one that takes a call.
Gradients are the same from run to run, but for cuDNN's: it takes no call that needs any unless the
environment has GENHOI_CUDNN_BACKWARD=1 and torch.use_deterministic_algorithms does not forbid it.
GENHOI_FLASH in the environment names the only one to be taken.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from genhoi_kernels.backends.flash import versions as flash_versions
from genhoi_kernels.backends.triton import backend as triton
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import Rope
from genhoi_kernels.spec import AttentionCall, AttentionGrads, AttentionTensors, RopeCall

DESCRIPTION = (
    "FlashAttention 2, 3 or 4, torch's own or cuDNN's, merged by Triton kernels; bfloat16, float16"
)

_DTYPES = (torch.bfloat16, torch.float16)
_INSTALL = (
    "no FlashAttention is installed, and this torch has none (pip install flash-attn for any GPU "
    "from sm_80 on, flash-attn-4 for sm_90 and sm_100, fa3-fwd for inference on sm_90)"
)


def unavailable() -> str | None:
    """Why no call can run here, or None."""
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs"
    problem = triton.unavailable()
    if problem is not None:
        return f"its own kernels need Triton and a GPU: {problem}"
    off = [flash_versions.switched_off(flash) for flash in flash_versions.installed()]
    return None if None in off else "; ".join(reason for reason in off if reason) or _INSTALL


def description() -> str:
    """DESCRIPTION, and which ones were found."""
    found = ", ".join(flash.package for flash in flash_versions.installed())
    return f"{DESCRIPTION}; here: {found}"


def supports(call: AttentionCall | RopeCall) -> str | None:
    """16-bit GPU tensors, head dims that 8 divides up to 128, positive scales."""
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
        only = os.environ[flash_versions.ONLY]
        return f"{flash_versions.ONLY} asks for {only}, which is not here"
    return None if None in reasons else "; ".join(reason for reason in reasons if reason)


def _refusals(call: AttentionCall) -> dict[flash_versions.Flash, str | None]:
    arch = triton.architecture(call.device)
    return {
        flash: flash.refuses(arch, call.dtype, call.head_dim, call.needs_grad)
        for flash in flash_versions.tried(arch)
    }


def chosen(call: AttentionCall) -> flash_versions.Flash:
    """The FlashAttention that takes a call which ``supports`` lets pass."""
    return next(flash for flash, reason in _refusals(call).items() if reason is None)


def generation(call: AttentionCall) -> flash_versions.Generation | None:
    """Which FlashAttention would take this call; None if none would."""
    if unavailable() is not None or supports(call) is not None:
        return None
    return chosen(call).generation


# The launches import triton, which need not be installed.


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """See two_pass.py."""
    from genhoi_kernels.backends.flash import two_pass

    return two_pass.attention(call, tensors, chosen(call), arch=triton.architecture(call.device))


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> AttentionTensors:
    """See two_pass.py; a gradient of lse takes the Triton kernels' backward pass."""
    from genhoi_kernels.backends.flash import two_pass

    if grads.lse is not None:  # not every FlashAttention has a place for it
        return triton.attention_backward(call, tensors, o, lse, grads)
    arch = triton.architecture(call.device)
    return two_pass.attention_backward(call, tensors, o, lse, grads, chosen(call), arch=arch)


norm_rope_forward = triton.norm_rope_forward
norm_rope_backward = triton.norm_rope_backward


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """See ``backends.triton``."""
    return triton.apply_rope(x, rope, inverse)
