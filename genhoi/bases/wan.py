"""The base of diffusers' Wan image-to-video pipelines, with one transformer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from diffusers import WanImageToVideoPipeline
from PIL import Image
from torch import Tensor

from genhoi.bases.wan_folder import WanFolderBase

__all__ = ["WanBase"]


class WanBase(WanFolderBase):
    """The components of a diffusers `WanImageToVideoPipeline`."""

    pipeline_class = WanImageToVideoPipeline
    channels = (36, 16)
    task = "image-to-video"

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Take every name: what is missing, and what to fetch, is said when it is read."""
        return True

    @classmethod
    def wanted_weights(cls, config: Mapping[str, Any], *, takes_text: bool) -> list[str]:
        """Want an image encoder where the transformer looks at images."""
        names = super().wanted_weights(config, takes_text=takes_text)
        return names + ["image_encoder"] * _takes_images(config)

    @classmethod
    def wanted_configs(cls, config: Mapping[str, Any], *, takes_text: bool) -> list[str]:
        """Want the image encoder's preprocessor with it."""
        names = ["image_processor/preprocessor_config.json"] * _takes_images(config)
        return names + super().wanted_configs(config, takes_text=takes_text)

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Run the image encoder on the first image, and the last where the model takes both."""
        config = self.transformer.config
        if not _takes_images(config):
            return None
        images = [first] if config.pos_embed_seq_len is None else [first, last]
        pictures = [Image.fromarray(image.cpu().numpy()) for image in images]
        embeds = self.pipe.encode_image(pictures, self.device).to(self.transformer.dtype)
        assert isinstance(embeds, Tensor)
        return embeds


def _takes_images(config: Mapping[str, Any]) -> bool:
    return config.get("image_dim") is not None
