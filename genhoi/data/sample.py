"""One clip of hand and object, as training, evaluation and the loaders hand it around."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genhoi.media.media import Clip

__all__ = ["HOIDataset", "HOISample"]


@dataclass(frozen=True)
class HOISample:
    """A clip, where its hand and object are, and a picture of the object.

    Args:
        name: for people; unique in its set.
        clip: F frames of H x W pixels.
        mask: bool [F, H, W], the region to generate: hand and object.
        object: uint8 [h, w, 3], the object's picture, on grey 128.
        prompt: what the clip shows, "" where nobody said.
        object_mask: bool [F, H, W], pixels that show the object; None where it is not known.
        hand_mask: bool [F, H, W], pixels that show the hand; None where it is not known.
        object_boxes: float32 [F, 4], left, top, right, bottom of the whole object in pixels,
            fingers or not; None where it is not known.

    Raises:
        TypeError, ValueError: something has another dtype, or another shape than the clip.
    """

    name: str
    clip: Clip
    mask: Tensor
    object: Tensor
    prompt: str = ""
    object_mask: Tensor | None = None
    hand_mask: Tensor | None = None
    object_boxes: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that everything belongs together."""
        shape = tuple(self.clip.frames.shape[:3])
        for name in ("mask", "object_mask", "hand_mask"):
            mask = getattr(self, name)
            if mask is None and name != "mask":
                continue
            if mask.dtype != torch.bool:
                raise TypeError(f"{name}: got {mask.dtype}, wanted torch.bool")
            if tuple(mask.shape) != shape:
                raise ValueError(f"{name}: got {tuple(mask.shape)}, wanted {shape} as the clip")
        if self.object.dtype != torch.uint8:
            raise TypeError(f"object: got {self.object.dtype}, wanted torch.uint8")
        if self.object.ndim != 3 or self.object.shape[2] != 3:
            raise ValueError(f"object: got {tuple(self.object.shape)}, wanted [h, w, 3]")
        if self.object_boxes is not None and tuple(self.object_boxes.shape) != (shape[0], 4):
            raise ValueError(
                f"object_boxes: got {tuple(self.object_boxes.shape)}, wanted ({shape[0]}, 4)"
            )


class HOIDataset(Protocol):
    """A finite, ordered set of samples; the same index always gives the same sample."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: int) -> HOISample:
        """Sample `index`, from 0; IndexError beyond the last."""

    def __iter__(self) -> Iterator[HOISample]:
        """All of them, in order."""

    def fingerprint(self) -> str:
        """Says all that the samples depend on: two sets with the same words hold the same."""
