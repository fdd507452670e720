"""A base model as `GenHOIPipeline` needs it: a transformer, a codec for frames, encoders."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genhoi.bases.about import BaseSettings
from genhoi.bases.lora import Lora, check_loras
from genhoi.bases.needs import BaseNeeds
from genhoi.conditioning.grid import STRIDES, Strides
from genhoi.models.experts import Expert
from genhoi.models.protocol import VideoModel
from genhoi.models.registry import model_of
from genhoi.models.sampling import TIMESTEPS

__all__ = [
    "NO_STRENGTHS",
    "TEXT_TOKENS",
    "Base",
    "Offload",
]

TEXT_TOKENS = 512
NO_STRENGTHS = (
    "references of this base are frames of the sequence, which have no weight of their own"
)
Offload = Literal["none", "model", "group"]


class Base(ABC):
    """What every base offers. All results lie on `device`; latents are float32.

    The attributes from `two_experts` on belong to the class: they are known before weights are
    loaded. `settings` too, which a base's folder may change (`read_settings`).

    Attributes:
        transformer: of a family that `genhoi.models.registry` knows.
        transformer_2: another of the same sizes, which takes over below `boundary`, or None.
        boundary: the noise level, 0 to 1, at which it does; None where there is no other.
        expert: which of two transformers was loaded alone, as `transformer`; None: all there are.
        device: where it computes.
        about: one sentence for people, on what was loaded.
        trained: whether the weights that were loaded come from training.
        two_experts: whether two transformers share the noise levels, as in Wan 2.2.
        takes_strengths: whether an object's weight can be changed: where references are a stream.
        frames_apart: whether every latent frame is encoded by itself, from its own pixels alone.
        can_offload: whether it is large enough to be kept off the GPU in parts.
        takes_lora: whether LoRA files for its transformer can be loaded.
        merges_video_lora: whether low-rank weights that were trained on the video's own attention
            are merged into a base that is written out; else they stay apart, for
            `load_video_lora`.
        settings: how it is used, and what it has learnt from.
    """

    transformer: Any
    transformer_2: Any = None
    boundary: float | None = None
    expert: Expert | None = None
    device: torch.device
    about: str
    trained: bool
    two_experts: bool = False
    takes_strengths: bool = True
    frames_apart: bool = False
    can_offload: bool = True
    takes_lora: bool = False
    merges_video_lora: bool = False
    settings: BaseSettings = BaseSettings()

    # ------------------------------------------------------- by name, before weights are loaded

    @classmethod
    @abstractmethod
    def takes(cls, name: str | os.PathLike[str]) -> bool:
        """Tell whether a name, as given to `--base`, means a base of this kind.

        The last kind in `genhoi.bases.load` gets every name that no other kind takes.
        """

    @classmethod
    @abstractmethod
    def read_config(cls, name: str | os.PathLike[str]) -> dict[str, Any]:
        """Read the transformer's configuration, as diffusers saves it; no weights are wanted.

        Raises:
            FileNotFoundError, ValueError: no such base, or one of another kind.
        """

    @classmethod
    def read_settings(cls, name: str | os.PathLike[str]) -> BaseSettings:
        """Read how the base is used: as its kind, but for what its folder says itself.

        Raises:
            ValueError: the folder's genhoi.json is none.
        """
        return cls.settings

    @classmethod
    def check_complete(cls, name: str | os.PathLike[str], *, own_transformer: bool = True) -> None:
        """Check that everything is there that `load` reads; nothing is loaded.

        Args:
            name: of the base.
            own_transformer: whether its transformer's weights are wanted too.

        Raises:
            FileNotFoundError: files are missing; the message lists them.
            ValueError: as `read_config`.
        """
        cls.read_config(name)

    @classmethod
    def needs(
        cls,
        name: str | os.PathLike[str],
        *,
        dtype: torch.dtype,
        frames: int,
        size: tuple[int, int],
    ) -> BaseNeeds:
        """Count what all but the transformer takes, from configurations alone.

        Args:
            name: of the base.
            dtype: as for `load`.
            frames, size: of a window, size as (height, width).

        Raises:
            FileNotFoundError, ValueError: as `read_config`.
        """
        return BaseNeeds()

    @classmethod
    def strides(cls, name: str | os.PathLike[str]) -> Strides:
        """Say how the base's pixels become tokens, from configurations alone.

        Raises:
            FileNotFoundError, ValueError: as `read_config`.
        """
        return STRIDES

    @classmethod
    def read_boundary(cls, name: str | os.PathLike[str]) -> float | None:
        """Read the noise level at which a second transformer takes over; None of a base with one.

        Raises:
            FileNotFoundError, ValueError: as `read_config`.
        """
        return None

    @classmethod
    @abstractmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        seed: int,
        transformer: Any = None,
    ) -> Base:
        """Load the base that a name means; `genhoi.bases.load.load_base` says more.

        Args:
            name, device, dtype, seed: as there.
            transformer: a loaded one of the base's sizes, in its own's place.
        """

    @classmethod
    def load_expert(
        cls,
        name: str | os.PathLike[str],
        expert: Expert,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> Base:
        """Load a base of two transformers with one of them, as its only one.

        Raises:
            ValueError: the base has one transformer.
        """
        raise ValueError(
            f"expert: got {expert!r} for {os.fspath(name)}, wanted none: it has one transformer"
        )

    @classmethod
    def shipped_adapters(cls, name: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Return the folder of the adapter that comes with the base, or two, one a transformer."""
        return ()

    # ---------------------------------------------------------------------------------- loaded

    @property
    def model(self) -> VideoModel:
        """Return the transformer as a member of its family, which hands over to the second."""
        model = model_of(self.transformer)
        if self.transformer_2 is not None and self.boundary is not None:
            model.hand_over(model_of(self.transformer_2), below=self.boundary * TIMESTEPS)
        return model

    @property
    def transformers(self) -> list[Any]:
        """List the transformers, that for high noise levels first."""
        return [x for x in (self.transformer, self.transformer_2) if x is not None]

    @property
    def levels(self) -> tuple[float, float]:
        """Return the lowest and highest noise level that the transformers are for."""
        if self.expert is None or self.boundary is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if self.expert == "high" else (0.0, self.boundary)

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames.

        Args:
            frames: uint8 [F, H, W, 3]; F = 1 + 4 n for a Wan. Of models with a VACE context also
                float32 in [-1, 1].

        Returns:
            Normalised float32 latents [1, C, 1 + n, H/8, W/8].
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to uint8 [F, H, W, 3] on the CPU."""

    @abstractmethod
    def encode_text(self, text: str) -> Tensor:
        """Encode a text to [1, 512, text_dim], zeros behind the text.

        A base that takes no text gives one row of zeros (`encode_no_text`).

        Raises:
            ValueError: a text that is too long, or any where none is taken.
        """

    def encode_no_text(self, text: str) -> Tensor:
        """Make one row of zeros, [1, 1, text_dim]; refuse any text.

        Raises:
            ValueError: there is a text.
        """
        if text:
            raise ValueError(
                f"prompt: got {text!r}, wanted none: this base was trained without texts"
            )
        config, dtype = self.transformer.config, self.transformer.dtype
        return torch.zeros(1, 1, config.text_dim, device=self.device, dtype=dtype)

    @abstractmethod
    def encode_image(self, first: Tensor, last: Tensor) -> Tensor | None:
        """Encode two images, uint8 [H, W, 3], to [1 or 2, tokens, image_dim].

        Returns None if the model takes none.

        Only bases for first and last frame look at `last`.
        """

    @abstractmethod
    def load_video_lora(self, folder: str | os.PathLike[str]) -> None:
        """Add low-rank weights to the video's own attention, as `genhoi train` writes them.

        Raises:
            ImportError: peft is not installed.
            OSError: there are none in the folder.
            ValueError: this kind of base takes none.
        """

    def load_loras(self, loras: Sequence[Lora]) -> None:
        """Load LoRA files into the transformers, once an adapter is attached.

        Raises:
            ImportError: peft is not installed.
            ValueError: the base takes none, or a file holds no weights for it.
        """
        check_loras(loras, takes_lora=self.takes_lora, two_experts=self.two_experts)

    def save_trained(
        self, folder: Path, transformer: Any, *, about: str, full_precision: bool
    ) -> None:
        """Write a trained transformer of this kind of base.

        Args:
            folder: made if it isn't there.
            transformer: to be written.
            about: one sentence for people on where the weights come from.
            full_precision: whether its weights keep their own type: low-rank changes are small, and
                bfloat16 would round them away.
        """
        transformer.save_pretrained(folder)

    # Bases that are made where they compute, in one piece, need neither of the following two.

    def place(self, offload: Offload) -> None:  # noqa: B027
        """Move what computes to the device, once the adapter is attached.

        Args:
            offload: "model" keeps one component at a time there, "group" one block of the
                transformer.
        """

    def encoders_to(self, device: torch.device | str) -> None:  # noqa: B027
        """Move everything but the transformer."""
