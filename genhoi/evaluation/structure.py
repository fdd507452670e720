"""Whether the edges of frames are those of the truth: numbers of every frame.

Frames, regions and results are as in `genhoi.evaluation.metrics`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genhoi.evaluation.checks import check_frames, check_region
from genhoi.evaluation.colour import luma
from genhoi.evaluation.metrics import blur

__all__ = ["edge_similarity"]

_SIGMA = 1.0  # pixels; gradients of neighbours within about two of it count as the same edge
_FLAT = 0.25  # levels a pixel squared: where both have less than this, flat is flat


def edge_similarity(result: Tensor, truth: Tensor, region: Tensor | None = None) -> Tensor:
    """Tell how far edges are where, as strong as, and turned as the truth's.

    With g and t the gradients (central differences) of the smoothed lumas of result and truth, and
    sums over a region's n pixels,

        (2 sum g.t + c n) / (sum |g|^2 + sum |t|^2 + c n)

    A Gaussian of sigma 1 smooths, so that noise of coding is not an edge and a shift by a pixel
    costs little; c = 0.25. What is blurred, in blocks, of one colour or of another pattern has
    few of the truth's edges, however close its colours are: it scores low, where PSNR scores it
    high. Light does not count, places do.

    Args:
        result, truth: uint8 [F, H, W, 3].
        region: bool [F, H, W]; None: the whole frame.

    Returns:
        float64 [F], -1 to 1: 1 for the truth, about 0 for something else, below that for a
        negative; NaN where a frame's region is empty.

    Raises:
        TypeError, ValueError: not frames, of different shapes, or a region of another shape.

    Example:
        >>> import torch
        >>> truth = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
        >>> truth[:, 8:24, 8:24] = 200
        >>> flat = torch.full_like(truth, 50)
        >>> [round(float(edge_similarity(x, truth)), 2) for x in (truth, flat)]
        [1.0, 0.0]
    """
    check_frames("result", result)
    check_frames("truth", truth)
    if result.shape != truth.shape:
        raise ValueError(f"result: got {tuple(result.shape)}, want {tuple(truth.shape)} as truth")
    if region is not None:
        check_region(region, tuple(truth.shape[:3]))
    values = []
    for i, (a, b) in enumerate(zip(result, truth, strict=True)):
        inside = None if region is None else region[i]
        values.append(_similarity(_gradients(a), _gradients(b), inside))
    return torch.stack(values)


def _gradients(frame: Tensor) -> Tensor:
    """Differentiate the smoothed luma, float64 [2, H, W]; 0 across the frame's border."""
    values = luma(frame)
    values = blur(values, _SIGMA) / blur(torch.ones_like(values), _SIGMA)
    gradients = values.new_zeros(2, *values.shape)
    gradients[0, :, 1:-1] = (values[:, 2:] - values[:, :-2]) / 2
    gradients[1, 1:-1] = (values[2:] - values[:-2]) / 2
    return gradients


def _similarity(made: Tensor, true: Tensor, region: Tensor | None) -> Tensor:
    if region is not None:
        made, true = made[:, region], true[:, region]
    flat = _FLAT * made[0].numel()  # without pixels 0, and the quotient NaN
    shared = 2 * (made * true).sum() + flat
    return shared / (made.square().sum() + true.square().sum() + flat)
