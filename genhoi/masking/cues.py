"""What says where the thing to be masked is: boxes, points, drawn masks and words.

All pixels are those of the clip as `genhoi.media.read_clip` gives it, rotation applied; x goes to
the right and y down from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.media import Clip

__all__ = ["Box", "Cue", "Drawn", "Point", "Text", "check_cues", "frames_with_extent"]


@dataclass(frozen=True)
class Box:
    """A rectangle around the thing in one frame.

    Args:
        x, y: of its upper left corner, in pixels.
        width, height: in pixels.
        frame: from 0.

    Example:
        >>> import genhoi
        >>> str(genhoi.Box(320, 147, 121, 101, frame=24))
        'box 320,147,121,101@24'
    """

    x: float
    y: float
    width: float
    height: float
    frame: int = 0

    def __str__(self) -> str:
        sides = ",".join(f"{side:g}" for side in (self.x, self.y, self.width, self.height))
        return f"box {sides}@{self.frame}"

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom."""
        return self.x, self.y, self.x + self.width, self.y + self.height


@dataclass(frozen=True)
class Point:
    """A pixel of the thing in one frame, or of what does not belong to it.

    Args:
        x, y: in pixels.
        frame: from 0.
        inside: False where it does not belong to the thing.

    Example:
        >>> import genhoi
        >>> str(genhoi.Point(410, 160, inside=False))
        'not-point 410,160@0'
    """

    x: float
    y: float
    frame: int = 0
    inside: bool = True

    def __str__(self) -> str:
        return f"{'point' if self.inside else 'not-point'} {self.x:g},{self.y:g}@{self.frame}"


@dataclass(frozen=True)
class Drawn:
    """A finished mask of one frame.

    Args:
        mask: bool [H, W].
        frame: from 0.

    Example:
        >>> import genhoi, torch
        >>> str(genhoi.Drawn(torch.ones(48, 80, dtype=torch.bool), frame=3))
        'drawn mask@3'
    """

    mask: Tensor
    frame: int = 0

    def __str__(self) -> str:
        return f"drawn mask@{self.frame}"


@dataclass(frozen=True)
class Text:
    """Words for the thing, such as "hand" or "mug"; all that they find is masked.

    Args:
        text: what to look for.
    """

    text: str


Cue = Box | Point | Drawn | Text


def check_cues(cues: Sequence[Cue], clip: Clip) -> None:
    """Check that cues say where the thing is, within a clip.

    Raises:
        TypeError: a drawn mask is not bool.
        ValueError: there are none but points outside; a frame, box, point or drawn mask does not
            fit the clip; a frame has two drawn masks; or a text is empty.
    """
    placed = [cue for cue in cues if not isinstance(cue, Text)]
    if not any(isinstance(cue, Text) for cue in cues) and not frames_with_extent(cues):
        raise ValueError(
            "cues: got none that says where the thing is, want a box, a point inside, a drawn "
            "mask, or a text"
        )
    for one in placed:
        if not 0 <= one.frame < clip.num_frames:
            raise ValueError(
                f"{one}: got frame {one.frame}, want 0 to {clip.num_frames - 1}: the clip has "
                f"{clip.num_frames} frames"
            )
    for cue in cues:
        _check_cue(cue, clip)
    drawn = [cue.frame for cue in cues if isinstance(cue, Drawn)]
    for frame in drawn:
        if drawn.count(frame) > 1:
            raise ValueError(f"drawn mask@{frame}: got two for this frame, want one")


def frames_with_extent(cues: Sequence[Cue]) -> list[int]:
    """List, in order, the frames from which the thing can be tracked.

    These are the frames with a box or a drawn mask; where there is none, those with a point inside.
    """
    whole = {cue.frame for cue in cues if isinstance(cue, Box | Drawn)}
    points = {cue.frame for cue in cues if isinstance(cue, Point) and cue.inside}
    return sorted(whole or points)


def _check_cue(cue: Cue, clip: Clip) -> None:
    size = f"the clip's {clip.width}x{clip.height} pixels"
    if isinstance(cue, Text):
        if not cue.text.strip():
            raise ValueError(f"text: got {cue.text!r}, want words for the thing")
    elif isinstance(cue, Box):
        left, top, right, bottom = cue.corners
        if cue.width < 2 or cue.height < 2:
            raise ValueError(f"{cue}: want width and height of 2 pixels at least")
        if left < 0 or top < 0 or right > clip.width or bottom > clip.height:
            raise ValueError(f"{cue}: reaches outside the frame, want it within {size}")
    elif isinstance(cue, Point):
        if not (0 <= cue.x < clip.width and 0 <= cue.y < clip.height):
            raise ValueError(f"{cue}: lies outside the frame, want it within {size}")
    else:
        if cue.mask.dtype != torch.bool:
            raise TypeError(f"{cue}: got {cue.mask.dtype}, want torch.bool")
        if tuple(cue.mask.shape) != (clip.height, clip.width):
            shape = tuple(cue.mask.shape)
            raise ValueError(f"{cue}: got shape {shape}, want {(clip.height, clip.width)}")
        if not cue.mask.any():
            raise ValueError(f"{cue}: nothing is white in it, want the thing white")
