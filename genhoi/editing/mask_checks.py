"""What is odd about a mask: things that can be edited, but are hardly meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from genhoi.media.frame_ranges import frame_ranges

__all__ = ["notes_on_masks"]

_MOST = 0.5  # of the frame
_LEAP = 0.1  # intersection over union of a mask in two frames beside each other
_GROWTH = 4.0  # of its area from one frame to the next
_NAMED = 6  # ranges of frames that a sentence lists


def notes_on_masks(masks: Sequence[Tensor]) -> list[str]:
    """Say what is odd about masks, bool [F, H, W] each, in whole sentences.

    Looked at: more than half of the frame (an inverted mask), frames without any, and leaps from
    one frame to the next.
    """
    return [note for i, mask in enumerate(masks) for note in _notes(f"Mask {i + 1}", mask)]


def _notes(name: str, mask: Tensor) -> Iterator[str]:
    areas = mask.flatten(1).sum(1)
    share = float(areas.float().mean()) / mask[0].numel()
    if share > _MOST:
        yield (
            f"{name}: white in {100 * share:.0f} % of the frame. White is where the model "
            f"generates, hand and object, and black is what stays"
            + ("; this one looks inverted." if _touches_all_sides(mask) else ".")
        )
    drawn = areas > 0
    if drawn.any() and not drawn.all():
        empty = (~drawn).nonzero().flatten().tolist()
        frames = frame_ranges(empty, most=_NAMED)
        yield f"{name}: nothing in frames {frames}, so nothing is generated there."
    if leaps := _leaps(mask, areas):
        yield (
            f"{name}: it leaps at frames {frame_ranges(leaps, most=_NAMED)}, where it hardly "
            f"overlaps with the frame before or changes its size at once. Does it belong to this "
            f"clip, frame by frame?"
        )


def _touches_all_sides(mask: Tensor) -> bool:
    ever = 2 * mask.sum(0) > len(mask)
    sides = (ever[0], ever[-1], ever[:, 0], ever[:, -1])
    return all(float(side.float().mean()) > 0.5 for side in sides)


def _leaps(mask: Tensor, areas: Tensor) -> list[int]:
    """Find frames whose mask has little to do with that of the frame before; both have one."""
    found = []
    for i in range(1, len(mask)):
        before, now = int(areas[i - 1]), int(areas[i])
        if before == 0 or now == 0:
            continue
        both = int((mask[i] & mask[i - 1]).sum())
        grown = max(before / now, now / before)
        if both < _LEAP * (before + now - both) or grown > _GROWTH:
            found.append(i)
    return found
