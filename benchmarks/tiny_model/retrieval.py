"""Tells which of several objects a clip shows, by colours and edges alone: no learned weights.

Candidates are the objects' pictures, of which the right one is what the model was given. They show
the products from another side and in other light than the clip, so not even a true clip is always
found; `found` on true clips says how often it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genhoi.evaluation.metrics import thirds
from genhoi.evaluation.object_metrics import colour_similarity, texture_similarity

__all__ = ["CANDIDATES", "candidates_of", "found"]

CANDIDATES = 8
_FRAMES = 12  # about as many are looked at: neighbours are alike


def candidates_of(index: int, clips: int) -> list[int]:
    """List the clips whose objects a clip's own is found among: itself, then the next ones.

    Args:
        index: of the clip.
        clips: how many there are; after the last comes the first.

    Raises:
        ValueError: fewer clips than candidates.
    """
    if clips < CANDIDATES:
        raise ValueError(f"clips: got {clips}, wanted at least {CANDIDATES}, the candidates")
    return [(index + i) % clips for i in range(CANDIDATES)]


def found(frames: Tensor, region: Tensor, pictures: Sequence[Tensor]) -> Tensor:
    """Tell for each third of a clip whether its object is most like the first picture.

    Likeness is `colour_similarity` + `texture_similarity`, the mean over a third's frames: how far
    histograms in CIELAB, and of gradients by strength and orientation, overlap. It must be above
    that of every other picture: a tie is not found.

    Args:
        frames: uint8 [F, H, W, 3].
        region: bool [F, H, W], where the object is to be seen.
        pictures: uint8 [h, w, 3] each, on grey 128; the right one first.

    Returns:
        float64 [3]: 1 found, 0 not, NaN where the object is seen in no frame of the third.

    Raises:
        TypeError, ValueError: something has another type or shape.
    """
    if len(pictures) < 2:
        raise ValueError(f"pictures: got {len(pictures)}, wanted at least 2")
    every = max(1, len(frames) // _FRAMES)
    frames, region = frames[::every], region[::every]
    likeness = torch.stack(
        [
            thirds(colour_similarity(frames, region, x) + texture_similarity(frames, region, x))
            for x in pictures
        ]
    )
    best = (likeness[0] > likeness[1:].amax(0)).double()
    return best.masked_fill(likeness.isnan().any(0), torch.nan)
