"""A result beside its ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.media import Clip

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """A result with its ground truth, of one length and size.

    Args:
        name: unique in its set.
        result, truth: F frames of H x W pixels.
        mask: bool [F, H, W], where the result was generated.
        object: uint8 [h, w, 3], picture of the object, on grey 128; None: not compared with it.
        object_mask: bool [F, H, W], where the truth shows the object; None: the mask's region
            stands for it.
        notes: sentences on how the case was made from its files.

    Raises:
        TypeError, ValueError: something has another type, length or size.
    """

    name: str
    result: Clip
    truth: Clip
    mask: Tensor
    object: Tensor | None = None
    object_mask: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that everything belongs together."""
        shape = tuple(self.truth.frames.shape)
        if tuple(self.result.frames.shape) != shape:
            raise ValueError(
                f"case {self.name}: the result's frames are {tuple(self.result.frames.shape)}, "
                f"want {shape} as the truth's; nothing is cut or scaled"
            )
        for name in ("mask", "object_mask"):
            mask = getattr(self, name)
            if mask is None and name != "mask":
                continue
            if mask.dtype != torch.bool:
                raise TypeError(f"case {self.name}: {name}: got {mask.dtype}, want torch.bool")
            if tuple(mask.shape) != shape[:3]:
                raise ValueError(
                    f"case {self.name}: {name}: got {tuple(mask.shape)}, want {shape[:3]}"
                )

    def regions(self) -> dict[str, Tensor | None]:
        """Name in `REGIONS` -> bool [F, H, W], None for the whole frame."""
        inside = self.mask if self.object_mask is None else self.object_mask
        return {"frame": None, "mask": self.mask, "object": inside, "background": ~self.mask}
