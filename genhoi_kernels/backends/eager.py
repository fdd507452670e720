"""The oracle as a backend: any device, any dtype, N x (Nk + M) memory. For tests and tiny sizes."""

from __future__ import annotations

from torch import Tensor

from genhoi_kernels import reference
from genhoi_kernels.reference import AttentionResult
from genhoi_kernels.rope import Rope
from genhoi_kernels.spec import (
    AttentionCall,
    AttentionGrads,
    AttentionTensors,
    InputGrads,
    RopeCall,
)

DESCRIPTION = "plain PyTorch, the oracle; any device and dtype, N x (Nk + M) memory"


def unavailable() -> str | None:
    """Say that it always can run."""
    return None


def supports(call: AttentionCall | RopeCall) -> str | None:
    """Take every call."""
    return None


def attention_forward(call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
    """Call ``reference.attention``."""
    return reference.attention(call, tensors)


def attention_backward(
    call: AttentionCall,
    tensors: AttentionTensors,
    o: Tensor,
    lse: Tensor,
    grads: AttentionGrads,
) -> InputGrads:
    """Call ``reference.attention_backward``."""
    return reference.attention_backward(call, tensors, o, lse, grads)


def norm_rope_forward(x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
    """Call ``reference.norm_rope``."""
    return reference.norm_rope(x, weight, rope, eps=eps)


def norm_rope_backward(
    grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
) -> tuple[Tensor, Tensor]:
    """Call ``reference.norm_rope_backward``."""
    return reference.norm_rope_backward(grad, x, weight, rope, eps=eps)


def apply_rope(x: Tensor, rope: Rope, inverse: bool) -> Tensor:
    """Call ``reference.apply_rope``."""
    return reference.apply_rope(x, rope, inverse=inverse)
