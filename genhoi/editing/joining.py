"""Joins the windows of a long clip: fades over what they have in common, and matches colours."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["join_window", "match_colour"]

_LEAST_PIXELS = 64


def join_window(out: Tensor, window: Tensor, begin: int, overlap: int) -> None:
    """Write a window into a clip, fading from the frames that are there over their overlap.

    Args:
        out: uint8 [F, H, W, 3], made up to frame `begin + overlap`.
        window: uint8 [f, H, W, 3].
        begin: frame of the clip that the window begins with.
        overlap: frames in common with what is there; 0 for the first window. The first of them is
            the window's given frame, and stays as it is.
    """
    for i in range(overlap):
        old, new = out[begin + i].float(), window[i].float()
        out[begin + i] = torch.lerp(old, new, i / overlap).round().byte()
    out[begin + overlap : begin + len(window)] = window[overlap:]


def match_colour(edited: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """Give edited frames the source's mean colour outside the mask.

    There the edit should be the source, so what differs is the model's drift; inside the mask the
    same is added.

    Args:
        edited, source: uint8 [F, H, W, 3].
        mask: bool [F, H, W], what was generated.

    Returns:
        uint8 [F, H, W, 3]; the frames as they are where nearly all is masked.
    """
    outside = ~mask
    if int(outside.sum()) < _LEAST_PIXELS:
        return edited
    offset = source[outside].float().mean(0) - edited[outside].float().mean(0)
    return torch.stack([(frame + offset).round().clamp(0, 255).byte() for frame in edited])
