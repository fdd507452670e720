"""A base model as `GenHOIPipeline` needs it: a Wan transformer, a codec for frames, encoders.

`genhoi.tiny` has one without any download, `genhoi.wan_base` those in diffusers' format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

__all__ = ["TEXT_TOKENS", "Base"]

TEXT_TOKENS = 512


class Base(ABC):
    """What every base offers. All results lie on `device`; latents are float32.

    Attributes:
        transformer: a diffusers `WanTransformer3DModel`.
        device: where it computes.
        about: one sentence for people.
        trained: whether its weights come from training.
    """

    transformer: Any
    device: torch.device
    about: str
    trained: bool

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [F, H, W, 3], F = 1 + 4 n -> normalised float32 latents [1, C, 1 + n, H/8, W/8]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The way back: uint8 [F, H, W, 3] on the CPU."""

    @abstractmethod
    def encode_text(self, text: str) -> Tensor:
        """[1, 512, text_dim], zeros behind the text; ValueError for a text that is too long."""

    @abstractmethod
    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """uint8 [H, W, 3] each -> [1 or 2, tokens, image_dim], or None if the model takes none.

        Only bases for first and last frame look at `last`.
        """
