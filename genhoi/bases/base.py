"""A base model as `GenHOIPipeline` needs it: a transformer, a codec for frames, encoders."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genhoi.conditioning.masks import MaskRule
from genhoi.models.protocol import VideoModel
from genhoi.models.registry import model_of

__all__ = [
    "NO_STRENGTHS",
    "TEXT_TOKENS",
    "Base",
    "CropMode",
    "EditDefaults",
    "Offload",
    "TrainedOn",
]

TEXT_TOKENS = 512
NO_STRENGTHS = (
    "references of this base are frames of the sequence, which have no weight of their own"
)
Offload = Literal["none", "model", "group"]
CropMode = Literal["auto", "none"]


@dataclass(frozen=True)
class TrainedOn:
    """What clips a base has learnt from; far from them it paints worse. The values are Wan2.1's.

    Args:
        sizes: (height, width) of the frames, in pixels; lying or standing.
        frames: of a clip.
        mask_shares: least and largest share of a frame that was hidden.
        outlines: whether masks followed hand and object closely, so that a rectangle is new to it.
    """

    sizes: tuple[tuple[int, int], ...] = ((480, 832), (720, 1280))
    frames: int = 81
    mask_shares: tuple[float, float] = (0.005, 0.5)
    outlines: bool = False


@dataclass(frozen=True)
class EditDefaults:
    """How a base is best used where the user says nothing; the values are Wan2.1's.

    Args:
        steps: of Euler's method.
        guidance: on the text.
        shift: of the noise levels.
        window: frames edited at once.
        overlap: frames that windows have in common and are faded over.
        match_colour: give every window the source's colours outside the masks.
        mask_rule: when a token counts as masked for the gate.
        size: (height, width) that the model works at, lying or standing.
        crop: "auto": a box around the masks is edited where it is less than `crop_below` of the
            frame; "none": always the whole frame.
        crop_below: for that.
        keep_background: put the source's own pixels back outside the masks.
    """

    steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    window: int = 81
    overlap: int = 1
    match_colour: bool = False
    mask_rule: MaskRule = "release"
    size: tuple[int, int] = (480, 832)
    crop: CropMode = "auto"
    crop_below: float = 1 / 3
    keep_background: bool = True


class Base(ABC):
    """What every base offers. All results lie on `device`; latents are float32.

    The attributes from `takes_text` on belong to the class: they are known before weights are
    loaded.

    Attributes:
        transformer: of a family that `genhoi.models.registry` knows.
        device: where it computes.
        about: one sentence for people.
        trained: whether its weights come from training.
        takes_text: whether a prompt means anything to it.
        takes_strengths: whether an object's weight can be changed: where references are a stream.
        frames_apart: whether every latent frame is encoded by itself, from its own pixels alone.
        can_offload: whether it is large enough to be kept off the GPU in parts.
        merges_video_lora: whether low-rank weights that were trained on the video's own attention
            are merged into a base that is written out; else they stay apart, for
            `load_video_lora`.
        defaults: how it is best used.
        trained_on: what it has learnt from.
        caution: what everybody has to know before using it, in plain sentences; "" for nothing.
    """

    transformer: Any
    device: torch.device
    about: str
    trained: bool
    takes_text: bool = True
    takes_strengths: bool = True
    frames_apart: bool = False
    can_offload: bool = True
    merges_video_lora: bool = False
    defaults: EditDefaults = EditDefaults()
    trained_on: TrainedOn = TrainedOn()
    caution: str = ""

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
    def shipped_adapter(cls, name: str | os.PathLike[str]) -> Path | None:
        """Return the folder of the adapter that comes with the base; None where none does."""
        return None

    @classmethod
    def is_untrained(cls, name: str | os.PathLike[str]) -> bool:
        """Tell whether a name means random weights."""
        return False

    # ---------------------------------------------------------------------------------- loaded

    @property
    def model(self) -> VideoModel:
        """Return the transformer as a member of its family."""
        return model_of(self.transformer)

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

        A base that takes no text gives one row of zeros.

        Raises:
            ValueError: a text that is too long, or any where none is taken.
        """

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
