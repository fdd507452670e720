"""Wan 2.2 Animate in diffusers' format, as GenHOI asks about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers import WanAnimateTransformer3DModel
from diffusers.models.transformers.transformer_wan_animate import WanAttnProcessor
from torch import Tensor

from genhoi.models.wan.model import WanModel

__all__ = ["WanAnimateModel"]


class WanAnimateModel(WanModel):
    """A diffusers ``WanAnimateTransformer3DModel``, whose own forward stays as it is.

    Latent frame 0 is the character, before the video's: its tokens stay outside the mask. The
    reference stream passes the face adapters by, which know the video's frames alone.
    """

    # diffusers has a class of its own here, equal to that of `WanTransformer3DModel`.
    processor_class: ClassVar[type] = WanAttnProcessor

    @classmethod
    def takes(cls, class_name: str, config: Mapping[str, Any]) -> bool:
        """Take every ``WanAnimateTransformer3DModel`` and no other class."""
        return class_name == WanAnimateTransformer3DModel.__name__

    @classmethod
    def empty(cls, config: Mapping[str, Any]) -> WanAnimateModel:
        """Build the transformer from its configuration."""
        return cls(WanAnimateTransformer3DModel.from_config(dict(config)))

    def inputs(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
    ) -> dict[str, Any]:
        """Refuse: the model wants a pose and a face too, which nothing here brings."""
        raise ValueError(
            "transformer: got one of Wan Animate, wanted image-to-video or VACE: it needs poses "
            "and faces, so attach() to it and run it in diffusers' WanAnimatePipeline"
        )
