"""The processor of a Wan block's cross-attention, over the text and perhaps an image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import (
    WanAttnProcessor,
    _get_added_kv_projections,
    _get_qkv_projections,
)
from torch import Tensor

from genhoi.models.adapter_config import FlowGateReduction
from genhoi.models.adapter_layers import StreamLayer
from genhoi.models.wan.processor import Processor, project_out, split_heads

__all__ = ["CrossAttention"]

_TEXT_TOKENS = 512  # as in diffusers' WanAttnProcessor: what comes before them is the image


class CrossAttention(Processor):
    """Video over text and image, each gated; nothing in a ``ReferencePass``.

    Args:
        base: the processor in whose place this one stands.
        layer: the block's weights.
        flow_gate: how the gates reduce; None for no gates.
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
        self.text_gate, self.image_gate = layer.text_gate, layer.image_gate

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Attend as ``WanAttnProcessor`` does.

        encoder_hidden_states is ``[B, image + 512 text tokens, H*D]``, None in a reference pass.
        """
        if encoder_hidden_states is None:
            return torch.zeros_like(hidden_states)
        if self.flow_gate is None:
            out: Tensor = self.base(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return out
        self.check(attention_mask)
        text, image = encoder_hidden_states, None
        if attn.add_k_proj is not None:
            image, text = text[:, :-_TEXT_TOKENS], text[:, -_TEXT_TOKENS:]
        q, k, v = _get_qkv_projections(attn, hidden_states, text)
        q, k, v = (split_heads(attn, x) for x in (attn.norm_q(q), attn.norm_k(k), v))
        out = self.attention(self.text_gate, q, k, v)
        if image is not None:
            k, v = _get_added_kv_projections(attn, image)
            k, v = split_heads(attn, attn.norm_added_k(k)), split_heads(attn, v)
            out = out + self.attention(self.image_gate, q, k, v)
        return project_out(attn, out)
