"""An adapter at work in a diffusers Wan transformer (docs/model_layer.md).

A processor in every attention layer holds the layer's adapter weights and cached keys and values;
a hook where a forward pass computes positions, before the first block, keeps them up to date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from genhoi.conditioning.grid import Grid
from genhoi.models.adapter import AdapterLayer, GenHOIAdapter
from genhoi.models.attachment import Attachment
from genhoi.models.options import Options
from genhoi.models.placement import check_device, check_has_data, execution_device
from genhoi.models.protocol import ReferenceStreamModel
from genhoi.models.wan.attention_share import WanAttentionShare
from genhoi.models.wan.cache_key import CacheKey
from genhoi.models.wan.cross_attention import CrossAttention
from genhoi.models.wan.passes import VideoPass
from genhoi.models.wan.reference_stream import reference_keys_values
from genhoi.models.wan.references import References
from genhoi.models.wan.self_attention import SelfAttention
from genhoi_kernels import VideoRope

__all__ = ["WanAttachment"]


class WanAttachment(Attachment):
    """References run through the blocks beside the video, once for all steps.

    Args:
        model: a Wan without an adapter.
        adapter: that fits it.
        options: in force.
        backend: of the op.

    Raises:
        ValueError: the adapter lies on another device, or the transformer has an adapter or foreign
            processors already.
    """

    def __init__(
        self,
        model: ReferenceStreamModel,
        adapter: GenHOIAdapter,
        options: Options,
        backend: str | None = None,
    ) -> None:
        _check_ready(model, adapter)
        self.transformer = model.transformer
        self.adapter = adapter
        self.options = options
        self._model = model
        self._references = References()
        self._key: CacheKey | None = None
        self._passes: list[VideoPass] = []
        self._processors: list[SelfAttention] = []
        self._attached = True
        for block, layer in zip(model.blocks, adapter.layers, strict=True):
            layer = cast(AdapterLayer, layer)
            own, cross = block.self_attention, block.cross_attention
            processor = SelfAttention(own.processor, layer, options.flow_gate, backend)
            self._processors.append(processor)
            own.set_processor(processor)
            cross.set_processor(CrossAttention(cross.processor, layer, options.flow_gate, backend))
        # Layerwise casting would otherwise store the gates in 8 bits.
        patterns = list(self.transformer._skip_layerwise_casting_patterns or ())
        self.transformer._skip_layerwise_casting_patterns = [*patterns, "processor"]
        # Within forward: wrappers that bring weights along have run, and the positions tell this
        # forward pass from all others.
        self._hook = model.on_positions(self._before_blocks)

    def set_reference(
        self,
        references: Sequence[Tensor] | None,
        mask: Tensor | None = None,
        *,
        ref_bias: Sequence[float] | None = None,
    ) -> None:
        """Keep the references until the next call; compute nothing yet."""
        self._check_attached("set_reference")
        self._references = References.checked(
            self._model, references, mask, ref_bias, mask_gate=self.options.mask_gate
        )
        self._forget()

    def set_mask(self, mask: Tensor) -> None:
        """Change the mask of the references that are set, and of their cached passes."""
        self._check_attached("set_mask")
        gate = self.options.mask_gate
        self._references = self._references.with_mask(self._model, mask, mask_gate=gate)
        self._passes = [replace(current, mask=self._references.mask) for current in self._passes]

    def attention_share(self, layer: int) -> WanAttentionShare:
        """Make a meter of a block's self-attention."""
        return WanAttentionShare(self._processors[layer])

    def detach(self) -> None:
        """Put the base's own processors back, and forget everything cached."""
        if not self._attached:
            return
        self._attached = False
        self._hook.remove()
        for block in self._model.blocks:
            for attention in (block.self_attention, block.cross_attention):
                if isinstance(attention.processor, (SelfAttention, CrossAttention)):
                    attention.set_processor(attention.processor.base)
        del self.transformer._skip_layerwise_casting_patterns  # uncovers the class's own
        self._references, self._processors = References(), []
        self._forget()

    def _check_attached(self, method: str) -> None:
        if not self._attached:
            raise RuntimeError(f"{method}: the adapter is detached; attach it again first")

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


def _check_ready(model: ReferenceStreamModel, adapter: GenHOIAdapter) -> None:
    """Check that no adapter is attached yet, processors are Wan's, and devices agree."""
    for block in model.blocks:
        for attention in (block.self_attention, block.cross_attention):
            processor = attention.processor
            if isinstance(processor, (SelfAttention, CrossAttention)):
                raise ValueError(
                    "transformer: got one with an adapter attached, wanted one without; call "
                    "detach() on what attach() returned first"
                )
            if type(processor) is not WanAttnProcessor:
                raise ValueError(
                    f"transformer: got attention processor {type(processor).__name__}, wanted "
                    f"WanAttnProcessor, whose place the adapter's take"
                )
    weight, base = next(adapter.parameters()), next(model.transformer.parameters())
    if weight.device != base.device:  # under offloading, either place is right
        check_device("adapter", weight, execution_device(model.transformer), "the transformer")
