"""The base of diffusers' Wan VACE pipelines, with one transformer."""

from __future__ import annotations

from diffusers import WanVACEPipeline
from torch import Tensor

from genhoi.bases.wan_folder import WanFolderBase

__all__ = ["WanVACEBase"]


class WanVACEBase(WanFolderBase):
    """The components of a diffusers `WanVACEPipeline`."""

    pipeline_class = WanVACEPipeline
    channels = (16, 16)
    task = "VACE"
    takes_strengths = False
    suggested = (
        "for example Wan-AI/Wan2.1-VACE-14B-diffusers: 17.3 billion parameters in the transformer, "
        "5.7 in the text encoder, 0.1 in the VAE, so about 46 GB in bfloat16 and 92 GB in float32"
    )

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Return None: what the model sees of the clip lies in the VACE context."""
        return None
