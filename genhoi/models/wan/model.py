"""Wan image-to-video in diffusers' format, as GenHOI asks about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from genhoi.conditioning.condition import Condition, build_condition
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.options import Options
from genhoi.models.protocol import Block
from genhoi.models.wan.attach import WanAttachment
from genhoi.models.wan.channels import complete_channels
from genhoi.models.wan.family import WanStreamFamily

__all__ = ["WanModel"]


class WanModel(WanStreamFamily):
    """A diffusers ``WanTransformer3DModel``, whose own forward stays as it is."""

    @classmethod
    def takes(cls, class_name: str, config: Mapping[str, Any]) -> bool:
        """Take every ``WanTransformer3DModel`` and no other class."""
        return class_name == WanTransformer3DModel.__name__

    @classmethod
    def empty(cls, config: Mapping[str, Any]) -> WanModel:
        """Build the transformer from its configuration."""
        return cls(WanTransformer3DModel.from_config(dict(config)))

    def build_condition(
        self,
        frames: Tensor,
        mask: Tensor,
        encode: Callable[[Tensor], Tensor],
        *,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
    ) -> Condition:
        """Build [mask 4 | masked-video latent C]."""
        return build_condition(
            frames,
            mask,
            encode,
            first_frame=first_frame,
            last_frame=last_frame,
            strides=self.sizes.strides,
        )

    def condition_mask(self, condition: Tensor) -> Tensor:
        """Return the first 4 channels."""
        return condition[:, : self.sizes.strides.time]

    def condition_latents(self, condition: Tensor) -> Tensor:
        """Return all channels but the first 4."""
        return condition[:, self.sizes.strides.time :]

    def given_condition(self, clean: Tensor) -> Tensor:
        """Put a mask of zeros in front of the clean latents."""
        mask = torch.zeros_like(self.condition_mask(clean))
        return torch.cat([mask, clean], dim=1)

    def inputs(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
    ) -> dict[str, Any]:
        """Join latents and condition along the channels."""
        return {
            "hidden_states": torch.cat([latents, condition], dim=1),
            "timestep": timestep,
            "encoder_hidden_states": text,
            "encoder_hidden_states_image": None if image is None else self._image_rows(image),
            "return_dict": False,
        }

    def _image_rows(self, image: Tensor) -> Tensor:
        """Give first and last image a row each, as diffusers has them, where they share one."""
        both = self.transformer.config.pos_embed_seq_len
        return image.unflatten(1, (2, -1)).flatten(0, 1) if image.shape[1] == both else image

    @cached_property
    def blocks(self) -> Sequence[Block]:
        """Name ``attn1`` and ``attn2`` of every block."""
        return [Block(block, block.attn1, block.attn2) for block in self.transformer.blocks]

    @property
    def video_projections(self) -> str:
        """Match q, k and v of ``attn1``."""
        return r".*attn1\.(to_q|to_k|to_v)"

    def embed_reference(self, reference: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Complete the channels and run the patch embedding."""
        x = self.transformer.patch_embedding(self._completed(reference))
        height, width = x.shape[-2:]
        return x.flatten(2).transpose(1, 2).contiguous(), (height, width)

    def check_reference(self, reference: Tensor) -> None:
        """Raise ValueError for another number of channels."""
        self._completed(reference)

    def _completed(self, reference: Tensor) -> Tensor:
        return complete_channels(reference, self.sizes.in_channels, self.sizes.latent_channels)

    def still_modulation(self, tokens: Tensor) -> Tensor:
        """Run the condition embedder at timestep 0."""
        # The embedder wants a text, whose embedding is not used.
        no_text = tokens.new_zeros(1, 1, self.sizes.text_dim)
        timestep = tokens.new_zeros(1)
        _, modulation, _, _ = self.transformer.condition_embedder(timestep, no_text, None)
        return modulation.unflatten(1, (6, -1))  # type: ignore[no-any-return]

    def attach(
        self, adapter: GenHOIAdapter, options: Options, backend: str | None = None
    ) -> WanAttachment:
        """Put processors and a hook in place."""
        return WanAttachment(self, adapter, options, backend)
