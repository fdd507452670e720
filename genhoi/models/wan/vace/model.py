"""Wan VACE in diffusers' format, as GenHOI asks about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers import WanVACETransformer3DModel
from torch import Tensor

from genhoi.conditioning.condition import Condition
from genhoi.conditioning.vace import build_vace_condition, with_reference_frames
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.options import Options
from genhoi.models.protocol import Block
from genhoi.models.wan.family import WanFamily
from genhoi.models.wan.vace.attach import VaceAttachment

__all__ = ["VaceModel"]


class VaceModel(WanFamily):
    """A diffusers ``WanVACETransformer3DModel``, whose own forward stays as it is."""

    references_in_sequence = True

    @classmethod
    def takes(cls, class_name: str, config: Mapping[str, Any]) -> bool:
        """Take every ``WanVACETransformer3DModel`` and no other class."""
        return class_name == WanVACETransformer3DModel.__name__

    @classmethod
    def empty(cls, config: Mapping[str, Any]) -> VaceModel:
        """Build the transformer from its configuration."""
        return cls(WanVACETransformer3DModel.from_config(dict(config)))

    def build_condition(
        self,
        frames: Tensor,
        mask: Tensor,
        encode: Callable[[Tensor], Tensor],
        *,
        first_frame: Tensor | None = None,
        last_frame: Tensor | None = None,
    ) -> Condition:
        """Build [inactive latent C | reactive latent C | mask 64]."""
        return build_vace_condition(
            frames,
            mask,
            encode,
            first_frame=first_frame,
            last_frame=last_frame,
            strides=self.sizes.strides,
        )

    def condition_mask(self, condition: Tensor) -> Tensor:
        """Return the channels behind the two latents."""
        return condition[:, 2 * self.sizes.latent_channels :]

    def condition_latents(self, condition: Tensor) -> Tensor:
        """Return the inactive latent."""
        return condition[:, : self.sizes.latent_channels]

    def given_condition(self, clean: Tensor) -> Tensor:
        """Refuse: what lies beside a given frame is the codec's grey, which only it knows."""
        raise ValueError(
            "given: got frames to be given within the clip, wanted none, first or first_last, for "
            "a VACE model's condition is encoded as a whole"
        )

    def with_references(self, condition: Tensor, references: Sequence[Tensor]) -> Tensor:
        """Put [reference | zeros] before the video's frames, in order."""
        return with_reference_frames(condition, references)

    def inputs(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
    ) -> dict[str, Any]:
        """Hand the condition to the VACE blocks."""
        return {
            "hidden_states": latents,
            "control_hidden_states": condition,
            "timestep": timestep,
            "encoder_hidden_states": text,
            "return_dict": False,
        }

    @cached_property
    def blocks(self) -> Sequence[Block]:
        """Name ``attn1`` and ``attn2`` of every VACE block."""
        return [Block(block, block.attn1, block.attn2) for block in self.transformer.vace_blocks]

    @property
    def all_blocks(self) -> Sequence[torch.nn.Module]:
        """List the VACE blocks, then the trunk's, as they run."""
        return [*self.transformer.vace_blocks, *self.transformer.blocks]

    @property
    def video_projections(self) -> str:
        """Match q, k and v of the trunk's ``attn1``."""
        return r"blocks\.\d+\.attn1\.(to_q|to_k|to_v)"

    @property
    def adapter_sizes(self) -> dict[str, Any]:
        """Add the width of the feed-forward layers."""
        return super().adapter_sizes | {"ffn_dim": self.sizes.ffn_dim}

    @property
    def adapter_defaults(self) -> dict[str, Any]:
        """Take the authors' rank; there is no mask gate."""
        return {"rank": 32, "mask_gate": False}

    def attach(
        self, adapter: GenHOIAdapter, options: Options, backend: str | None = None
    ) -> VaceAttachment:
        """Put processors and hooks in place."""
        return VaceAttachment(self, adapter, options, backend)
