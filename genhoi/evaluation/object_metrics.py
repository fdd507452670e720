"""How close an object is to a picture of it: colours and texture, numbers of every frame.

Frames, regions and results are as in `genhoi.evaluation.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.evaluation.checks import check_frames, check_picture, check_region
from genhoi.evaluation.colour import lab, luma

__all__ = ["colour_similarity", "object_pixels", "texture_similarity"]

_GREY, _GREY_TOLERANCE = 128, 3
_LEAST_OBJECT = 0.01  # of a picture; if fewer pixels are not grey, the grey is the object's own

# Of a soft histogram's axis: the first node, the distance to the next, how many, whether it closes.
_Axis = tuple[float, float, int, bool]
_LAB: tuple[_Axis, ...] = (
    (0.0, 25.0, 5, False),
    (-112.5, 12.5, 19, False),
    (-112.5, 12.5, 19, False),
)
_GRADIENTS: tuple[_Axis, ...] = ((0.0, 1.0, 7, False), (0.0, math.pi / 8, 8, True))


def object_pixels(picture: Tensor) -> Tensor:
    """Tell which pixels of a picture show the object: those that are not grey 128.

    Transparency is composited over that grey, and pictures are fitted onto it. A picture in which
    less than 1 % is of another colour counts as a whole.

    Args:
        picture: uint8 [h, w, 3].

    Returns:
        bool [h, w], True somewhere.

    Raises:
        TypeError, ValueError: not a picture.
    """
    check_picture(picture)
    shown = ((picture.int() - _GREY).abs() > _GREY_TOLERANCE).any(dim=-1)
    return shown if shown.double().mean() >= _LEAST_OBJECT else torch.ones_like(shown)


def colour_similarity(
    frames: Tensor, region: Tensor, picture: Tensor, picture_region: Tensor | None = None
) -> Tensor:
    """Tell how much of the colours in each frame's region are those of the object's picture.

    The intersection of two histograms in CIELAB (D65), the sum of the smaller of each pair of
    bins. Bins are 25 apart in lightness and 12.5 in a* and b*, and a colour is shared out linearly
    between the neighbouring ones, so that the value falls gradually as colours move apart, to 0
    two bins apart at the latest. Positions don't count, and light does.

    Args:
        frames: uint8 [F, H, W, 3].
        region: bool [F, H, W], where the object is.
        picture: uint8 [h, w, 3] of the object.
        picture_region: bool [h, w]; None: `object_pixels(picture)`.

    Returns:
        float64 [F], 0 to 1; NaN where a frame's region is empty.

    Raises:
        TypeError, ValueError: something has another type or shape.
    """
    shown = _check_object(frames, region, picture, picture_region)
    wanted = _soft_histogram(lab(picture[shown]), _LAB)
    values = [
        _intersection(_soft_histogram(lab(frame[inside]), _LAB), wanted)
        for frame, inside in zip(frames, region, strict=True)
    ]
    return torch.stack(values)


def texture_similarity(
    frames: Tensor, region: Tensor, picture: Tensor, picture_region: Tensor | None = None
) -> Tensor:
    """Tell how alike edges and surface are in each frame's region and in the object's picture.

    Places don't count, so blocks or one flat colour may score higher than the object itself
    (`tests/app/test_metrics_failures.py`). `genhoi eval` does not use it; the ablation study, which
    compares like with like, does.

    The intersection of two histograms of luma gradients (central differences), by strength in
    octaves from 1 to 64 levels a pixel and by orientation in steps of 22.5 degrees; below 1 level
    a pixel is smooth, and has no orientation. Values are shared out linearly between neighbouring
    bins. The picture is scaled first, so that the object covers as many pixels in it as in the
    frame. Only pixels whose four neighbours lie inside count: the outline of a region is not
    texture. An object turned in the image plane is less similar to its picture; compare with
    what the ground truth reaches.

    Args:
        frames: uint8 [F, H, W, 3].
        region: bool [F, H, W], where the object is.
        picture: uint8 [h, w, 3] of the object.
        picture_region: bool [h, w]; None: `object_pixels(picture)`.

    Returns:
        float64 [F], 0 to 1; NaN where a frame's region, or the picture's scaled like it, has no
        such pixel.

    Raises:
        TypeError, ValueError: something has another type or shape.
    """
    shown = _check_object(frames, region, picture, picture_region)
    rows, columns = (shown.any(dim=1 - dim).nonzero()[:, 0] for dim in (0, 1))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    picture_luma, shown = luma(picture[box]), shown[box]
    values = []
    for frame, inside in zip(frames, region, strict=True):
        scale = math.sqrt(int(inside.sum()) / int(shown.sum()))
        if not scale:
            values.append(torch.full((), math.nan, dtype=torch.float64, device=frames.device))
            continue
        wanted = _gradient_histogram(*_scaled(picture_luma, shown, scale))
        values.append(_intersection(_gradient_histogram(luma(frame), inside), wanted))
    return torch.stack(values)


def _intersection(histogram: Tensor, wanted: Tensor) -> Tensor:
    """Sum the smaller bins; NaN if a histogram is NaN."""
    return torch.minimum(histogram, wanted).sum().clamp(max=1)


def _soft_histogram(points: Tensor, axes: Sequence[_Axis]) -> Tensor:
    """Count points float64 [P, len(axes)] in a joint histogram with the sum 1; NaN without points.

    A point beyond an axis' ends counts for the last node.
    """
    index = torch.zeros(1, len(points), dtype=torch.int64, device=points.device)
    weight = torch.ones(1, len(points), dtype=torch.float64, device=points.device)
    total = 1
    for (low, step, nodes, closes), values in zip(axes, points.unbind(dim=1), strict=True):
        place = (values - low) / step
        if not closes:
            place = place.clamp(0, nodes - 1)
        left = place.floor()
        right_share = place - left
        left = left.long()
        both = torch.stack([left, left + 1])
        # Beyond the last node of an open axis the share is 0.
        both = both % nodes if closes else both.clamp(max=nodes - 1)
        shares = torch.stack([1 - right_share, right_share])
        index = (index[:, None] * nodes + both).flatten(0, 1)
        weight = (weight[:, None] * shares).flatten(0, 1)
        total *= nodes
    return torch.bincount(index.flatten(), weights=weight.flatten(), minlength=total) / len(points)


def _scaled(luma: Tensor, shown: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Scale luma float64 [h, w] and its region alike; what is outside does not leak in."""
    size = [max(1, round(side * scale)) for side in shown.shape]
    if size == list(shown.shape):
        return luma, shown
    both = torch.stack([luma * shown, shown.double()])[None]
    value, share = F.interpolate(both, size=size, mode="bilinear", antialias=True)[0]
    return value / share.clamp(min=1e-6), share > 0.5


def _gradient_histogram(luma: Tensor, inside: Tensor) -> Tensor:
    """Count gradients of luma [h, w] by strength and orientation; the first bin is smooth."""
    if min(luma.shape) < 3:
        return luma.new_full((1 + 6 * 8,), math.nan)
    across = (luma[1:-1, 2:] - luma[1:-1, :-2]) / 2
    down = (luma[2:, 1:-1] - luma[:-2, 1:-1]) / 2
    middle = inside[1:-1, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2]
    middle = middle & inside[2:, 1:-1] & inside[:-2, 1:-1]
    across, down = across[middle], down[middle]
    strength = torch.hypot(across, down).clamp(min=1).log2()
    joint = _soft_histogram(
        torch.stack([strength, torch.atan2(down, across) % math.pi], dim=1), _GRADIENTS
    ).view(7, 8)
    return torch.cat([joint[:1].sum()[None], joint[1:].flatten()])


def _check_object(
    frames: Tensor, region: Tensor, picture: Tensor, picture_region: Tensor | None
) -> Tensor:
    """Check everything; give the picture's region."""
    check_frames("frames", frames)
    check_region(region, tuple(frames.shape[:3]))
    check_picture(picture)
    if picture_region is None:
        return object_pixels(picture)
    check_region(picture_region, tuple(picture.shape[:2]), "picture_region")
    if not picture_region.any():
        raise ValueError("picture_region: got no True, want at least one pixel of the object")
    return picture_region
