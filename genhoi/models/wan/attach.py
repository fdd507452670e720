"""An adapter at work in a diffusers Wan transformer (docs/model_layer.md).

A processor in every attention layer holds the layer's adapter weights and cached keys and values;
a hook where a forward pass computes positions, before the first block, keeps them up to date.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genhoi.conditioning.grid import Grid
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.attachment import Attachment
from genhoi.models.options import Options
from genhoi.models.protocol import Block
from genhoi.models.wan.attached import WanProcessors
from genhoi.models.wan.attention_share import WanAttentionShare
from genhoi.models.wan.cache_key import CacheKey
from genhoi.models.wan.cross_attention import CrossAttention
from genhoi.models.wan.family import WanStreamFamily
from genhoi.models.wan.passes import VideoPass
from genhoi.models.wan.programs import ProgramPass, Registered, is_exporting, prepare_references
from genhoi.models.wan.reference_stream import reference_keys_values
from genhoi.models.wan.references import References
from genhoi.models.wan.self_attention import SelfAttention
from genhoi_kernels import VideoRope

__all__ = ["WanAttachment"]

_NO_GRADIENTS = (
    "gradients reach a GenHOI reference through torch.compile with a graph break only: use "
    "torch.no_grad(), fullgraph=False, or transformer.compile_repeated_blocks() for training"
)


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
        self._sizes = model.sizes  # torch.compile can't trace a cached_property
        self._use(References())
        self._key: CacheKey | None = None
        self._passes: list[VideoPass] = []
        self._registered = Registered(self)
        self._numbers: list[Tensor] = []  # of the blocks, for programs
        self._processors: list[SelfAttention] = []
        super().__init__(model, adapter, options, backend)
        self._handing_out = self.transformer.register_state_dict_pre_hook(self._weights_handed_out)

    def _processors_for(
        self, block: Block, layer: Any, backend: str | None
    ) -> tuple[SelfAttention, CrossAttention]:
        gate = self.options.flow_gate
        own = SelfAttention(block.self_attention.processor, layer, gate, backend)
        self._numbers.append(torch.tensor(len(self._numbers), device="cpu"))
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

    def _weights_handed_out(self, *_: object) -> None:
        """Trust no weight once its tensor was given away: PEFT hot-swaps a LoRA through `.data`."""
        self._key = None

    def attention_share(self, layer: int) -> WanAttentionShare:
        """Make a meter of a block's self-attention."""
        return WanAttentionShare(self._processors[layer])

    def detach(self) -> None:
        """Put the base's own processors back, and forget everything cached."""
        super().detach()
        self._handing_out.remove()
        self._forget()
        self._use(References())
        self._processors, self._numbers = [], []

    def _use(self, references: References) -> None:
        self._references = references
        # Apart, for a compiled program is bound to all that it reads on its way to them.
        self._any_given, self._any_seen = bool(references.latents), references.any_seen

    # ---------------------------------------------------------------------- in a compiled program

    def _in_program(self, latents: Tensor, rotary: Tensor) -> None:
        """Do what `_before_blocks` does, traced by torch.compile (see programs.py)."""
        # Where gates are on, a program serves with and without a reference alike.
        if not torch.is_grad_enabled() and (self.options.flow_gate is not None or self._seen):
            rope = self._rope(self._sizes.grid(latents))
            ready = prepare_references(latents, self._registered)
            passes = [ProgramPass(rope, ready, number) for number in self._numbers]
            self._set_passes(passes, rotary)
        elif self._seen:
            self._interrupt(latents, rotary)
        else:
            self._set_passes(self._without_reference(self._sizes.grid(latents)), rotary)

    @torch.compiler.disable(reason=_NO_GRADIENTS)
    def _interrupt(self, latents: Tensor, rotary: Tensor) -> None:
        self._set_passes(self.current_passes(latents), rotary)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what forward passes made: a copy, or what a file holds, makes its own."""
        latents = [x if x.is_leaf else x.detach() for x in self._references.latents]
        references = replace(self._references, latents=latents)
        made: dict[str, Any] = {"_key": None, "_passes": []}
        return self.__dict__ | made | {"_references": references}

    # ------------------------------------------------------------------------------- forward pass

    def _before_blocks(self, latents: Tensor, rotary: Tensor) -> None:
        """Give every processor what this forward pass needs."""
        if torch.compiler.is_compiling() and not is_exporting():
            self._in_program(latents, rotary)
        else:
            self._set_passes(self.current_passes(latents), rotary)

    def _set_passes(self, passes: Sequence[VideoPass | ProgramPass | None], rotary: Tensor) -> None:
        for processor, current in zip(self._processors, passes, strict=True):
            processor.set_pass(current, rotary)

    def current_passes(self, latents: Tensor) -> Sequence[VideoPass | None]:
        """Return every block's pass in a forward pass over latents, with the references' cache."""
        self._check_forward(self._processors[0].lora_k.down, latents)
        grid = self._sizes.grid(latents)
        self._references.check_forward(latents, grid)
        if self._seen:
            return self._with_reference(latents, grid)
        return self._without_reference(grid)

    def observe(self, layer: int, q: Tensor, k: Tensor, current: VideoPass) -> None:
        """Show a block's q and k, rotated, to whoever watches it."""
        observer = self._processors[layer].observer
        if observer is not None:
            observer(q, k, current)

    @property
    def _seen(self) -> bool:
        return self._any_seen if self.skip_unseen else self._any_given

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
        if is_exporting():
            _warn_of_constants(references.latents)
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
        return VideoRope(grid, head_dim=self._sizes.head_dim)

    def _forget(self) -> None:
        self._key, self._passes, self._registered.passes = None, [], []
        for processor in self._processors:
            processor.current = None


def _warn_of_constants(references: Sequence[Tensor]) -> None:
    # What an exported program takes as its input is of another type while it is traced.
    if any(type(x) is Tensor for x in references):
        warnings.warn(
            "references: got ones that torch.export makes constants of the program, which will "
            "show this object always; docs/model_layer.md tells how to make them inputs",
            stacklevel=2,
        )
