"""Wan transformers without channels for a condition: what is given lies in the noisy latents.

Their condition is [mask 4 | masked-video latent C] as for image-to-video, but they never see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F

from genhoi.models.wan.family import latent_channels
from genhoi.models.wan.model import WanModel

__all__ = ["WanTextModel", "WanTokensModel"]

_OF_TOKENS = 48  # latent channels of Wan 2.2 TI2V, whose tokens have timesteps of their own


def _sees_no_condition(class_name: str, config: Mapping[str, Any]) -> bool:
    is_wan = class_name == WanTransformer3DModel.__name__
    return is_wan and config.get("in_channels", 16) == latent_channels(config)


class WanTextModel(WanModel):
    """Text-to-video, of Wan 2.1 and 2.2: what is given is put back at every noise level."""

    @classmethod
    def takes(cls, class_name: str, config: Mapping[str, Any]) -> bool:
        """Take a transformer whose input is the latents alone."""
        return _sees_no_condition(class_name, config) and latent_channels(config) != _OF_TOKENS

    def with_given(
        self, latents: Tensor, condition: Tensor, noise: Tensor, sigma: float | Tensor
    ) -> Tensor:
        """Take what is given from the clip, with as much noise as the rest has."""
        clean = self.condition_latents(condition).to(latents.dtype)
        level = sigma.view(-1, 1, 1, 1, 1) if isinstance(sigma, Tensor) else sigma
        generated = self._generated(condition).bool()
        return torch.where(generated, latents, (1 - level) * clean + level * noise)

    def _generated(self, condition: Tensor) -> Tensor:
        """Say which latent pixels are generated, in any of their frames: [B, 1, f, h, w]."""
        return self.condition_mask(condition).amax(1, keepdim=True)

    def inputs(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
    ) -> dict[str, Any]:
        """Leave the condition out."""
        return {
            "hidden_states": latents,
            "timestep": timestep,
            "encoder_hidden_states": text,
            "encoder_hidden_states_image": image,
            "return_dict": False,
        }


class WanTokensModel(WanTextModel):
    """Wan 2.2 TI2V: tokens that are given stay clean, at timestep 0."""

    @classmethod
    def takes(cls, class_name: str, config: Mapping[str, Any]) -> bool:
        """Take a transformer whose input is the 48 latent channels alone."""
        return _sees_no_condition(class_name, config) and latent_channels(config) == _OF_TOKENS

    def with_given(
        self, latents: Tensor, condition: Tensor, noise: Tensor, sigma: float | Tensor
    ) -> Tensor:
        """Take what is given from the clip, clean at every noise level."""
        clean = self.condition_latents(condition).to(latents.dtype)
        return torch.where(self._generated(condition).bool(), latents, clean)

    def _generated(self, condition: Tensor) -> Tensor:
        """Say it of whole tokens, for a token has one timestep."""
        _, rows, columns = self.sizes.patch
        pixels = super()._generated(condition).flatten(0, 1)
        tokens = F.max_pool2d(pixels, (rows, columns))
        whole = tokens.repeat_interleave(rows, 2).repeat_interleave(columns, 3)
        return whole.unflatten(0, (-1, 1))

    def predicted(self, condition: Tensor) -> Tensor | None:
        """Leave out what is given: there is no noise in it."""
        return self._generated(condition)

    def inputs(
        self,
        latents: Tensor,
        condition: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor | None,
    ) -> dict[str, Any]:
        """Give every token its timestep, [B, tokens]."""
        _, rows, columns = self.sizes.patch
        tokens = self._generated(condition)[:, 0, :, ::rows, ::columns].flatten(1)
        by_token = tokens.to(timestep.dtype) * timestep[:, None]
        return super().inputs(latents, condition, by_token, text, image)
