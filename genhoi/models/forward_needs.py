"""What forward passes of a transformer with an adapter take, from its configuration alone.

The family's own code runs on the meta device, without weights: the first pass of a clip, which
makes what is kept of the references, and a later one, which finds it. So the numbers need no
formula of any family, and a family whose references are frames of its one sequence keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genhoi.conditioning.grid import Grid
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_config import AdapterConfig
from genhoi.models.attach import attach
from genhoi.models.counted import Counter, counting
from genhoi.models.options import Preset
from genhoi.models.protocol import ModelSizes, VideoModel
from genhoi.models.registry import empty_model

__all__ = ["EmptyModel", "ForwardNeeds", "Work", "cast_weights"]


@dataclass(frozen=True)
class Work:
    """Operations and traffic.

    Args:
        attention: operations of attention, as if every token saw all references.
        products: of all other matrix products, and convolutions.
        moved: bytes that everything else reads and writes.
    """

    attention: float = 0.0
    products: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.attention + other.attention,
            self.products + other.products,
            self.moved + other.moved,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.attention * times, self.products * times, self.moved * times)


@dataclass(frozen=True)
class ForwardNeeds:
    """What forward passes over one grid take.

    Args:
        tokens: of the sequence, references in it included.
        once: what the first pass does more than the others: the references, once a clip.
        each: of every pass.
        cache_bytes: what the first pass leaves behind for the others.
        activation_bytes: the most that a pass's tensors take beside that.
    """

    tokens: int
    once: Work
    each: Work
    cache_bytes: int
    activation_bytes: int


class EmptyModel:
    """A transformer with an adapter, without weights.

    Args:
        config: the transformer's.
        dtype: of the weights, but those that the family keeps in float32.
        adapter: its configuration; None for a fresh one.
        preset: as for `genhoi.attach`.

    Attributes:
        sizes: of the model.
        parameters: of the transformer, without the adapter.
        weight_bytes, adapter_bytes: of the weights.
        block_bytes: the most that one block and everything outside the blocks take, adapter
            included: what is there at once while blocks come and go.

    Raises:
        TypeError: no family takes the configuration.
        ValueError: an adapter for another base.

    Example:
        >>> from genhoi.bases.load import base_config
        >>> model = EmptyModel(base_config("tiny"), dtype=torch.float32)
        >>> needs = model.forward_needs((3, 8, 8), references=[(8, 8)], text_tokens=1)
        >>> needs.tokens, needs.cache_bytes > 0
        (48, True)
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        adapter: AdapterConfig | None = None,
        preset: Preset | None = None,
    ) -> None:
        with torch.device("meta"):
            self._model = empty_model(config)
            self._dtype = dtype
            transformer = self._model.transformer.eval()
            cast_weights(transformer, dtype)
            self.parameters = sum(p.numel() for p in transformer.parameters())
            self.weight_bytes = _bytes(transformer)
            if adapter is None:
                weights = GenHOIAdapter.for_transformer(transformer)
            else:
                weights = GenHOIAdapter(adapter)
            weights.to(dtype)
            self.adapter_bytes = _bytes(weights)
            # The mask gate asks for values, and takes no memory to speak of.
            self._attachment = attach(transformer, weights, preset=preset, mask_gate=False)
        blocks = [_bytes(block) for block in self._model.all_blocks]
        self.block_bytes = _bytes(transformer) - sum(blocks) + max(blocks)
        self._channels = _condition_channels(self._model)

    @property
    def sizes(self) -> ModelSizes:
        """Return the sizes of the model."""
        return self._model.sizes

    def forward_needs(
        self,
        latent_grid: Grid,
        *,
        references: Sequence[tuple[int, int]],
        text_tokens: int,
        image: tuple[int, int, int] | None = None,
    ) -> ForwardNeeds:
        """Count the first pass of a clip and a later one.

        Args:
            latent_grid: of a window, (frames, height, width) in latent pixels.
            references: (height, width) of each, in latent pixels.
            text_tokens: that the transformer gets.
            image: shape of the encoded image.
        """
        channels = self.sizes.latent_channels
        with torch.inference_mode():
            given = [torch.empty(1, channels, 1, *x, device="meta") for x in references]
            self._attachment.set_reference(given)
            first, tokens = self._pass(latent_grid, given, text_tokens, image)
            kept = first.live_bytes
            later, _ = self._pass(latent_grid, given, text_tokens, image)
            self._attachment.set_reference(None)
        once, each = _work(first), _work(later)
        return ForwardNeeds(
            tokens=tokens,
            once=once + each * -1,
            each=each,
            cache_bytes=kept,
            activation_bytes=max(first.peak_bytes - kept, later.peak_bytes),
        )

    def _pass(
        self,
        latent_grid: Grid,
        references: Sequence[Tensor],
        text_tokens: int,
        image: tuple[int, int, int] | None,
    ) -> tuple[Counter, int]:
        """Run one pass; return what it took, and the tokens of its sequence."""

        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=self._dtype, device="meta")

        with counting() as counter:
            condition = self._model.with_references(
                empty(1, self._channels, *latent_grid), references
            )
            latents = empty(1, self.sizes.latent_channels, *condition.shape[2:])
            f, h, w = self.sizes.grid(latents)
            self._model.transformer(
                **self._model.inputs(
                    latents,
                    condition,
                    torch.empty(1, device="meta"),
                    empty(1, text_tokens, self.sizes.text_dim),
                    None if image is None else empty(*image),
                )
            )
            del latents, condition
        return counter, f * h * w


def _work(counter: Counter) -> Work:
    return Work(counter.attention_flops, counter.product_flops, counter.moved_bytes)


def cast_weights(transformer: Any, dtype: torch.dtype) -> None:
    """Cast as loading in a dtype does: some parts stay in float32."""
    keep = transformer._keep_in_fp32_modules or ()
    for name, weight in transformer.named_parameters():
        if not set(name.split(".")) & set(keep):
            weight.data = weight.data.to(dtype)


def _bytes(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _condition_channels(model: VideoModel) -> int:
    """Count the channels that the model sees beside the noise, on its smallest clip."""
    strides = model.sizes.strides
    frames = torch.zeros(1 + strides.time, strides.token, strides.token, 3, dtype=torch.uint8)
    mask = torch.ones(frames.shape[:3], dtype=torch.bool)

    def encode(pixels: Tensor) -> Tensor:
        grid = strides.latent_frames(len(pixels)), strides.patch, strides.patch
        return torch.zeros(1, model.sizes.latent_channels, *grid)

    return model.build_condition(frames, mask, encode).channels.shape[1]
