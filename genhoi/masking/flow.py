"""How pictures move: dense optical flow (OpenCV's DIS), what it carries along, where to trust it.

A flow is float32 [H, W, 2]: what lies at (x, y) of one picture lies at (x, y) + flow in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

__all__ = ["optical_flow", "own_motion", "round_trip", "warped"]

_CLEAR = 1.5  # pixels that a round trip may miss its start by
_FAR = 20.0  # pixels beyond which one motion counts no more than another
_SAMPLES = 3000
_FEWEST_SAMPLES = 200


def optical_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Find where each pixel of one grey picture is in another.

    Args:
        first, second: uint8 [H, W].
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # OpenCV's types say what it returns only by its widest kind of array.
    return np.asarray(flow.calc(first, second, None))  # type: ignore[call-overload]


def warped(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Bring values of another picture to this one, whose flow leads there.

    Args:
        values: float32 [H, W] or [H, W, C], of the other picture.
        flow: from this picture to the other.
    """
    x, y = _grid(flow.shape[0], flow.shape[1])
    x, y = x + flow[..., 0], y + flow[..., 1]
    return np.asarray(
        cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
    )


def round_trip(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Measure by how many pixels each point misses its start: float32 [H, W].

    What is hidden in the other picture has nothing to go to, and does not come back.
    """
    return np.linalg.norm(there + warped(back, there), axis=-1)


def own_motion(
    picture: np.ndarray, others: Sequence[np.ndarray], outside: np.ndarray
) -> np.ndarray | None:
    """Measure how much each pixel moves against the background.

    The background's motion is the plane's that fits best to the flow outside the thing.

    Args:
        picture: uint8 [H, W], grey.
        others: pictures shortly before and after it.
        outside: bool [H, W], where the background is known to be.

    Returns:
        float32 [H, W] in pixels, mean over the others; None where no background could be followed.
    """
    height, width = picture.shape
    x, y = _grid(height, width)
    places = np.stack([x, y, np.ones_like(x)], axis=-1)
    motions = []
    for other in others:
        flow = optical_flow(picture, other)
        clear = round_trip(flow, optical_flow(other, picture)) < _CLEAR
        rows, columns = np.nonzero(outside & clear)
        if len(rows) < _FEWEST_SAMPLES:
            continue
        chosen = np.linspace(0, len(rows) - 1, min(_SAMPLES, len(rows))).astype(int)
        start = places[rows[chosen], columns[chosen], :2]
        end = start + flow[rows[chosen], columns[chosen]]
        plane: Any = cv2.findHomography(start, end, cv2.RANSAC, 2.0)[0]
        if plane is None:
            continue
        moved = places @ plane.T.astype(np.float32)
        expected = moved[..., :2] / moved[..., 2:] - places[..., :2]
        motions.append(np.linalg.norm(flow - expected, axis=-1).clip(max=_FAR))
    return np.mean(motions, axis=0) if motions else None


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x, y
