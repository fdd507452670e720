"""Whether an edit's inputs fit each other: asked before any long work."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genhoi.conditioning.condition import reference_tokens
from genhoi.conditioning.masks import MaskRule
from genhoi.media.media import Clip, fit_image

__all__ = ["check_inputs", "check_seen"]

_PATCH = 16
_MOST_OBJECTS = 32  # bits of a token's mask


def check_inputs(
    clip: Clip,
    masks: list[Tensor],
    objects: list[Tensor],
    first_frame: Tensor | None,
    last_frame: Tensor | None,
    strengths: Sequence[float] | None,
) -> None:
    """Raises TypeError or ValueError unless clip, masks, pictures and strengths fit each other."""
    if not objects:
        raise ValueError("objects: got none, wanted at least one picture")
    if len(objects) > _MOST_OBJECTS:
        raise ValueError(f"objects: got {len(objects)}, wanted at most {_MOST_OBJECTS}")
    if len(masks) != len(objects):
        raise ValueError(f"masks: got {len(masks)}, wanted {len(objects)}, one for each object")
    if clip.height % _PATCH or clip.width % _PATCH:
        raise ValueError(
            f"clip: got {clip.width}x{clip.height} pixels, wanted multiples of {_PATCH}"
        )
    shape = tuple(clip.frames.shape[:3])
    for mask in masks:
        if mask.dtype != torch.bool:
            raise TypeError(f"masks: got {mask.dtype}, wanted torch.bool; binarise it first")
        if tuple(mask.shape) != shape:
            raise ValueError(f"masks: got shape {tuple(mask.shape)}, wanted {shape} as the clip")
    for image in objects:
        fit_image(image, (_PATCH, _PATCH))  # raises
    for name, image_ in (("first_frame", first_frame), ("last_frame", last_frame)):
        if image_ is None:
            continue
        if image_.dtype != torch.uint8 or image_.shape != clip.frames.shape[1:]:
            raise ValueError(
                f"{name}: got {image_.dtype} of shape {tuple(image_.shape)}, wanted torch.uint8 of "
                f"shape {tuple(clip.frames.shape[1:])} as the clip's frames"
            )
    if strengths is not None and (
        len(strengths) != len(objects) or not all(0 < x < math.inf for x in strengths)
    ):
        raise ValueError(
            f"strengths: got {list(strengths)}, wanted {len(objects)} positive numbers, one for "
            f"each object; leave an object out to give it none"
        )


def check_seen(clip: Clip, masks: list[Tensor], rule: MaskRule, first_given: bool) -> None:
    """Every object is seen by some token of the clip; frame 0 doesn't count if it is finished."""
    grid = (1 + (clip.num_frames - 1) // 4, clip.height // _PATCH, clip.width // _PATCH)
    bits = reference_tokens(masks, grid, rule=rule, first_frame_given=first_given)
    for i in range(len(masks)):
        if not (bits >> i & 1).any():
            raise ValueError(
                f"masks: no token lies inside mask {i + 1} of {len(masks)}; wanted True where hand "
                f"and object are"
                + ("" if rule == "any" else ', or the rule "any" for something thin')
            )
