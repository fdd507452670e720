"""The bases of Wan 2.2 pipelines with two transformers, one for high and one for low noise."""

from __future__ import annotations

import os

from genhoi.bases.about import BaseSettings, EditDefaults
from genhoi.bases.wan import WanBase
from genhoi.bases.wan_text import NO_PLACE, WanTextBase
from genhoi.bases.wan_vace import WanVACEBase

__all__ = ["WanExpertsBase", "WanTextExpertsBase", "WanVACEExpertsBase"]

_NO_WEIGHTS = (
    "GenHOI has no trained weights for Wan2.2; an adapter of your own is for one of the base's two "
    "transformers (genhoi train --expert), or for both."
)


class WanExpertsBase(WanBase):
    """Image-to-video, as Wan 2.2 I2V-A14B. Steps, guidance and shift are those of its authors."""

    two_experts = True
    suggested = "for example Wan-AI/Wan2.2-I2V-A14B-Diffusers"
    settings = BaseSettings(defaults=EditDefaults(steps=40, guidance=3.5), caution=_NO_WEIGHTS)

    @classmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Take what its model_index.json describes, unlike `WanBase`."""
        return super(WanBase, cls).takes(name)


class WanTextExpertsBase(WanTextBase):
    """Text-to-video, as Wan 2.2 T2V-A14B. Steps, guidance and shift are those of its authors."""

    two_experts = True
    suggested = "for example Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    settings = BaseSettings(
        defaults=EditDefaults(steps=40, guidance=4.0, guidance_2=3.0, shift=12.0),
        caution=f"{NO_PLACE} {_NO_WEIGHTS}",
    )


class WanVACEExpertsBase(WanVACEBase):
    """VACE with two transformers, as VACE-Fun of Wan 2.2."""

    two_experts = True
    suggested = "for example a VACE-Fun pipeline of Wan 2.2 in diffusers' format"
    settings = BaseSettings(caution=_NO_WEIGHTS)
