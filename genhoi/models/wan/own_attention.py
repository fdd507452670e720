"""What processors of a block's self-attention share: the pass at hand, and norm and rotation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from genhoi.models.adapter_config import FlowGateReduction
from genhoi.models.placement import local_weight
from genhoi.models.wan.diffusers_hooks import weights_at_hand
from genhoi.models.wan.processor import Processor
from genhoi_kernels import HeadSlidingRope, ReferenceFramesRope, VideoRope, qk_norm_rope

__all__ = ["OwnAttention"]

Pass = TypeVar("Pass")
_OF_PASSES = ("current", "observer", "_of_forward")


class OwnAttention(Processor, Generic[Pass]):
    """A block's self-attention, which is told of every forward pass.

    Args:
        base: the processor in whose place this one stands.
        flow_gate: how the gate reduces; None for no gate.
        backend: of the op; None takes the first that supports the call.

    Attributes:
        current: what the forward pass at hand needs.
        observer: called with q and k, rotated, of every video pass; see attention_share.py.
    """

    current: Pass | None
    observer: Callable[[Tensor, Tensor, Pass], None] | None

    def __init__(
        self,
        base: WanAttnProcessor,
        flow_gate: FlowGateReduction | None,
        backend: str | None,
    ) -> None:
        super().__init__(base, flow_gate, backend)
        self._forget_passes()

    def set_pass(self, current: Pass | None, rotary: Tensor) -> None:
        """Set what the coming forward pass needs; None leaves it to the base's processor.

        Args:
            current: the same for all calls until this is called again.
            rotary: the tensor that ``rope`` made for this forward pass. A checkpointed block is
                called again during the backward pass, with that very tensor, when ``current`` may
                long belong to another clip.
        """
        self.current = current
        # A program has no use for it: it runs a checkpointed block again by itself.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._of_forward[rotary] = current

    def pass_of(self, rotary_emb: Any) -> Pass | None:
        """Return what was set for the forward pass that these angles belong to."""
        # A compiled block reads plain attributes only; see docs/model_layer.md for what follows.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            current: Pass | None = self._of_forward.get(rotary_emb[0], self.current)
            return current
        return self.current

    def norm_rope(
        self,
        attn: Any,
        q: Tensor,
        k: Tensor,
        rope: VideoRope | HeadSlidingRope | ReferenceFramesRope,
    ) -> tuple[Tensor, Tensor]:
        """Norm and rotate q and k ``[B, N, H*D]``: ``[B, N, H, D]``."""
        eps = attn.norm_q.eps
        with weights_at_hand(attn.norm_q, attn.norm_k):
            q_weight = local_weight(attn.norm_q.weight, q)
            k_weight = local_weight(attn.norm_k.weight, k)
            return qk_norm_rope(q, k, q_weight, k_weight, rope, eps=eps, backend=self.backend)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to forward passes, which no copy has run and no file holds."""
        return {name: x for name, x in self.__dict__.items() if name not in _OF_PASSES}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without any forward pass."""
        super().__setstate__(state)
        self._forget_passes()

    def _forget_passes(self) -> None:
        self.current = None
        self.observer = None
        self._of_forward = WeakTensorKeyDictionary()
