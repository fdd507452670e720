"""The base of diffusers' Wan text-to-video pipelines, with one transformer."""

from __future__ import annotations

from diffusers import WanPipeline
from torch import Tensor

from genhoi.bases.about import BaseSettings
from genhoi.bases.wan_folder import WanFolderBase

__all__ = ["NO_PLACE", "WanTextBase"]

NO_PLACE = (
    "A text-to-video base has no input for the clip: what is outside the mask is put into the "
    "latents at every step, with as much noise as they have, and so it is kept; the model was not "
    "trained to fit into it."
)


class WanTextBase(WanFolderBase):
    """The components of a diffusers `WanPipeline`."""

    pipeline_class = WanPipeline
    channels = (16, 16)
    task = "text-to-video"
    suggested = "for example Wan-AI/Wan2.1-T2V-1.3B-Diffusers, the smallest"
    settings = BaseSettings(
        caution=f"{NO_PLACE} GenHOI has no trained weights for text-to-video bases."
    )

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Return None: the model looks at no image."""
        return None
