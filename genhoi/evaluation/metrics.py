"""How close frames are to others: numbers of every frame.

Frames are uint8 [F, H, W, 3], RGB; regions are bool [F, H, W], and None is the whole frame. Every
result is float64 with a value for each frame, and NaN where a frame has nothing to measure: such
frames belong in no mean, and `thirds` leaves them out. No function reads or writes files, draws
random numbers, or needs trained weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genhoi.evaluation.checks import check_frames, check_region

__all__ = [
    "PSNR_CAP",
    "blur",
    "region_mean",
    "region_psnr",
    "similarity",
    "squared_error",
    "ssim_map",
    "thirds",
]

PSNR_CAP = 100.0  # dB; stands for identical pixels, whose PSNR is infinite

# Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
_SIGMA = 1.5  # of a window of 11 x 11
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def squared_error(result: Tensor, truth: Tensor) -> Tensor:
    """Square the difference of every pixel; the mean over red, green and blue.

    Args:
        result, truth: uint8 [F, H, W, 3].

    Returns:
        float32 [F, H, W], 0 to 255 squared.

    Raises:
        TypeError, ValueError: not frames, or of different shapes.
    """
    _check_pair(result, truth)
    errors = torch.empty(result.shape[:3], dtype=torch.float32, device=result.device)
    for i, (a, b) in enumerate(zip(result, truth, strict=True)):
        # Whole numbers up to here, so identical pixels give exactly 0.
        errors[i] = (a.int() - b.int()).square_().sum(dim=-1) / 3
    return errors


def region_mean(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Average a map over each frame's region.

    Args:
        values: floating point [F, H, W]; what lies outside the region is not looked at.
        region: bool [F, H, W]; None: the whole frame.

    Returns:
        float64 [F], NaN where a frame's region is empty.

    Raises:
        TypeError, ValueError: not a map, or a region of another type or shape.
    """
    if values.ndim != 3 or not values.is_floating_point():
        raise ValueError(
            f"values: got {values.dtype} {tuple(values.shape)}, want floating point [F, H, W]"
        )
    if region is None:
        return values.mean(dim=(1, 2), dtype=torch.float64)
    check_region(region, tuple(values.shape))
    inside = values.masked_fill(~region, 0).sum(dim=(1, 2), dtype=torch.float64)
    return inside / region.sum(dim=(1, 2))


def region_psnr(error: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute each region's peak signal-to-noise ratio, dB: -10 log10(mean error / 255^2).

    Args:
        error: float32 [F, H, W] of `squared_error`.
        region: bool [F, H, W]; None: the whole frame.

    Returns:
        float64 [F]; NaN where a frame's region is empty. Nothing is above `PSNR_CAP`, which stands
        for the infinite PSNR of identical pixels so that a mean over frames exists.

    Raises:
        TypeError, ValueError: as `region_mean`.
    """
    return (-10 * torch.log10(region_mean(error, region) / 255**2)).clamp(max=PSNR_CAP)


def ssim_map(result: Tensor, truth: Tensor) -> Tensor:
    """Compute the structural similarity around every pixel (Wang et al. 2004), the colours' mean.

    A Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 255. At the
    border the window is cut off and its weights again add up to 1, so that every pixel of a frame
    of any size has a value; more than 5 pixels away from it they are those of other
    implementations. A window looks up to 5 pixels out of a region that the map is averaged over.

    Args:
        result, truth: uint8 [F, H, W, 3].

    Returns:
        float64 [F, H, W], at most 1; 1 where the windows are identical.

    Raises:
        TypeError, ValueError: not frames, or of different shapes.
    """
    _check_pair(result, truth)
    out = torch.empty(result.shape[:3], dtype=torch.float64, device=result.device)
    weight = blur(torch.ones_like(out[:1]), _SIGMA)
    for i, (a, b) in enumerate(zip(result, truth, strict=True)):
        x, y = (frame.permute(2, 0, 1).double() for frame in (a, b))
        similar = similarity(x, y, average=lambda values: blur(values, _SIGMA) / weight)
        out[i] = similar.mean(dim=0)
    return out


def similarity(x: Tensor, y: Tensor, *, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the structural similarity from windows' averages (Wang et al. 2004, equation 13).

    Args:
        x, y: floating point, 0 to 255.
        average: of values in windows around pixels, of all or of some.

    Returns:
        As `average` gives; gradients flow.
    """
    mean_x, mean_y, square, product = (average(v) for v in (x, y, x * x + y * y, x * y))
    means = mean_x * mean_y
    mean_square = mean_x.square() + mean_y.square()
    similar = (2 * means + _C1) * (2 * (product - means) + _C2)
    return similar / ((mean_square + _C1) * (square - mean_square + _C2))


def thirds(curve: Tensor) -> Tensor:
    """Average the first, middle and last third of a curve, NaN left out.

    Args:
        curve: floating point [F]. Where F is no multiple of 3 the earlier thirds are longer.

    Returns:
        float64 [3]; NaN for a third without a value, as the last of 2 frames is.

    Raises:
        ValueError: not a curve.
    """
    if curve.ndim != 1 or not curve.is_floating_point():
        raise ValueError(f"curve: got {curve.dtype} {tuple(curve.shape)}, want floating point [F]")
    return torch.stack([part.double().nanmean() for part in curve.tensor_split(3)])


def blur(values: Tensor, sigma: float) -> Tensor:
    """Weigh the last two dimensions with a Gaussian, zero outside them and beyond 3.5 sigma.

    Slices beat a convolution in float64 by six times.

    Args:
        values: floating point [..., H, W].
        sigma: in pixels.
    """
    half = int(3.5 * sigma)
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(half + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    for dim in (-2, -1):
        size = values.shape[dim]
        out = values * (taps[0] / total)
        for i in range(1, min(half + 1, size)):
            rest, weight = size - i, taps[i] / total
            out.narrow(dim, i, rest).add_(values.narrow(dim, 0, rest), alpha=weight)
            out.narrow(dim, 0, rest).add_(values.narrow(dim, i, rest), alpha=weight)
        values = out
    return values


def _check_pair(result: Tensor, truth: Tensor) -> None:
    check_frames("result", result)
    check_frames("truth", truth)
    if result.shape != truth.shape:
        raise ValueError(f"result: got {tuple(result.shape)}, want {tuple(truth.shape)} as truth")
