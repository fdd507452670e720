"""Which part of the frames the model edits, and at what size.

A model paints best at the size that it was trained at, and an edit concerns a hand and an object,
not the whole frame. So one box is laid around the masks: of one size over the clip, standing still,
or on a smooth path where hand and object cross the frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.bases.about import CropMode
from genhoi.conditioning.grid import STRIDES, Strides

__all__ = ["Crop", "choose_crop", "scaled_down"]

Size = tuple[int, int]

_MARGIN = 0.3  # of the masks' longer side, on every side: what training's clips have
_LEAST_MARGIN = 0.06  # where the frame has no room for more
_STILL = 0.6  # a box that moves has to be smaller than this share of one that stands still
_SMOOTH = 12  # frames: the standard deviation of the Gaussian over the box's path
_LEAST_AREA = 0.8  # of the base's own size
_WIDEST = 2.4  # aspect that is still sought


@dataclass(frozen=True)
class Crop:
    """A box in every frame, and the size at which the model sees it.

    Args:
        frame: (height, width) of the clip, in pixels.
        box: (height, width) of the box in the clip's pixels, the same in all frames.
        corners: int64 [F, 2], the box's top and left.
        size: (height, width) that the model works at.
    """

    frame: Size
    box: Size
    corners: Tensor
    size: Size

    @property
    def is_whole(self) -> bool:
        """Tell whether the box is the whole frame."""
        return self.box == self.frame

    @property
    def share(self) -> float:
        """Return the box's share of the frame."""
        return math.prod(self.box) / math.prod(self.frame)

    @property
    def moves(self) -> bool:
        """Tell whether the box is on a path."""
        return bool((self.corners != self.corners[0]).any())

    def as_record(self) -> dict[str, Any] | None:
        """Give the box in the clip's pixels for JSON; None where it is the whole frame."""
        if self.is_whole:
            return None
        corners = [[left, top] for top, left in self.corners.tolist()]
        box = {"x": corners[0][0], "y": corners[0][1], "width": self.box[1], "height": self.box[0]}
        return box | ({"x_y_by_frame": corners} if self.moves else {})

    def until(self, frames: int) -> Crop:
        """Take the first frames only."""
        return replace(self, corners=self.corners[:frames])

    def at(self, frame: int) -> Crop:
        """Take one frame only."""
        return replace(self, corners=self.corners[[frame]])

    def regions(self) -> Iterator[tuple[slice, slice]]:
        """Give the rows and columns of the box in each frame."""
        for top, left in self.corners.tolist():
            yield slice(top, top + self.box[0]), slice(left, left + self.box[1])


def choose_crop(
    mask: Tensor,
    *,
    native: Size,
    mode: CropMode = "auto",
    size: Size | None = None,
    below: float = 1.0,
    strides: Strides = STRIDES,
) -> Crop:
    """Choose the box that an edit works in.

    "auto" takes the whole frame where it is no larger than the base's own size, or where the box
    around the masks would be `below` of it or more.

    Args:
        mask: bool [F, H, W], the union of all masks.
        native: (height, width) that the base was trained at.
        mode: "auto", or "none" for the whole frame.
        size: (height, width) for the model to work at. None: `native`, or one of about its area
            whose aspect leaves room for the masks.
        below: share of the frame.
        strides: of the model, whose tokens both sides of a size are made of.

    Raises:
        ValueError: an unknown mode, or a size that is not made of whole tokens.
    """
    if mode not in get_args(CropMode):
        raise ValueError(f"crop: got {mode!r}, wanted 'auto' or 'none'")
    if size is not None and (len(size) != 2 or 0 in size or not strides.fits(*size)):
        raise ValueError(
            f"size: got {tuple(size)}, wanted (height, width), both positive multiples of "
            f"{strides.token}"
        )
    frame = (mask.shape[1], mask.shape[2])
    whole = Crop(
        frame=frame,
        box=frame,
        corners=torch.zeros(len(mask), 2, dtype=torch.int64),
        size=size or scaled_down(frame, max(native), strides),
    )
    if mode == "none" or math.prod(frame) <= math.prod(size or native) or not mask.any():
        return whole
    crop = _around(mask, frame, [size] if size else _sizes(frame, native, strides))
    return whole if crop is None or crop.share >= below else crop


def scaled_down(frame: Size, long_side: int, strides: Strides = STRIDES) -> Size:
    """Scale (height, width) down to a long side, and round it down to whole tokens."""
    scale = min(1.0, long_side / max(frame))
    return strides.side(scale * frame[0]), strides.side(scale * frame[1])


def _sizes(frame: Size, native: Size, strides: Strides) -> list[Size]:
    """List the sizes near the base's own area, those of its own aspect first.

    A base that knows 832 x 480 knows 480 x 832: the one that lies as the frame does counts.
    """
    lying = (min(native), max(native)) if frame[1] >= frame[0] else (max(native), min(native))
    area, aspect = math.prod(native), lying[1] / lying[0]
    sides = range(strides.token, int(math.sqrt(area * _WIDEST)) + 1, strides.token)
    found = [
        (height, width)
        for height in sides
        for width in sides
        if _LEAST_AREA * area <= height * width <= area and 1 / _WIDEST <= width / height <= _WIDEST
    ]
    return sorted({*found, lying}, key=lambda x: (abs(math.log(x[1] / x[0] / aspect)), -x[0]))


def _around(mask: Tensor, frame: Size, sizes: list[Size]) -> Crop | None:
    """Lay the box around the masks, for the first size that has room for them; None: none has."""
    rows, columns = _extents(mask.any(2)), _extents(mask.any(1))
    still = _path(rows, columns, smooth=False)
    moving = _path(rows, columns, smooth=True)
    for size in sizes:
        boxes = [_box(needed, frame, size) for _, needed in (still, moving)]
        if boxes[0] is None and boxes[1] is None:
            continue
        stands = boxes[1] is None or (
            boxes[0] is not None and math.prod(boxes[1]) >= _STILL * math.prod(boxes[0])
        )
        centres, box = (still[0], boxes[0]) if stands else (moving[0], boxes[1])
        assert box is not None
        room = torch.tensor([frame[0] - box[0], frame[1] - box[1]])
        corners = (centres - torch.tensor(box) / 2).round().long()
        return Crop(frame=frame, box=box, corners=corners.clamp_min(0).minimum(room), size=size)
    return None


def _extents(inside: Tensor) -> Tensor:
    """Find the first and one-past-last index inside, float64 [F, 2], of bool [F, L].

    Frames without any get what lies between their neighbours.
    """
    known = inside.any(1).nonzero().flatten()
    length = inside.shape[1]
    first = inside[known].int().argmax(1)
    last = length - inside[known].flip(1).int().argmax(1)
    ends = torch.stack([first, last], 1).double()
    times = torch.arange(len(inside))
    right = torch.searchsorted(known, times).clamp_max(len(known) - 1)
    left = (right - 1).clamp_min(0)
    gap = (known[right] - known[left]).clamp_min(1)
    weight = ((times - known[left]) / gap).clamp(0, 1)[:, None]
    return torch.lerp(ends[left], ends[right], weight.double())


def _path(rows: Tensor, columns: Tensor, *, smooth: bool) -> tuple[Tensor, tuple[float, float]]:
    """Find the box's centres, float64 [F, 2], and the height and width that hold all masks."""
    centres, needed = [], []
    for ends in (rows, columns):
        if smooth:
            centre = _smoothed(ends.mean(1))
        else:
            centre = ((ends[:, 0].min() + ends[:, 1].max()) / 2).expand(len(ends))
        reach = torch.maximum(ends[:, 1] - centre, centre - ends[:, 0]).max()
        centres.append(centre)
        needed.append(2 * float(reach))
    return torch.stack(centres, 1), (needed[0], needed[1])


def _smoothed(path: Tensor) -> Tensor:
    """Smooth a path, float64 [F], by a Gaussian; the ends go on as they are."""
    reach = 3 * _SMOOTH
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / _SMOOTH) ** 2)
    padded = F.pad(path[None, None], (reach, reach), mode="replicate")
    return F.conv1d(padded, (weights / weights.sum())[None, None])[0, 0]


def _box(needed: tuple[float, float], frame: Size, size: Size) -> Size | None:
    """Find the box of a size's aspect that holds the masks; None where the frame has no room.

    It is no smaller than the size itself where the frame has room: the model then sees the clip's
    own pixels, and nothing is enlarged.
    """
    longer = max(needed)

    def scale(margin: float) -> float:
        sides = zip(needed, frame, size, strict=True)
        return max(min(side + 2 * margin * longer, most) / of for side, most, of in sides)

    largest = min(of / side for of, side in zip(frame, size, strict=True))
    if scale(_LEAST_MARGIN) > largest:
        return None
    chosen = min(max(scale(_MARGIN), 1.0), largest)
    return min(frame[0], round(size[0] * chosen)), min(frame[1], round(size[1] * chosen))
