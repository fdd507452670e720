"""The processor of a Wan block's self-attention: for the video, and for the reference stream."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_wan import WanAttnProcessor, _get_qkv_projections
from torch import Tensor

from genhoi.models.adapter_config import FlowGateReduction
from genhoi.models.adapter_layers import StreamLayer
from genhoi.models.wan.own_attention import OwnAttention
from genhoi.models.wan.passes import ReferencePass, VideoPass
from genhoi.models.wan.processor import project_out, split_heads
from genhoi.models.wan.programs import ProgramPass

__all__ = ["SelfAttention"]


class SelfAttention(OwnAttention[VideoPass | ProgramPass]):
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
        layer: StreamLayer,
        flow_gate: FlowGateReduction | None,
        backend: str | None = None,
    ) -> None:
        super().__init__(base, flow_gate, backend)
        self.lora_q, self.lora_k, self.lora_v = layer.lora_q, layer.lora_k, layer.lora_v
        self.gate = layer.self_gate

    @property
    def casts(self) -> int:
        """Count changes of the weights' dtype by ``to``, which leave versions as they are."""
        return self.lora_k.casts

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
        current = self.pass_of(rotary_emb)
        if current is None:
            out: Tensor = self.base(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return out
        self.check(attention_mask)
        q, k, v = _get_qkv_projections(attn, hidden_states, None)
        q, k = self.norm_rope(attn, q, k, current.rope)
        # In a program that is shown when it runs: no other program for one that is watched.
        if not isinstance(current, ProgramPass) and self.observer is not None:
            self.observer(q, k, current)
        return project_out(attn, self.attention(self.gate, q, k, split_heads(attn, v), current))

    def _reference(self, attn: Any, hidden_states: Tensor, into: ReferencePass) -> Tensor:
        self.check(None)
        q, k, v = _get_qkv_projections(attn, hidden_states, None)
        q = q + self.lora_q(hidden_states)
        k = k + self.lora_k(hidden_states)
        v = v + self.lora_v(hidden_states)
        q, k = self.norm_rope(attn, q, k, into.rope)
        into.k, into.v = k, split_heads(attn, v)
        return project_out(attn, self.attention(self.gate, q, k, into.v))
