"""How close frames are to others, and an object to its picture: numbers of every frame.

Frames are uint8 [F, H, W, 3], RGB; regions are bool [F, H, W], and None is the whole frame. Every
result is float64 with a value for each frame, and NaN where a frame has nothing to measure: such
frames belong in no mean, and `thirds` leaves them out. No function reads or writes files, draws
random numbers, or needs trained weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "PSNR_CAP",
    "colour_similarity",
    "frechet_distance",
    "frechet_of_features",
    "object_pixels",
    "region_mean",
    "region_psnr",
    "squared_error",
    "ssim_map",
    "texture_similarity",
    "thirds",
]

PSNR_CAP = 100.0  # dB; stands for identical pixels, whose PSNR is infinite

# Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

_LUMA = (0.299, 0.587, 0.114)
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


# ------------------------------------------------------------------------------------------- errors


def squared_error(result: Tensor, truth: Tensor) -> Tensor:
    """Squared difference of every pixel, the mean over red, green and blue.

    Args:
        result, truth: uint8 [F, H, W, 3].

    Returns:
        float32 [F, H, W], 0 to 255 squared.

    Raises:
        TypeError, ValueError: not frames, or of different shapes.
    """
    _check_pair(result, truth)
    found = torch.empty(result.shape[:3], dtype=torch.float32, device=result.device)
    for i, (a, b) in enumerate(zip(result, truth, strict=True)):
        # Whole numbers up to here, so identical pixels give exactly 0.
        found[i] = (a.int() - b.int()).square_().sum(dim=-1) / 3
    return found


def region_mean(values: Tensor, region: Tensor | None = None) -> Tensor:
    """Mean of a map over each frame's region.

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
    _check_region(region, tuple(values.shape))
    inside = values.masked_fill(~region, 0).sum(dim=(1, 2), dtype=torch.float64)
    return inside / region.sum(dim=(1, 2))


def region_psnr(error: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each frame's region, in dB: -10 log10(mean error / 255^2).

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
    """Structural similarity around every pixel (Wang et al. 2004), the mean of red, green and blue.

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
    found = torch.empty(result.shape[:3], dtype=torch.float64, device=result.device)
    weight = _blur(torch.ones_like(found[:1]))
    for i, (a, b) in enumerate(zip(result, truth, strict=True)):
        x, y = (frame.permute(2, 0, 1).double() for frame in (a, b))
        mean_x, mean_y, square, product = (
            _blur(values) / weight for values in (x, y, x * x + y * y, x * y)
        )
        means = mean_x * mean_y
        mean_square = mean_x.square() + mean_y.square()
        similar = (2 * means + _C1) * (2 * (product - means) + _C2)
        similar /= (mean_square + _C1) * (square - mean_square + _C2)
        found[i] = similar.mean(dim=0)
    return found


def thirds(curve: Tensor) -> Tensor:
    """Means of the first, middle and last third of a curve, NaN left out.

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


def _blur(values: Tensor) -> Tensor:
    """Weigh the last two dimensions with the window, zero outside; slices beat a convolution in
    float64 by six times."""
    half = _WINDOW // 2
    taps = [math.exp(-0.5 * (i / _SIGMA) ** 2) for i in range(half + 1)]
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


# ------------------------------------------------------------------ an object and a picture of it


def object_pixels(picture: Tensor) -> Tensor:
    """Which pixels of an object's picture show the object: those that are not grey 128.

    Transparency is composited over that grey, and pictures are fitted onto it. A picture in which
    less than 1 % is of another colour counts as a whole.

    Args:
        picture: uint8 [h, w, 3].

    Returns:
        bool [h, w], True somewhere.

    Raises:
        TypeError, ValueError: not a picture.
    """
    _check_picture(picture)
    shown = ((picture.int() - _GREY).abs() > _GREY_TOLERANCE).any(dim=-1)
    return shown if shown.double().mean() >= _LEAST_OBJECT else torch.ones_like(shown)


def colour_similarity(
    frames: Tensor, region: Tensor, picture: Tensor, picture_region: Tensor | None = None
) -> Tensor:
    """How much of the colours in each frame's region are those of the object's picture.

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
    wanted = _soft_histogram(_lab(picture[shown]), _LAB)
    found = [
        _intersection(_soft_histogram(_lab(frame[inside]), _LAB), wanted)
        for frame, inside in zip(frames, region, strict=True)
    ]
    return torch.stack(found)


def texture_similarity(
    frames: Tensor, region: Tensor, picture: Tensor, picture_region: Tensor | None = None
) -> Tensor:
    """How alike edges and surface are in each frame's region and in the object's picture.

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
    luma, shown = _luma(picture[box]), shown[box]
    found = []
    for frame, inside in zip(frames, region, strict=True):
        scale = math.sqrt(int(inside.sum()) / int(shown.sum()))
        if not scale:
            found.append(torch.full((), math.nan, dtype=torch.float64, device=frames.device))
            continue
        wanted = _gradient_histogram(*_scaled(luma, shown, scale))
        found.append(_intersection(_gradient_histogram(_luma(frame), inside), wanted))
    return torch.stack(found)


def _intersection(found: Tensor, wanted: Tensor) -> Tensor:
    """Sum of the smaller bins; NaN if a histogram is NaN."""
    return torch.minimum(found, wanted).sum().clamp(max=1)


def _soft_histogram(points: Tensor, axes: Sequence[_Axis]) -> Tensor:
    """Joint histogram of float64 [P, len(axes)], normalised to a sum of 1; NaN without points.

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


def _lab(pixels: Tensor) -> Tensor:
    """CIELAB, white D65, of sRGB uint8 [P, 3], as float64 [P, 3]."""
    coded = pixels.double() / 255
    linear = torch.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    to_xyz = linear.new_tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ (to_xyz / to_xyz.sum(dim=1, keepdim=True)).T
    bent = torch.where(
        xyz > (6 / 29) ** 3, xyz.clamp(min=1e-9) ** (1 / 3), xyz * 841 / 108 + 4 / 29
    )
    x, y, z = bent.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _luma(image: Tensor) -> Tensor:
    return image.double() @ torch.tensor(_LUMA, dtype=torch.float64, device=image.device)


def _scaled(luma: Tensor, shown: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Luma float64 [h, w] and its region scaled alike; what is outside does not leak in."""
    size = [max(1, round(side * scale)) for side in shown.shape]
    if size == list(shown.shape):
        return luma, shown
    both = torch.stack([luma * shown, shown.double()])[None]
    value, share = F.interpolate(both, size=size, mode="bilinear", antialias=True)[0]
    return value / share.clamp(min=1e-6), share > 0.5


def _gradient_histogram(luma: Tensor, inside: Tensor) -> Tensor:
    """Over strength and orientation of luma float64 [h, w]; its first bin is what is smooth."""
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


# ----------------------------------------------------------------------------- sets of features


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Args:
        mean_a, mean_b: float64 [D].
        cov_a, cov_b: float64 [D, D], symmetric, no negative eigenvalue; singular ones are legal.

    Raises:
        ValueError: shapes that do not belong together.
    """
    size = mean_a.shape[0] if mean_a.ndim == 1 else -1
    for name, got, want in (
        ("mean_a", mean_a, (size,)), ("mean_b", mean_b, (size,)),
        ("cov_a", cov_a, (size, size)), ("cov_b", cov_b, (size, size)),
    ):  # fmt: skip
        if tuple(got.shape) != want:
            raise ValueError(f"{name}: got {tuple(got.shape)}, want {'[D]' if size < 0 else want}")
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # C_a C_b has the eigenvalues of this symmetric product.
    middle = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * middle
    return max(0.0, float(distance))


def frechet_of_features(a: Tensor, b: Tensor) -> float:
    """`frechet_distance` of the Gaussians with the means and covariances of two sets of features.

    Args:
        a: floating point [N, D], N at least 2.
        b: floating point [M, D], M at least 2.

    Raises:
        ValueError: another shape, or fewer rows: one sample has no covariance.
    """
    for name, got in (("a", a), ("b", b)):
        if got.ndim != 2 or got.shape[0] < 2 or got.shape[1] != a.shape[-1]:
            raise ValueError(f"{name}: got {tuple(got.shape)}, want [at least 2, D], D of both")
    a, b = a.double(), b.double()
    size = a.shape[1]
    return frechet_distance(
        a.mean(dim=0), a.T.cov().reshape(size, size), b.mean(dim=0), b.T.cov().reshape(size, size)
    )


# ------------------------------------------------------------------------------------------- checks


def _check_frames(name: str, frames: Tensor) -> None:
    if frames.dtype != torch.uint8:
        raise TypeError(f"{name}: got {frames.dtype}, want torch.uint8")
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{name}: got {tuple(frames.shape)}, want [F, H, W, 3] with no size zero")


def _check_pair(result: Tensor, truth: Tensor) -> None:
    _check_frames("result", result)
    _check_frames("truth", truth)
    if result.shape != truth.shape:
        raise ValueError(f"result: got {tuple(result.shape)}, want {tuple(truth.shape)} as truth")


def _check_region(region: Tensor, shape: tuple[int, ...], name: str = "region") -> None:
    if region.dtype != torch.bool:
        raise TypeError(f"{name}: got {region.dtype}, want torch.bool")
    if tuple(region.shape) != shape:
        raise ValueError(f"{name}: got {tuple(region.shape)}, want {shape}")


def _check_picture(picture: Tensor) -> None:
    if picture.dtype != torch.uint8:
        raise TypeError(f"picture: got {picture.dtype}, want torch.uint8")
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"picture: got {tuple(picture.shape)}, want [h, w, 3] with no size zero")


def _check_object(
    frames: Tensor, region: Tensor, picture: Tensor, picture_region: Tensor | None
) -> Tensor:
    """The picture's region, once everything is checked."""
    _check_frames("frames", frames)
    _check_region(region, tuple(frames.shape[:3]))
    _check_picture(picture)
    if picture_region is None:
        return object_pixels(picture)
    _check_region(picture_region, tuple(picture.shape[:2]), "picture_region")
    if not picture_region.any():
        raise ValueError("picture_region: got no True, want at least one pixel of the object")
    return picture_region
