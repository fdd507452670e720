"""An adapter at work in a diffusers Wan transformer (docs/model_layer.md).

A processor in every attention layer holds the layer's adapter weights and cached keys and values;
a hook where a forward pass computes positions, before the first block, keeps them up to date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genhoi.conditioning.grid import Grid
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.attachment import Attachment
from genhoi.models.options import Options
from genhoi.models.placement import check_has_data
from genhoi.models.protocol import Block
from genhoi.models.wan.attached import WanProcessors
from genhoi.models.wan.attention_share import WanAttentionShare
from genhoi.models.wan.cache_key import CacheKey
from genhoi.models.wan.cross_attention import CrossAttention
from genhoi.models.wan.family import WanStreamFamily
from genhoi.models.wan.passes import VideoPass
from genhoi.models.wan.reference_stream import reference_keys_values
from genhoi.models.wan.references import References
from genhoi.models.wan.self_attention import SelfAttention
from genhoi_kernels import VideoRope

__all__ = ["WanAttachment"]


class WanAttachment(WanProcessors):
    """References run through the blocks beside the video, once for all steps.

    Args and errors as `WanProcessors`.
    """

    def __init__(
        self,
        model: WanStreamFamily,
        adapter: GenHOIAdapter,
        options: Options,
        backend: str | None = None,
    ) -> None:
        self._model = model
        self._references = References()
        self._key: CacheKey | None = None
        self._passes: list[VideoPass] = []
        self._processors: list[SelfAttention] = []
        super().__init__(model, adapter, options, backend)

    def _processors_for(
        self, block: Block, layer: Any, backend: str | None
    ) -> tuple[SelfAttention, CrossAttention]:
        gate = self.options.flow_gate
        own = SelfAttention(block.self_attention.processor, layer, gate, backend)
        self._processors.append(own)
        return own, CrossAttention(block.cross_attention.processor, layer, gate, backend)

    def set_reference(
        self,
        references: Sequence[Tensor] | None,
        mask: Tensor | None = None,
        *,
        ref_bias: Sequence[float] | None = None,
    ) -> None:
        """Keep the references until the next call; compute nothing yet."""
        self._check_attached("set_reference")
        gate = self.options.mask_gate
        self._use(References.checked(self._model, references, mask, ref_bias, mask_gate=gate))
        self._forget()

    def take_reference(self, other: Attachment) -> None:
        """Take the other's references and mask; compute nothing yet."""
        self._check_attached("take_reference")
        assert isinstance(other, WanAttachment)
        self._use(other._references)
        self._forget()

    def set_mask(self, mask: Tensor) -> None:
        """Change the mask of the references that are set, and of their cached passes."""
        self._check_attached("set_mask")
        gate = self.options.mask_gate
        self._use(self._references.with_mask(self._model, mask, mask_gate=gate))
        self._passes = [replace(current, mask=self._references.mask) for current in self._passes]

    def refresh(self) -> None:
        """Let the next forward pass compute keys and values of the references again."""
        self._check_attached("refresh")
        self._key = None

    def attention_share(self, layer: int) -> WanAttentionShare:
        """Make a meter of a block's self-attention."""
        return WanAttentionShare(self._processors[layer])

    def detach(self) -> None:
        """Put the base's own processors back, and forget everything cached."""
        super().detach()
        self._forget()
        self._references, self._processors = References(), []

    def _use(self, references: References) -> None:
        self._references = references

    # ------------------------------------------------------------------------------- forward pass

    def _before_blocks(self, latents: Tensor, rotary: Tensor) -> None:
        """Give every processor what this forward pass needs."""
        check_has_data(self._processors[0].lora_k.down, latents)
        grid = self._model.sizes.grid(latents)
        self._references.check_forward(latents, grid)
        seen = self._references.any_seen if self.skip_unseen else bool(self._references.latents)
        passes: Sequence[VideoPass | None]
        if seen:
            passes = self._with_reference(latents, grid)
        else:
            passes = self._without_reference(grid)
        for processor, current in zip(self._processors, passes, strict=True):
            processor.set_pass(current, rotary)

    def _without_reference(self, grid: Grid) -> Sequence[VideoPass | None]:
        layers = len(self._processors)
        if self.options.flow_gate is None:
            return [None] * layers
        return [VideoPass(self._rope(grid))] * layers

    def _with_reference(self, latents: Tensor, grid: Grid) -> Sequence[VideoPass]:
        references = self._references
        casts = sum(processor.casts for processor in self._processors)
        key = CacheKey(self.transformer, references.latents, grid, latents, casts)
        # With gradients the graph behind keys and values lasts one backward pass.
        grads = torch.is_grad_enabled() and any(
            x.requires_grad for x in (*references.latents, *self.transformer.parameters())
        )
        if grads or key != self._key:
            self._forget()
            keys_values = reference_keys_values(
                self._model, references.latents, grid, self.options.schedule, latents.dtype
            )
            self.reference_passes += 1
            rope = self._rope(grid)
            bias = None if references.bias is None else references.bias.to(latents.device)
            self._passes = [
                VideoPass(rope, k, v, references.lengths, references.mask, bias)
                for k, v in keys_values
            ]
            self._key = None if grads else key
        return self._passes

    def _rope(self, grid: Grid) -> VideoRope:
        return VideoRope(grid, head_dim=self._model.sizes.head_dim)

    def _forget(self) -> None:
        self._key, self._passes = None, []
        for processor in self._processors:
            processor.current = None
