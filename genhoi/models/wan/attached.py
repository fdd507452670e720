"""Processors in the attention layers of a Wan transformer, from attach to detach."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.attachment import ATTACHMENT, Attachment
from genhoi.models.options import Options
from genhoi.models.placement import check_device, check_has_data, execution_device
from genhoi.models.protocol import Block
from genhoi.models.wan.diffusers_hooks import is_whole_on_disk, remove_step_hooks
from genhoi.models.wan.family import WanFamily
from genhoi.models.wan.processor import Processor

__all__ = ["WanProcessors"]

_PATTERNS = "_skip_layerwise_casting_patterns"
_OF_ADAPTER: WeakKeyDictionary[GenHOIAdapter, WeakSet[WanProcessors]] = WeakKeyDictionary()
"""The attachments of each adapter, of which two transformers may have one."""


class WanProcessors(Attachment):
    """An adapter at work through processors, and a hook before the first block.

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
        model: WanFamily,
        adapter: GenHOIAdapter,
        options: Options,
        backend: str | None = None,
    ) -> None:
        _check_ready(model, adapter)
        self.transformer = model.transformer
        self.adapter = adapter
        self.options = options
        self._wan = model
        self._attached = True
        self._in_place: list[tuple[Any, Processor]] = []
        for block, layer in zip(model.blocks, adapter.layers, strict=True):
            layers = (block.self_attention, block.cross_attention)
            for attention, processor in zip(
                layers, self._processors_for(block, layer, backend), strict=True
            ):
                attention.set_processor(processor)
                self._in_place.append((attention, processor))
        self._parts = [part for _, processor in self._in_place for part in processor.modules()]
        # Layerwise casting would otherwise store the gates in 8 bits.
        of_instance = vars(self.transformer)
        self._own_patterns = {x: of_instance[x] for x in (_PATTERNS,) if x in of_instance}
        self._patterns = [*(getattr(self.transformer, _PATTERNS) or ()), "processor"]
        setattr(self.transformer, _PATTERNS, self._patterns)
        setattr(self.transformer, ATTACHMENT, self)
        _OF_ADAPTER.setdefault(adapter, WeakSet()).add(self)
        # Within forward: wrappers that bring weights along have run, and the positions tell this
        # forward pass from all others.
        self._hook = model.on_positions(self._before_blocks)

    @abstractmethod
    def _processors_for(
        self, block: Block, layer: object, backend: str | None
    ) -> tuple[Processor, Processor]:
        """Make the processors of a block's self-attention and cross-attention."""

    @abstractmethod
    def _before_blocks(self, latents: Tensor, rotary: Tensor) -> None:
        """Give every processor what this forward pass needs."""

    def detach(self) -> None:
        """Put the base's own processors back."""
        if not self._attached:
            return
        self._attached = False
        self._hook.remove()
        for attention, processor in self._in_place:
            if attention.processor is processor:
                attention.set_processor(processor.base)
        self._in_place, self._parts = [], []
        if getattr(self.transformer, _PATTERNS) is self._patterns:
            delattr(self.transformer, _PATTERNS)  # uncovers the class's own
            vars(self.transformer).update(self._own_patterns)
        delattr(self.transformer, ATTACHMENT)
        _OF_ADAPTER.get(self.adapter, WeakSet()).discard(self)

    def _check_forward(self, weight: Tensor, latents: Tensor) -> None:
        """Check that all processors are in place, without caches, and a weight has data.

        Not while torch.export traces, for which modules are not the transformer's own.
        """
        if torch.compiler.is_compiling():
            return
        for attention, processor in self._in_place:
            if attention.processor is not processor:
                raise ValueError(
                    f"transformer: got attention processor {type(attention.processor).__name__} "
                    f"since attach(), wanted the adapter's, whose place set_attn_processor gave "
                    f"away: call detach(), then attach() again"
                )
        remove_step_hooks(self._parts)
        self._check_not_shared_on_disk()
        check_has_data(weight, latents)

    def _check_not_shared_on_disk(self) -> None:
        """Refuse what diffusers would write after another transformer has emptied it."""
        if len(_OF_ADAPTER.get(self.adapter, ())) < 2:
            return
        if any(is_whole_on_disk(block.module) for block in self._wan.blocks):
            raise RuntimeError(
                "adapter: got one that two transformers share, while group offload keeps their "
                "blocks on the disk, wanted one each: attach_pipeline(pipe, [adapter, other]), "
                "other = adapter.copy_to(device, dtype), before enable_group_offload"
            )

    def _check_attached(self, method: str) -> None:
        if not self._attached:
            raise RuntimeError(f"{method}: the adapter is detached; attach it again first")


def _check_ready(model: WanFamily, adapter: GenHOIAdapter) -> None:
    """Check that no adapter is attached yet, processors are Wan's, and devices agree."""
    if hasattr(model.transformer, ATTACHMENT):
        raise ValueError(
            "transformer: got one with an adapter attached, wanted one without; call detach() on "
            "what attach() returned first"
        )
    for block in model.blocks:
        for attention in (block.self_attention, block.cross_attention):
            processor = attention.processor
            if type(processor) is not model.processor_class:
                raise ValueError(
                    f"transformer: got attention processor {type(processor).__name__}, wanted "
                    f"WanAttnProcessor, whose place the adapter's take"
                )
    weight, base = next(adapter.parameters()), next(model.transformer.parameters())
    if weight.device != base.device:  # under offloading, either place is right
        check_device("adapter", weight, execution_device(model.transformer), "the transformer")
