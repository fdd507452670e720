"""Cues in the pixels that the built-in engine works at, for every frame."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from genhoi.masking.cues import Box, Cue, Drawn, Point
from genhoi.masking.graph_cut import Corners, Seeds
from genhoi.masking.pictures import Pictures

__all__ = ["Hints"]

_SLACK = 0.15  # of a box between two given ones, on each side
_DISC = 0.008  # of the long side: radius of what a point stands for
_REACH = (0.12, 0.3)  # of the long side, around a point without a box: likely inside; possible


class Hints:
    """The cues, in the pixels that are worked at.

    Args:
        cues: of the clip.
        pictures: its frames.
    """

    def __init__(self, cues: Sequence[Cue], pictures: Pictures) -> None:
        self._size = pictures.height, pictures.width
        self._disc = max(2, round(_DISC * max(self._size)))
        scale = pictures.scales
        self._points = [
            (c.frame, round(c.x * scale[0]), round(c.y * scale[1]), c.inside)
            for c in cues
            if isinstance(c, Point)
        ]
        self._boxes: dict[int, list[np.ndarray]] = {}
        for cue in cues:
            if isinstance(cue, Box):
                corners = np.array(cue.corners) * (*scale, *scale)
                self._boxes.setdefault(cue.frame, []).append(corners)
        self.drawn = {
            c.frame: pictures.mask(c.mask.cpu().numpy()) for c in cues if isinstance(c, Drawn)
        }

    def boxes(self, frame: int) -> list[Corners]:
        """Give the boxes of a frame, or, with some slack, those between the boxes around it.

        There are none between frames that differ in their number of boxes.
        """
        if frame in self._boxes:
            return [self._whole(box) for box in self._boxes[frame]]
        before = max((f for f in self._boxes if f < frame), default=None)
        after = min((f for f in self._boxes if f > frame), default=None)
        if before is None or after is None:
            return []
        first, second = self._boxes[before], self._boxes[after]
        if len(first) != len(second):
            return []
        part = (frame - before) / (after - before)
        between = [(1 - part) * a + part * b for a, b in zip(first, second, strict=True)]
        return [self._whole(_grown(box)) for box in between]

    def seeds(self, frame: int) -> Seeds:
        """Give what is known of a frame's pixels, by its points and the boxes around it."""
        inside, outside = np.zeros(self._size, np.uint8), np.zeros(self._size, np.uint8)
        if self._boxes and (boxes := self.boxes(frame)):
            outside[:] = 1
            for left, top, right, bottom in boxes:
                outside[top:bottom, left:right] = 0
        for at, x, y, is_inside in self._points:
            if at == frame:
                cv2.circle(inside if is_inside else outside, (x, y), self._disc, 1, thickness=-1)
        return Seeds(inside > 0, (outside > 0) & (inside == 0))

    def around_points(self, frame: int) -> np.ndarray:
        """Label what points without a box leave open, in GrabCut's way."""
        likely, possible = (round(reach * max(self._size)) for reach in _REACH)
        labels = np.full(self._size, cv2.GC_BGD, np.uint8)
        for radius, label in ((possible, cv2.GC_PR_BGD), (likely, cv2.GC_PR_FGD)):
            for at, x, y, is_inside in self._points:
                if at == frame and is_inside:
                    cv2.circle(labels, (x, y), radius, label, thickness=-1)
        seeds = self.seeds(frame)
        labels[seeds.outside], labels[seeds.inside] = cv2.GC_BGD, cv2.GC_FGD
        return labels

    def _whole(self, box: np.ndarray) -> Corners:
        """Round a box to whole pixels within the frame, one at least."""
        height, width = self._size
        left, top = min(width - 1, max(0, round(box[0]))), min(height - 1, max(0, round(box[1])))
        return (
            left,
            top,
            max(left + 1, min(width, round(box[2]))),
            max(top + 1, min(height, round(box[3]))),
        )


def _grown(box: np.ndarray) -> np.ndarray:
    margin = _SLACK * (box[2:] - box[:2])
    return np.concatenate([box[:2] - margin, box[2:] + margin])
