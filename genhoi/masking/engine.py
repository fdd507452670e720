"""Follows a thing through a clip without any weights: graph cuts, carried on by optical flow.

The thing is cut out where cues say where it is (`graph_cut.cut_boxes`). From there its mask goes
from frame to frame, forwards and backwards: optical flow says where the outline should be, and a
cut moves it to where colours change. The colours of the frame with the cue, and flow that comes
back to where it began, say how far to trust the result.

It works at a reduced size (`genhoi.masking.pictures`); the mask is brought back to the clip's size
smoothly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch

from genhoi.masking.cues import Cue, Text, frames_with_extent
from genhoi.masking.flow import optical_flow, own_motion, round_trip, warped
from genhoi.masking.graph_cut import cut, cut_boxes, refine
from genhoi.masking.hints import Hints
from genhoi.masking.pictures import Pictures
from genhoi.masking.protocol import Progress, Track
from genhoi.media import Clip

__all__ = ["GraphCutEngine"]

_NEIGHBOURS = (4, 8, -4, -8)  # frames whose motion against the background is looked at
_CLEAR = 1.5, 0.1  # a round trip of the flow may miss its start by pixels, and this of its length
_LOST = 0.35  # confidence below which the thing counts as lost
_GONE = 0.04  # of its area where a cue is: less is lost


@dataclass(frozen=True)
class _Anchor:
    """A frame in which a thing's outline is known.

    Args:
        frame: its number.
        mask: uint8 [H, W].
        colors: histogram of the thing's colours.
    """

    frame: int
    mask: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True)
class _Found:
    """What one way from an anchor found in a frame; `confidence` 0: lost."""

    mask: np.ndarray
    confidence: float


class GraphCutEngine:
    """Follows a thing by colour and motion; see the module. Needs OpenCV, and no weights.

    Several boxes on one frame are one thing of several parts. Between the frames of two boxes
    nothing outside the box between them is masked. A point corrects its own frame and those that
    are reached from there, away from the frame where tracking began.
    """

    def check(self, cues: Sequence[Cue]) -> None:
        """Refuse words.

        Raises:
            ValueError: there is a text.
        """
        if any(isinstance(cue, Text) for cue in cues):
            raise ValueError(
                "text: the built-in engine knows no words, so a text needs --model, the weights "
                "of SAM 3"
            )

    def __call__(self, clip: Clip, cues: Sequence[Cue], progress: Progress) -> Track:
        """Follow what the cues point at; see `genhoi.masking.track.track_mask`."""
        pictures = Pictures(clip)
        hints = Hints(cues, pictures)
        frames = frames_with_extent(cues)
        last = clip.num_frames - 1
        total = len(frames) + frames[0] + last - frames[-1]
        total += 2 * sum(b - a - 1 for a, b in pairwise(frames))
        done = 0

        def step(frame: int) -> None:
            nonlocal done
            done += 1
            progress(done, total, f"frame {frame}")

        anchors = []
        for frame in frames:
            anchors.append(_anchor(pictures, hints, frame))
            step(frame)
        found: list[list[tuple[int, _Found]]] = [[] for _ in range(clip.num_frames)]
        for i, anchor in enumerate(anchors):
            found[anchor.frame].append((0, _Found(anchor.mask, float(anchor.mask.any()))))
            before = anchors[i - 1].frame if i else -1
            after = anchors[i + 1].frame if i + 1 < len(anchors) else last + 1
            for way in (range(anchor.frame + 1, after), range(anchor.frame - 1, before, -1)):
                for frame, result in _follow(pictures, hints, anchor, way):
                    found[frame].append((abs(frame - anchor.frame), result))
                    step(frame)
        return _as_track(pictures, [_merged(results) for results in found])


# --------------------------------------------------------------------------- from cue to frames


def _anchor(pictures: Pictures, hints: Hints, frame: int) -> _Anchor:
    """Cut the thing out in a frame that has cues."""
    picture, seeds = pictures.rgb(frame), hints.seeds(frame)
    if frame in hints.drawn:
        mask = np.where(seeds.outside, np.uint8(0), hints.drawn[frame])
        mask = np.where(seeds.inside, np.uint8(1), mask)
    elif boxes := hints.boxes(frame):
        others = [f for n in _NEIGHBOURS if 0 <= (f := frame + n) < len(pictures)]
        motion = own_motion(pictures.grey(frame), [pictures.grey(f) for f in others], seeds.outside)
        mask = cut_boxes(picture, boxes, motion, seeds)
    else:
        mask = cut(picture, hints.around_points(frame), rounds=5)
    return _Anchor(frame, mask, _colors(picture, mask))


def _follow(
    pictures: Pictures, hints: Hints, anchor: _Anchor, frames: range
) -> Iterator[tuple[int, _Found]]:
    """Carry an anchor's mask through frames that begin beside it.

    From a frame in which the thing is lost nothing is carried on: the last good frame serves until
    the thing is found again.
    """
    source, mask = anchor.frame, anchor.mask
    for frame in frames:
        there = optical_flow(pictures.grey(frame), pictures.grey(source))
        back = optical_flow(pictures.grey(source), pictures.grey(frame))
        clear = round_trip(there, back) < _CLEAR[0] + _CLEAR[1] * np.linalg.norm(there, axis=-1)
        expected = warped(mask.astype(np.float32), there)
        picture, seeds = pictures.rgb(frame), hints.seeds(frame)
        found = refine(picture, expected, seeds)
        confidence = _confidence(picture, found, clear, anchor)
        if confidence < _LOST and hints.boxes(frame):
            found = cut_boxes(picture, hints.boxes(frame), None, seeds)
            confidence = _confidence(picture, found, np.ones_like(clear), anchor)
        if confidence < _LOST:
            yield frame, _Found(np.zeros_like(found), 0.0)
        else:
            source, mask = frame, found
            yield frame, _Found(found, confidence)


def _confidence(picture: np.ndarray, mask: np.ndarray, clear: np.ndarray, anchor: _Anchor) -> float:
    """Say how far a mask can be trusted, 0 to 1.

    It is the smaller of two numbers: how much of the thing could be followed, and how much of its
    colours are those that it has at the anchor.
    """
    if mask.sum() < max(4.0, _GONE * anchor.mask.sum()):
        return 0.0
    followed = float(clear[mask > 0].mean())
    alike = float(np.sqrt(_colors(picture, mask) * anchor.colors).sum())
    return min(followed, alike)


def _colors(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Make a histogram of a thing's hues; lightness is left out, because light changes."""
    counts: np.ndarray = np.zeros((32, 32), np.float32)
    if not mask.any():
        return counts
    inside = cv2.cvtColor(picture[mask > 0][None], cv2.COLOR_RGB2LAB)[0]
    np.add.at(counts, (inside[:, 1] // 8, inside[:, 2] // 8), 1)
    counts = cv2.GaussianBlur(counts, (0, 0), 1.0)
    return counts / max(1e-6, float(counts.sum()))


# --------------------------------------------------------------------------- from ways to masks


def _merged(results: Sequence[tuple[int, _Found]]) -> _Found:
    """Join what was found from the anchors on both sides: the nearer one counts more."""
    kept = [(distance, found) for distance, found in results if found.confidence > 0]
    if not kept:
        return _Found(np.zeros_like(results[0][1].mask), 0.0)
    weights = [found.confidence / (distance + 1) for distance, found in kept]
    votes = np.average([found.mask for _, found in kept], axis=0, weights=weights)
    confidence = np.average([found.confidence for _, found in kept], weights=weights)
    return _Found((votes > 0.5).astype(np.uint8), float(confidence))


def _as_track(pictures: Pictures, found: Sequence[_Found]) -> Track:
    masks = [torch.from_numpy(pictures.back(one.mask)) for one in found]
    confidence = torch.tensor([one.confidence for one in found])
    return Track(torch.stack(masks), confidence, confidence == 0)
