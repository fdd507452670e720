"""The base of Wan 2.2 TI2V, whose tokens have timesteps of their own."""

from __future__ import annotations

from diffusers import WanImageToVideoPipeline
from torch import Tensor

from genhoi.bases.about import BaseSettings, EditDefaults, TrainedOn
from genhoi.bases.wan_folder import WanFolderBase

__all__ = ["WanTokensBase"]


class WanTokensBase(WanFolderBase):
    """The components of a diffusers pipeline with `expand_timesteps`.

    What is given of the clip lies clean in the latents, at timestep 0; the rest has noise.
    """

    pipeline_class = WanImageToVideoPipeline
    channels = (48, 48)
    task = "Wan2.2 TI2V"
    timestep_by_token = True
    suggested = "for example Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    settings = BaseSettings(
        defaults=EditDefaults(window=121, size=(704, 1280)),
        trained_on=TrainedOn(sizes=((704, 1280),), frames=121),
        caution=(
            "Wan2.2 TI2V was trained with a given first frame; here all that is outside the mask "
            "is given in the same way, which is new to it. GenHOI has no trained weights for it."
        ),
    )

    @classmethod
    def class_names(cls) -> tuple[str, ...]:
        """Take both: the published folder says WanPipeline, and either class loads it."""
        return ("WanPipeline", "WanImageToVideoPipeline")

    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Return None: the model looks at no image."""
        return None
