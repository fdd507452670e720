"""What a backend is: the functions that its module offers."""

from __future__ import annotations

from typing import Protocol

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


class Backend(Protocol):
    """A module of ``genhoi_kernels.backends``, or anything else that has these functions.

    A function that computes is called with arguments that were checked, of a call that ``supports``
    took, with autocast off and autograd below it; its results alias no argument. It is
    deterministic, and synchronises with the host for a mask that is no MaskGate at most.
    """

    DESCRIPTION: str
    """What it is, in one sentence; a function ``description`` goes before it where there is one."""

    def unavailable(self) -> str | None:
        """Say in one sentence why it cannot run in this installation, or None."""

    def supports(self, call: AttentionCall | RopeCall) -> str | None:
        """Say in one sentence why it refuses a call, or None; asked only where it can run.

        Depends on nothing but the call and the device, so that an answer may be kept. An
        AttentionCall's ``wanted`` is not part of the question.
        """

    def attention_forward(self, call: AttentionCall, tensors: AttentionTensors) -> AttentionResult:
        """Compute attention over the video's and the references' keys, rotated and gated."""

    def attention_backward(
        self,
        call: AttentionCall,
        tensors: AttentionTensors,
        o: Tensor,
        lse: Tensor,
        grads: AttentionGrads,
    ) -> InputGrads:
        """Compute the gradients that ``call.wanted`` names, in the dtypes of their tensors.

        Those not wanted may be None. No kernel is launched none of whose results is wanted.

        Args:
            call, tensors: as in the forward pass.
            o: attention output before the gate ``[B, N, H, D]``, contiguous.
            lse: as ``attention_forward`` gave it.
            grads: of the outputs, contiguous; None where there is none.
        """

    def norm_rope_forward(self, x: Tensor, weight: Tensor, rope: Rope, eps: float) -> Tensor:
        """Norm x ``[B, N, H*D]`` over all heads, then rotate it: ``[B, N, H, D]``."""

    def norm_rope_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, rope: Rope, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Compute gradients of x ``[B, N, H*D]`` and weight ``[H*D]``; grad is ``[B, N, H, D]``."""

    def apply_rope(self, x: Tensor, rope: Rope, inverse: bool) -> Tensor:
        """Rotate x ``[B, N, H, D]``, forward or by the inverse."""
