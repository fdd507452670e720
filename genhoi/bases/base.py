"""A base model as `GenHOIPipeline` needs it: a Wan transformer, a codec for frames, encoders.

`genhoi.bases.tiny` has one without any download, `genhoi.bases.wan` those in diffusers' format.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genhoi.conditioning.masks import MaskRule

__all__ = ["TEXT_TOKENS", "Base", "EditDefaults"]

TEXT_TOKENS = 512


@dataclass(frozen=True)
class EditDefaults:
    """How a base is best used where the user says nothing; the values are Wan2.1's.

    Args:
        steps: of Euler's method.
        guidance: on the text.
        shift: of the noise levels.
        window: frames edited at once.
        mask_rule: when a token counts as masked for the gate.
        long_side: of the clip, in pixels; larger clips are scaled down to it.
    """

    steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    window: int = 81
    mask_rule: MaskRule = "release"
    long_side: int = 832


class Base(ABC):
    """What every base offers. All results lie on `device`; latents are float32.

    Attributes:
        transformer: a diffusers `WanTransformer3DModel`.
        device: where it computes.
        about: one sentence for people.
        trained: whether its weights come from training.
        takes_text: whether a prompt means anything to it.
        frames_apart: whether every latent frame is encoded by itself, from its own pixels alone.
        defaults: how it is best used.
    """

    transformer: Any
    device: torch.device
    about: str
    trained: bool
    takes_text: bool = True
    frames_apart: bool = False
    defaults: EditDefaults = EditDefaults()

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [F, H, W, 3], F = 1 + 4 n -> normalised float32 latents [1, C, 1 + n, H/8, W/8]."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The way back: uint8 [F, H, W, 3] on the CPU."""

    @abstractmethod
    def encode_text(self, text: str) -> Tensor:
        """[1, 512, text_dim], zeros behind the text; one row of zeros where no text is taken.

        Raises:
            ValueError: a text that is too long, or any where none is taken.
        """

    @abstractmethod
    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """uint8 [H, W, 3] each -> [1 or 2, tokens, image_dim], or None if the model takes none.

        Only bases for first and last frame look at `last`.
        """

    def load_video_lora(self, folder: str | os.PathLike[str]) -> None:
        """Add low-rank weights to the video's own attention, as `genhoi train` writes them.

        Raises:
            ImportError: peft is not installed.
            OSError: there are none in the folder.
            ValueError: this kind of base takes none.
        """
        raise ValueError(
            f"video_lora: got {os.fspath(folder)}, wanted none for this base: a tiny base has such "
            f"weights in it"
        )

    # Bases that are made where they compute, in one piece, need neither of the following two.

    def place(self, offload: Literal["none", "model", "group"]) -> None:  # noqa: B027
        """Move what computes to the device, once the adapter is attached.

        Args:
            offload: "model" keeps one component at a time there, "group" one block of the
                transformer.
        """

    def encoders_to(self, device: torch.device | str) -> None:  # noqa: B027
        """Move everything but the transformer."""
