"""Triton kernels for NVIDIA (sm_80 and later) and AMD GPUs; no compiler needed."""

from __future__ import annotations

import functools
import importlib.metadata
import os

import torch
from torch import Tensor

from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import Rope
from genhoi_kernels.spec import (
    AttentionCall,
    AttentionGrads,
    AttentionTensors,
    InputGrads,
    RopeCall,
)

DESCRIPTION = "Triton kernels for NVIDIA (sm_80 and later) and AMD GPUs; float32, bfloat16, float16"
MAX_HEAD_DIM = 128
MINIMUM_VERSION = (3, 6)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def interpreting() -> bool:
    """Say whether TRITON_INTERPRET=1 runs the kernels on CPU tensors, a program at a time."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.lru_cache(maxsize=1)
def _missing() -> str | None:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed (pip install 'genhoi-kernels[triton]')"
    if tuple(int(n) for n in version.split(".")[:2]) < MINIMUM_VERSION:
        return f"triton {version} is too old; 3.6 or newer is needed"
    return None


def unavailable() -> str | None:
    """Say why no kernel can run here, or None."""
    if _missing() is not None or interpreting():
        return _missing()
    if not torch.cuda.is_available():
        return "no GPU (TRITON_INTERPRET=1 interprets the kernels on CPU tensors, for tests)"
    return None


def supports(call: AttentionCall | RopeCall) -> str | None:
    """Refuse all but GPU tensors of 16 or 32 bits, with head dims up to 128."""
    device = "cpu" if interpreting() else "cuda"
    if call.device.type != device:
        why = " (TRITON_INTERPRET is set)" if interpreting() else ""
        return f"it runs on {device} tensors{why}, not on {call.device.type}"
    if call.dtype not in _DTYPES:
        return f"it takes {', '.join(str(d) for d in _DTYPES)}, not {call.dtype}"
    if call.head_dim > MAX_HEAD_DIM:
        return f"head dim {call.head_dim} is more than {MAX_HEAD_DIM}"
    return None if architecture(call.device) else "it needs compute capability 8.0 or later"


@functools.lru_cache(maxsize=16)
def architecture(device: torch.device) -> str:
    """Name the GPU's architecture as tables do, such as "sm_90"; "" if it is too old."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" if major >= 8 else ""


# The launches' modules import triton, which need not be installed: each is imported when called.


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """Run the forward pass of attention_fwd.py."""
    from genhoi_kernels.backends.triton import attention_fwd

    return attention_fwd.attention_forward(call, tensors, arch=architecture(call.device))


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> InputGrads:
    """Run the backward pass of attention_bwd.py."""
    from genhoi_kernels.backends.triton import attention_bwd

    return attention_bwd.attention_backward(
        call, tensors, o, lse, grads, arch=architecture(call.device)
    )


def norm_rope_forward(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """Run the forward pass of norm_rope.py."""
    from genhoi_kernels.backends.triton import norm_rope

    return norm_rope.norm_rope_forward(x, weight, rope, eps)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Run the backward pass of norm_rope.py."""
    from genhoi_kernels.backends.triton import norm_rope

    return norm_rope.norm_rope_backward(grad, x, weight, rope, eps)


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """Rotate by the kernel of norm_rope.py."""
    from genhoi_kernels.backends.triton import norm_rope

    return norm_rope.rotate(x, rope, inverse=inverse)
