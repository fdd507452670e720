"""An adapter at work in a diffusers Wan transformer with VACE blocks (docs/model_layer.md).

References are latent frames at the front of the noisy latents and of the VACE context. Processors
in the VACE blocks turn their rows per head and gate all rows; the trunk stays as it is. Nothing is
cached: reference rows change with timestep and text.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

from torch import Tensor

from genhoi.conditioning.grid import Grid
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_layers import FramesLayer
from genhoi.models.attachment import Attachment
from genhoi.models.options import NO_MASK_GATE, Options
from genhoi.models.protocol import Block
from genhoi.models.wan.attached import WanProcessors
from genhoi.models.wan.family import WanFamily
from genhoi.models.wan.vace.attention_share import FramesAttentionShare
from genhoi.models.wan.vace.low_rank import hook_low_rank
from genhoi.models.wan.vace.passes import FramesPass
from genhoi.models.wan.vace.processors import FramesSelfAttention, FramesTextAttention
from genhoi_kernels import ReferenceFramesRope

__all__ = ["Sliding", "VaceAttachment"]

Sliding = Literal["all", "last", "none"]


class VaceAttachment(WanProcessors):
    """References go through the blocks with the video, in every step.

    Args and errors as `WanProcessors`.
    """

    def __init__(
        self,
        model: WanFamily,
        adapter: GenHOIAdapter,
        options: Options,
        backend: str | None = None,
    ) -> None:
        self._processors: list[FramesSelfAttention] = []
        self._sliding: Sliding = "all"
        self._sizes = model.sizes  # torch.compile can't trace a cached_property
        super().__init__(model, adapter, options, backend)
        self._low_rank = [
            handle
            for block, layer in zip(model.blocks, adapter.layers, strict=True)
            for handle in hook_low_rank(block.module, cast(FramesLayer, layer))
        ]

    def _processors_for(
        self, block: Block, layer: Any, backend: str | None
    ) -> tuple[FramesSelfAttention, FramesTextAttention]:
        gate = self.options.flow_gate
        own = FramesSelfAttention(block.self_attention.processor, layer, gate, backend)
        self._processors.append(own)
        text = FramesTextAttention(block.cross_attention.processor, layer, gate, backend)
        return own, text

    def set_reference_frames(self, count: int, *, sliding: Sliding = "all") -> None:
        """Keep both until the next call."""
        self._check_attached("set_reference_frames")
        if isinstance(count, bool) or not hasattr(count, "__index__"):
            raise TypeError(f"count: got {count!r}, wanted an integer")
        if count < 0:
            raise ValueError(f"count: got {count}, wanted at least 0")
        if sliding not in get_args(Sliding):
            raise ValueError(
                f"sliding: got {sliding!r}, wanted one of {', '.join(get_args(Sliding))}"
            )
        self.reference_frames, self._sliding = operator.index(count), sliding

    def set_reference(
        self,
        references: Sequence[Tensor] | None,
        mask: Tensor | None = None,
        *,
        ref_bias: Sequence[float] | None = None,
    ) -> None:
        """Count the references, which are in the transformer's inputs; all of them slide.

        Raises:
            ValueError: a mask or weights, of which this form has none.
        """
        self._check_attached("set_reference")
        if mask is not None:
            raise ValueError(f"mask: got one, wanted None: {NO_MASK_GATE}")
        if ref_bias is not None and any(ref_bias):
            raise ValueError(
                f"ref_bias: got {list(ref_bias)}, wanted None: references of a VACE model are rows "
                f"of its one sequence, which have no weight of their own"
            )
        self.set_reference_frames(0 if references is None else len(references))

    def take_reference(self, other: Attachment) -> None:
        """Take the other's count, and which of them slide."""
        assert isinstance(other, VaceAttachment)
        self.set_reference_frames(other.reference_frames, sliding=other._sliding)

    def set_mask(self, mask: Tensor) -> None:
        """Refuse: this form has no mask gate."""
        raise ValueError(f"mask: got one, wanted none: {NO_MASK_GATE}")

    def attention_share(self, layer: int) -> FramesAttentionShare:
        """Make a meter of a VACE block's self-attention."""
        return FramesAttentionShare(self._processors[layer])

    def detach(self) -> None:
        """Put the base's own processors back, and take the low-rank weights away."""
        super().detach()
        for handle in self._low_rank:
            handle.remove()
        self._processors = []

    # ------------------------------------------------------------------------------- forward pass

    def _before_blocks(self, latents: Tensor, rotary: Tensor) -> None:
        self._check_forward(self._processors[0].gate.fc2.weight, latents)
        current = self._pass(self._sizes.grid(latents))
        for processor in self._processors:
            processor.set_pass(current, rotary)

    def _pass(self, grid: Grid) -> FramesPass:
        count = self.reference_frames
        if count >= grid[0]:
            raise ValueError(
                f"reference_frames: got {count} in latents of {grid[0]} frames, wanted fewer: the "
                f"references come before the video's frames"
            )
        frames = {"all": range(count), "last": range(count)[-1:], "none": range(0)}
        rope = ReferenceFramesRope(
            grid,
            tuple(frames[self._sliding]),
            head_dim=self._sizes.head_dim,
            num_heads=self._sizes.num_heads,
            schedule=self.options.schedule,
        )
        return FramesPass(rope, count)
