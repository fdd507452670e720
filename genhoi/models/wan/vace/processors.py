"""The processors of a VACE block's self-attention and text attention, over all rows."""

from __future__ import annotations

from typing import Any

from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from genhoi.models.adapter_config import FlowGateReduction
from genhoi.models.adapter_layers import FramesLayer
from genhoi.models.wan.own_attention import OwnAttention
from genhoi.models.wan.processor import Processor, project_out, split_heads
from genhoi.models.wan.vace.low_rank import projections
from genhoi.models.wan.vace.passes import FramesPass

__all__ = ["FramesSelfAttention", "FramesTextAttention"]


class FramesSelfAttention(OwnAttention[FramesPass]):
    """Every row over every row; the references' turn per head, in q and in k.

    Args:
        base: the processor in whose place this one stands.
        layer: the block's weights.
        flow_gate: how the gate reduces; None for no gate.
        backend: of the op; None takes the first that supports the call.
    """

    def __init__(
        self,
        base: WanAttnProcessor,
        layer: FramesLayer,
        flow_gate: FlowGateReduction | None,
        backend: str | None = None,
    ) -> None:
        super().__init__(base, flow_gate, backend)
        self.gate = layer.self_gate
        self.lora = layer.lora  # of the whole block, so that its weights move with the transformer

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Attend as ``WanAttnProcessor`` does; hidden_states ``[B, N, H*D]``."""
        current = self.pass_of(rotary_emb)
        assert current is not None  # set before the first block
        if not (current.rope.sliding or self.observer or _adds(self, attn)):
            out: Tensor = self.base(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return out
        self.check(attention_mask)
        q, k, v = projections(attn, hidden_states, None, self.lora, "self")
        q, k = self.norm_rope(attn, q, k, current.rope)
        if self.observer is not None:
            self.observer(q, k, current)
        return project_out(attn, self.attention(self.gate, q, k, split_heads(attn, v)))


class FramesTextAttention(Processor):
    """Every row over the text.

    Args:
        base: the processor in whose place this one stands.
        layer: the block's weights.
        flow_gate: how the gate reduces; None for no gate.
        backend: of the op; None takes the first that supports the call.
    """

    def __init__(
        self,
        base: WanAttnProcessor,
        layer: FramesLayer,
        flow_gate: FlowGateReduction | None,
        backend: str | None = None,
    ) -> None:
        super().__init__(base, flow_gate, backend)
        self.gate = layer.text_gate
        self.lora = layer.lora

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Attend as ``WanAttnProcessor`` does; encoder_hidden_states ``[B, tokens, H*D]``."""
        if not _adds(self, attn):
            out: Tensor = self.base(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return out
        self.check(attention_mask)
        q, k, v = projections(attn, hidden_states, encoder_hidden_states, self.lora, "text")
        q, k, v = (split_heads(attn, x) for x in (attn.norm_q(q), attn.norm_k(k), v))
        return project_out(attn, self.attention(self.gate, q, k, v))


def _adds(processor: FramesSelfAttention | FramesTextAttention, attn: Any) -> bool:
    """Tell whether the base's own processor would leave something of the adapter's out."""
    return processor.flow_gate is not None or (attn.fused_projections and len(processor.lora) > 0)
