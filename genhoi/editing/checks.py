"""Whether an edit's inputs fit each other: asked before any long work."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from genhoi.conditioning.condition import reference_tokens
from genhoi.conditioning.grid import STRIDES, Strides
from genhoi.conditioning.masks import MaskRule
from genhoi.media import Clip, fit_image

__all__ = ["check_inputs", "check_seen", "check_types"]

_MOST_OBJECTS = 32  # bits of a token's mask


def check_inputs(
    clip: Clip,
    masks: list[Tensor],
    objects: list[Tensor],
    first_frame: Tensor | None,
    last_frame: Tensor | None,
    strengths: Sequence[float] | None,
    strides: Strides = STRIDES,
) -> None:
    """Raise TypeError or ValueError unless clip, masks, pictures and strengths fit each other."""
    check_types(clip, masks, objects, first_frame, last_frame)
    if not objects:
        raise ValueError("objects: got none, wanted at least one picture")
    if len(objects) > _MOST_OBJECTS:
        raise ValueError(f"objects: got {len(objects)}, wanted at most {_MOST_OBJECTS}")
    if len(masks) != len(objects):
        raise ValueError(f"masks: got {len(masks)}, wanted {len(objects)}, one for each object")
    if clip.num_frames < (least := strides.pixel_frames(2)):
        raise ValueError(f"clip: got {clip.num_frames} frames, wanted at least {least}")
    shape = tuple(clip.frames.shape[:3])
    for mask in masks:
        if mask.dtype != torch.bool:
            raise TypeError(f"masks: got {mask.dtype}, wanted torch.bool; binarise it first")
        if tuple(mask.shape) != shape:
            raise ValueError(f"masks: got shape {tuple(mask.shape)}, wanted {shape} as the clip")
        if not mask.any():
            raise ValueError(
                "masks: got one that is False throughout, wanted True at hand and object"
            )
    for image in objects:
        fit_image(image, (strides.token, strides.token))  # raises
    for name, image_ in (("first_frame", first_frame), ("last_frame", last_frame)):
        if image_ is None:
            continue
        if image_.dtype != torch.uint8 or image_.shape != clip.frames.shape[1:]:
            raise ValueError(
                f"{name}: got {image_.dtype} of shape {tuple(image_.shape)}, wanted torch.uint8 of "
                f"shape {tuple(clip.frames.shape[1:])} as the clip's frames"
            )
    if last_frame is not None and not strides.is_whole(clip.num_frames):
        raise ValueError(
            f"last_frame: got one for a clip of {clip.num_frames} frames, wanted 1 + "
            f"{strides.time} n of them, so that the model's last frame is the clip's"
        )
    if strengths is not None and (
        len(strengths) != len(objects) or not all(0 < x < math.inf for x in strengths)
    ):
        raise ValueError(
            f"strengths: got {list(strengths)}, wanted {len(objects)} positive numbers, one for "
            f"each object; leave an object out to give it none"
        )


def check_types(
    clip: object,
    masks: Sequence[object],
    objects: Sequence[object],
    first_frame: object = None,
    last_frame: object = None,
) -> None:
    """Raise TypeError for what is not a clip or tensor, such as a path; name what reads it."""
    if not isinstance(clip, Clip):
        raise TypeError(f"clip: got {_shown(clip)}, wanted a Clip; genhoi.read_clip reads one")
    named = [("masks", x, "read_mask") for x in masks]
    named += [("objects", x, "read_image") for x in objects]
    finished = (("first_frame", first_frame), ("last_frame", last_frame))
    named += [(name, x, "read_image") for name, x in finished if x is not None]
    for name, x, reader in named:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: got {_shown(x)}, wanted a tensor; genhoi.{reader} reads one")


def check_seen(
    masks: Sequence[Tensor], rule: MaskRule, first_given: bool, strides: Strides = STRIDES
) -> None:
    """Raise ValueError for an object that no token sees; a finished frame 0 doesn't count.

    Args:
        masks: bool [F, h, w] as the model gets them.
        rule: see `genhoi.conditioning.masks.token_mask`.
        first_given: whether frame 0 is finished.
        strides: of the model.
    """
    grid = strides.grid(*masks[0].shape)
    bits = reference_tokens(masks, grid, rule=rule, first_frame_given=first_given)
    for i, mask in enumerate(masks):
        if not (bits >> i & 1).any():
            most = 100 * float(mask.flatten(1).float().mean(1).max())
            raise ValueError(
                f"masks: mask {i + 1} of {len(masks)} is too small for the model, which sees the "
                f"clip at {mask.shape[2]}x{mask.shape[1]} in squares of {strides.token} pixels and "
                f"has no square in it: {most:.2g} % of a frame is white at most"
                + (", frame 0 not counted" if first_given else "")
                + "; grow the mask"
                + ("" if rule == "any" else ', or take the rule "any", which counts every pixel')
            )


def _shown(x: object) -> str:
    return repr(x) if isinstance(x, (str, os.PathLike)) else type(x).__name__
