"""What an edit will do to a clip, decided before weights are loaded: where, at what size, how long.

It also says what is far from the clips that a base has learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.bases.about import BaseSettings, TrainedOn
from genhoi.bases.settings import EditSettings
from genhoi.conditioning.grid import STRIDES, Strides
from genhoi.editing.crop import Crop, choose_crop
from genhoi.editing.mask_checks import notes_on_masks
from genhoi.editing.paste import cut_frames, cut_masks, paste

__all__ = ["EditPlan", "EditWarning", "plan_edit", "repeat_last"]

_FAR = 1.6  # as a factor on an area or a length
_RECTANGLE = 0.97  # of its own bounding box, which a mask fills


class EditWarning(UserWarning):
    """An edit that can be made, but will disappoint.

    Example:
        >>> import genhoi, warnings
        >>> warnings.filterwarnings("ignore", category=genhoi.EditWarning)
    """


@dataclass(frozen=True)
class EditPlan:
    """Where an edit works, and for how long.

    Args:
        crop: the box that is edited in each of `frames`, and the size at which the model sees it.
        frames: that the model makes, 1 + 4 n: the clip's, and its last frame up to three times
            more.
        masks: bool [F, *crop.size] for each object, `frames` of them: as the model gets them.
        notes: whole sentences on what is far from what the base has learnt, and on odd masks.
    """

    crop: Crop
    frames: int
    masks: tuple[Tensor, ...]
    notes: tuple[str, ...]

    def cut(self, frames: Tensor) -> Tensor:
        """Make what the model works on, uint8 [frames, *crop.size, 3], of the clip's frames."""
        length = len(frames)
        more = [cut_frames(frames[-1:], self.crop.at(i)) for i in range(length, self.frames)]
        # The clip itself is not copied: a long one may be half of the memory.
        return torch.cat([cut_frames(frames, self.crop.until(length)), *more])

    def cut_at(self, index: int, image: Tensor | None) -> Tensor | None:
        """Cut one frame, uint8 [H, W, 3], as `cut` would in its place; None of None."""
        return None if image is None else cut_frames(image[None], self.crop.at(index))[0]

    def paste(
        self, source: Tensor, made: Tensor, masks: Sequence[Tensor], *, keep_background: bool
    ) -> Tensor:
        """Put what the model made back into the clip; see `genhoi.editing.paste.paste`."""
        length = len(source)
        return paste(
            source,
            made[:length],
            torch.stack(list(masks)).any(0),
            self.crop.until(length),
            keep_background=keep_background,
        )


def plan_edit(
    base: BaseSettings,
    masks: Sequence[Tensor],
    *,
    settings: EditSettings,
    size: tuple[int, int] | None = None,
    strides: Strides = STRIDES,
) -> EditPlan:
    """Plan an edit.

    Args:
        base: how it is used; nothing is loaded.
        masks: bool [F, H, W] for each object, of the clip's length and size.
        settings: of the edit.
        size: (height, width) for the model to work at; None: chosen near the base's own.
        strides: of the base's model.

    Raises:
        ValueError: see `genhoi.editing.crop.choose_crop`.
    """
    length = len(masks[0])
    frames = length if strides.is_whole(length) else strides.longest(length + strides.time)
    lengthened = [repeat_last(mask, frames) for mask in masks]
    crop = choose_crop(
        torch.stack(lengthened).any(0),
        native=base.defaults.size,
        mode=settings.crop,
        size=size,
        below=base.defaults.crop_below,
        strides=strides,
    )
    seen = tuple(cut_masks(mask, crop) for mask in lengthened)
    trained, union = base.trained_on, torch.stack(seen).any(0)
    notes = [
        *notes_on_masks(masks),
        *_note_on_size(trained, crop.size),
        *_note_on_frames(trained, settings.window, frames),
        *_notes_on_seen_mask(trained, union),
    ]
    return EditPlan(crop, frames, seen, tuple(notes))


def repeat_last(x: Tensor, frames: int) -> Tensor:
    """Repeat the last of [F, ...] until there are so many."""
    if len(x) == frames:
        return x
    return torch.cat([x, x[-1:].expand(frames - len(x), *x.shape[1:])])


def _note_on_size(trained: TrainedOn, size: tuple[int, int]) -> Iterator[str]:
    def factor(known: tuple[int, int]) -> float:
        sides = zip(sorted(size), sorted(known), strict=True)
        return max(max(a / b, b / a) for a, b in sides)

    nearest = min(trained.sizes, key=factor)
    if factor(nearest) > _FAR:
        yield (
            f"Size: the model works at {size[1]}x{size[0]}, far from the {nearest[1]}x{nearest[0]} "
            f"that this base was trained at; it paints worse there."
        )


def _note_on_frames(trained: TrainedOn, window: int, frames: int) -> Iterator[str]:
    at_once = min(window, frames)
    if at_once > _FAR * trained.frames or at_once < trained.frames / _FAR**2:
        yield (
            f"Frames: the model makes {at_once} at once, far from the {trained.frames} that this "
            f"base was trained on; it paints worse there."
        )


def _notes_on_seen_mask(trained: TrainedOn, mask: Tensor) -> Iterator[str]:
    """Say what is new to the base in the mask as it sees it, bool [F, h, w]."""
    shares = mask.flatten(1).float().mean(1)
    share = float(shares[shares > 0].mean()) if (shares > 0).any() else 0.0
    least, most = trained.mask_shares
    if not least <= share <= most:
        yield (
            f"Mask: {100 * share:.0f} % of what the model sees, where this base was trained on "
            f"{100 * least:g} to {100 * most:g} %; it paints worse there."
        )
    if trained.outlines and _is_rectangle(mask):
        yield (
            "Mask: a rectangle; this base reads the object's pose from the mask's outline, so a "
            "mask that follows hand and object (genhoi mask --kind tight) does better."
        )


def _is_rectangle(mask: Tensor) -> bool:
    """Tell whether a mask, bool [F, h, w], fills its own bounding box in nearly all frames."""
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    filled = mask.flatten(1).sum(1) >= _RECTANGLE * rows * columns
    drawn = rows > 0
    return bool(drawn.any()) and float(filled[drawn].float().mean()) > 0.9
