"""The reference as a frame of the video, prepended to it: VACE's way, for comparison.

Its tokens join the video's own attention in both directions, at frame 0 of a clip that begins at
frame 1, in every pass. Only they get low-rank weights, the same ones as in GenHOI's adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from genhoi.conditioning.grid import STRIDES
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_layers import StreamLayer
from genhoi.models.wan.channels import complete_channels
from genhoi_kernels import VideoRope, qk_norm_rope, reference_attention

__all__ = ["FirstFrame"]


class FirstFrame:
    """Brings the reference in as a frame, with the methods of an `Attachment`.

    Args:
        transformer: a Wan; its attention processors are replaced.
        adapter: whose low-rank weights are used, and whose gates are not.
    """

    reference_frames = 0  # for the frame is put in front and taken away again in here

    def __init__(self, transformer: Any, adapter: GenHOIAdapter) -> None:
        self.transformer, self.adapter = transformer, adapter
        self.skip_unseen = False
        self.reference: Tensor | None = None
        self.processors = []
        for block, layer in zip(transformer.blocks, adapter.layers, strict=True):
            processor = _Processor(block.attn1.processor, layer)
            block.attn1.set_processor(processor)
            self.processors.append(processor)
        transformer.register_forward_pre_hook(self._prepend, with_kwargs=True)
        transformer.register_forward_hook(self._drop)

    def set_reference(
        self, references: Sequence[Tensor] | None, mask: Tensor | None = None
    ) -> None:
        """Set the reference, [B, C, 1, h, w]: latents or all input channels; ignore the mask."""
        self.reference = None if references is None else references[0]

    def _prepend(self, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x = kwargs["hidden_states"]
        f, h, w = STRIDES.latent_grid(*x.shape[2:])
        given = self.reference is not None
        for processor in self.processors:
            processor.grid, processor.given = (f + given, h, w), given
        if self.reference is None:
            return args, kwargs
        config = self.transformer.config
        # As a frame that is given: mask 0, no noise to be removed.
        frame = complete_channels(
            self.reference.to(x.dtype), config.in_channels, config.out_channels
        )
        return args, kwargs | {"hidden_states": torch.cat([frame, x], dim=2)}

    def _drop(self, module: Any, args: Any, out: Any) -> Any:
        return out if self.reference is None else (out[0][:, :, 1:], *out[1:])


class _Processor(nn.Module):
    """Self-attention with low-rank weights on the first frame's tokens."""

    def __init__(self, base: WanAttnProcessor, layer: StreamLayer) -> None:
        super().__init__()
        self.base = base
        self.loras = nn.ModuleList([layer.lora_q, layer.lora_k, layer.lora_v])
        self.grid, self.given = (1, 1, 1), False
        self._attention_backend = self._parallel_config = None
        self.share: Tensor | None = None
        self.watched = False

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Return nothing, because the weights are the adapter's."""
        return {} if destination is None else destination

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        """Compute what `WanAttnProcessor` computes, over hidden_states [B, N, H*D]."""
        x = hidden_states
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        if self.given:
            tokens = self.grid[1] * self.grid[2]
            first, rest = x[:, :tokens], x.shape[1] - tokens
            q, k, v = (
                y + nn.functional.pad(lora(first), (0, 0, 0, rest))
                for y, lora in zip((q, k, v), self.loras, strict=True)
            )
        rope = VideoRope(self.grid, head_dim=q.shape[2] // attn.heads)
        q, k = qk_norm_rope(q, k, attn.norm_q.weight, attn.norm_k.weight, rope, eps=attn.norm_q.eps)
        if self.watched and self.given:
            self.share = _share(q, k, self.grid[1] * self.grid[2])
        out = reference_attention(q, k, v.unflatten(2, (attn.heads, -1)))
        assert isinstance(out, Tensor)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out.flatten(2)))
        return projected


def _share(q: Tensor, k: Tensor, tokens: int) -> Tensor:
    """Return the share of attention, [B, H, N], that video tokens give to the first frame's."""

    def lse(keys: Tensor) -> Tensor:
        result = reference_attention(q[:, tokens:], keys, keys, return_lse=True)[1]
        assert isinstance(result, Tensor)
        return result

    return -torch.expm1(lse(k[:, tokens:]).double() - lse(k).double()).float()
