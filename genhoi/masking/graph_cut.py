"""The outline of a thing in one picture, by OpenCV's GrabCut: from a box, and from where it was.

GrabCut (Rother, Kolmogorov and Blake, 2004) models the colours inside and outside by mixtures of
Gaussians, and cuts where colours change. Pictures are uint8 [H, W, 3], RGB, and masks are uint8
[H, W] of zeros and ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Corners", "Seeds", "cut", "cut_boxes", "refine"]

Corners = tuple[int, int, int, int]

_ROUNDS = 5  # of GrabCut, from a box
_MOVES = 1.0  # pixels against the background from which something moves of its own
_MIDDLE = 0.3  # of a box's size: what lies there may be taken for the thing
_GOOD_FIT = 0.7  # of the best outline's fit to the box
_BAND = 0.10  # of the thing's size: how far its outline may be from where flow put it
_SPECK = 0.15  # of the largest part: what is smaller is no part of the thing
_HOLE = 0.05  # of the thing: what is smaller is no hole in it


@dataclass(frozen=True)
class Seeds:
    """What is known of a picture's pixels, bool [H, W] each."""

    inside: np.ndarray
    outside: np.ndarray


def cut(picture: np.ndarray, labels: np.ndarray, *, rounds: int) -> np.ndarray:
    """Cut a thing out along its outline.

    Only the neighbourhood of what may be the thing is looked at.

    Args:
        picture: RGB.
        labels: GrabCut's for each pixel: cv2.GC_BGD, GC_FGD, GC_PR_BGD or GC_PR_FGD.
        rounds: of GrabCut.
    """
    likely = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    mask = likely.astype(np.uint8)
    x, y, width, height = cv2.boundingRect((labels != cv2.GC_BGD).astype(np.uint8))
    rows = slice(max(0, y - height // 2), y + height + height // 2)
    columns = slice(max(0, x - width // 2), x + width + width // 2)
    near = np.ascontiguousarray(labels[rows, columns])
    if likely.any() and not likely[rows, columns].all():  # each colour model has pixels
        cv2.setRNGSeed(0)  # of the clusters that the models begin with
        rgb = np.ascontiguousarray(picture[rows, columns])
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(rgb, near, None, *models, rounds, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
        mask[rows, columns] = (near == cv2.GC_FGD) | (near == cv2.GC_PR_FGD)
    mask = _whole(mask)
    mask[labels == cv2.GC_BGD], mask[labels == cv2.GC_FGD] = 0, 1
    return mask


def cut_boxes(
    picture: np.ndarray, boxes: Sequence[Corners], motion: np.ndarray | None, seeds: Seeds
) -> np.ndarray:
    """Find the thing in boxes around it.

    Cuts begin from several guesses: the ellipse in the box, that with its middle for certain, what
    moves of its own in the box, and in the ellipse. A box is meant to be tight, so an outline that
    fits its box much worse than the best has gone astray; of the others every pixel takes the
    majority.

    Args:
        picture: RGB.
        boxes: left, top, right, bottom of each.
        motion: of `own_motion`, or None.
        seeds: what is known besides.
    """
    allowed = np.zeros(picture.shape[:2], bool)
    for left, top, right, bottom in boxes:
        allowed[top:bottom, left:right] = True
    allowed &= ~seeds.outside
    ellipses = allowed & _ellipses(allowed.shape, boxes)
    middle = seeds.inside | (allowed & _ellipses(allowed.shape, boxes, part=_MIDDLE))
    moving = _moving(motion, allowed)
    guesses = [(ellipses, seeds.inside), (ellipses, middle)]
    if moving is not None:
        guesses += [(moving, seeds.inside), (moving & ellipses, seeds.inside)]
    masks = []
    for likely, sure in guesses:
        labels = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        labels[~allowed] = cv2.GC_BGD
        labels[sure] = cv2.GC_FGD
        masks.append(cut(picture, labels, rounds=_ROUNDS))
    fits = [_fit(mask, boxes) for mask in masks]
    good = [m for m, fit in zip(masks, fits, strict=True) if fit >= _GOOD_FIT * max(fits)]
    return (np.mean(good, axis=0) > 0.5).astype(np.uint8)


def refine(picture: np.ndarray, expected: np.ndarray, seeds: Seeds) -> np.ndarray:
    """Move the outline of a thing to where colours change, within a band around where it should be.

    Args:
        picture: RGB.
        expected: float32 [H, W], above 0.5 where the thing should be.
        seeds: what is known besides.
    """
    inside = ((expected > 0.5) | seeds.inside) & ~seeds.outside
    solid = inside.astype(np.uint8)
    if not solid.any():
        return solid
    band = max(3.0, _BAND * float(np.sqrt(solid.sum())))
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.distanceTransform(solid, cv2.DIST_L2, 3) > band] = cv2.GC_FGD
    labels[cv2.distanceTransform(1 - solid, cv2.DIST_L2, 3) > band] = cv2.GC_BGD
    labels[seeds.outside] = cv2.GC_BGD
    labels[seeds.inside] = cv2.GC_FGD
    return cut(picture, labels, rounds=1)


def _moving(motion: np.ndarray | None, allowed: np.ndarray) -> np.ndarray | None:
    """Say what moves of its own within the boxes; None if too little of them does."""
    if motion is None or not allowed.any() or np.percentile(motion[allowed], 70) < 2 * _MOVES:
        return None
    slowest = max(_MOVES, 0.35 * float(np.percentile(motion[allowed], 80)))
    return np.asarray(allowed & (motion > slowest))


def _ellipses(shape: tuple[int, ...], boxes: Sequence[Corners], *, part: float = 1.0) -> np.ndarray:
    """Fill the ellipse in each box, scaled down to a part of its size."""
    mask = np.zeros(shape, np.uint8)
    for left, top, right, bottom in boxes:
        center = (left + right) / 2, (top + bottom) / 2
        size = part * (right - left), part * (bottom - top)
        cv2.ellipse(mask, (center, size, 0.0), 1, thickness=-1)
    return mask > 0


def _fit(mask: np.ndarray, boxes: Sequence[Corners]) -> float:
    """Compare each box with the rectangle around what lies in it: mean intersection over union."""
    fits = []
    for left, top, right, bottom in boxes:
        _, _, width, height = cv2.boundingRect(mask[top:bottom, left:right])
        fits.append(width * height / ((right - left) * (bottom - top)))
    return float(np.mean(fits))


def _whole(mask: np.ndarray) -> np.ndarray:
    """Drop specks beside a thing, and fill small holes in it."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[:, cv2.CC_STAT_AREA]
    if count > 2:
        large = areas >= _SPECK * areas[1:].max()
        large[0] = False
        mask = large[parts].astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(1 - mask)
    small = stats[:, cv2.CC_STAT_AREA] < _HOLE * mask.sum()
    small[0] = False
    small[np.unique(_border(parts))] = False
    return np.where(small[parts], np.uint8(1), mask)


def _border(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
