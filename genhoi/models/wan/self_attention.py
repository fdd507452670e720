"""The processor of a Wan block's self-attention: for the video, and for the reference stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, _get_qkv_projections
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from genhoi.models.adapter import AdapterLayer
from genhoi.models.adapter_config import FlowGateReduction
from genhoi.models.placement import local_weight
from genhoi.models.wan.passes import ReferencePass, VideoPass
from genhoi.models.wan.processor import Processor, project_out, split_heads
from genhoi_kernels import HeadSlidingRope, VideoRope, qk_norm_rope

__all__ = ["SelfAttention"]


class SelfAttention(Processor):
    """Video over video and reference tokens; in a ``ReferencePass``, reference over itself.

    Args:
        base: the processor in whose place this one stands.
        layer: the block's weights.
        flow_gate: how the gate reduces; None for no gate.
        backend: of the op; None takes the first that supports the call.
    """

    def __init__(
        self,
        base: WanAttnProcessor,
        layer: AdapterLayer,
        flow_gate: FlowGateReduction | None,
        backend: str | None = None,
    ) -> None:
        super().__init__(base, flow_gate, backend)
        self.lora_q, self.lora_k, self.lora_v = layer.lora_q, layer.lora_k, layer.lora_v
        self.gate = layer.self_gate
        self.current: VideoPass | None = None
        # Called with q and k, rotated, of every video pass; see attention_share.py.
        self.observer: Callable[[Tensor, Tensor, VideoPass], None] | None = None
        self.casts = 0
        self._of_forward = WeakTensorKeyDictionary()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Count changes of the weights' dtype by ``to``, which leave versions as they are."""
        before = self.lora_k.down.dtype
        super()._apply(fn, recurse)
        self.casts += self.lora_k.down.dtype != before
        return self

    def set_pass(self, current: VideoPass | None, rotary: Tensor) -> None:
        """Set what the coming forward pass needs; None leaves it to the base's processor.

        Args:
            current: the same for all calls until this is called again.
            rotary: the tensor that ``rope`` made for this forward pass. A checkpointed block is
                called again during the backward pass, with that very tensor, when ``current`` may
                long belong to another clip.
        """
        self.current = current
        if torch.is_grad_enabled():
            self._of_forward[rotary] = current

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Attend as ``WanAttnProcessor`` does; hidden_states ``[B, N, H*D]``."""
        if isinstance(rotary_emb, ReferencePass):
            return self._reference(attn, hidden_states, rotary_emb)
        current = self._pass_of(rotary_emb)
        if current is None:
            out: Tensor = self.base(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return out
        self.check(attention_mask)
        q, k, v = _get_qkv_projections(attn, hidden_states, None)
        q, k = self._norm_rope(attn, q, k, current.rope)
        if self.observer is not None:
            self.observer(q, k, current)
        return project_out(attn, self.attention(self.gate, q, k, split_heads(attn, v), current))

    def _pass_of(self, rotary_emb: Any) -> VideoPass | None:
        # A compiled block reads plain attributes only; see docs/model_layer.md for what follows.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            current: VideoPass | None = self._of_forward.get(rotary_emb[0], self.current)
            return current
        return self.current

    def _reference(self, attn: Any, hidden_states: Tensor, into: ReferencePass) -> Tensor:
        self.check(None)
        q, k, v = _get_qkv_projections(attn, hidden_states, None)
        q = q + self.lora_q(hidden_states)
        k = k + self.lora_k(hidden_states)
        v = v + self.lora_v(hidden_states)
        q, k = self._norm_rope(attn, q, k, into.rope)
        into.k, into.v = k, split_heads(attn, v)
        return project_out(attn, self.attention(self.gate, q, k, into.v))

    def _norm_rope(
        self, attn: Any, q: Tensor, k: Tensor, rope: VideoRope | HeadSlidingRope
    ) -> tuple[Tensor, Tensor]:
        q_weight = local_weight(attn.norm_q.weight, q)
        k_weight = local_weight(attn.norm_k.weight, k)
        eps = attn.norm_q.eps
        return qk_norm_rope(q, k, q_weight, k_weight, rope, eps=eps, backend=self.backend)
