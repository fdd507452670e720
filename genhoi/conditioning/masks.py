"""From a mask over pixels or latents to a mask over the model's tokens (docs/op.md, "Mask gate").

`genhoi.conditioning.grid` says which pixels and latent pixels a token covers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.conditioning.grid import STRIDES, Grid

__all__ = ["MaskRule", "clear_first_frame", "fold_frames", "token_mask"]

MaskRule = Literal["release", "any"]


def token_mask(
    mask: Tensor,
    grid: Grid,
    *,
    rule: MaskRule = "release",
    kind: Literal["latent", "pixel"] = "latent",
    clear_first: bool = False,
) -> Tensor:
    """Say of every video token whether it lies inside the mask.

    The `release` rule is that of the authors' code. Pixels: nearest resize to the latent's height
    and width; frame 0 repeated 4 times, then every 4 frames become the 4 channels of one latent
    frame. Latents: the mean of the channels strictly above 0.5 gives 0 or 1; adaptive average
    pooling to the grid; strictly above 0.5 is inside. Two of four is outside, and something thinner
    than 8 pixels can vanish.

    The `any` rule takes a token in as soon as one of its pixels (or latent pixels) is above 0.5, at
    full resolution: the safer choice for thin hands.

    Args:
        mask: with `kind="latent"` [B, 4 or 1, f, H, W] or [B, f, H, W], H and W in latent pixels;
            with `kind="pixel"` [B, F, H, W] or [F, H, W] with F = 1 + 4 (f - 1). Bool, an integer
            type holding only 0 and 1, or a floating type.
        grid: the token grid (f, h, w).
        rule: `release` or `any`.
        kind: what `mask` covers.
        clear_first: also put every token of frame 0 outside, as the hard mask gate wants it; see
            `clear_first_frame`.

    Returns:
        bool [B, f * h * w] on the mask's device, frame by frame, row by row.

    Raises:
        TypeError: `mask` has another dtype.
        ValueError: a shape does not fit the grid, an integer mask holds other values, or an option
            is unknown.

    Source: docs/op.md, "Mask gate"; GenHOI, arXiv 2603.06048.

    Example:
        >>> import genhoi, torch
        >>> mask = torch.zeros(1, 5, 32, 32, dtype=torch.bool)
        >>> mask[:, :, :16, :16] = True  # the upper left quarter
        >>> genhoi.token_mask(mask, (2, 2, 2), kind="pixel").int().tolist()
        [[1, 0, 0, 0, 1, 0, 0, 0]]
    """
    _check_options(rule, kind)
    _check_grid(grid)
    values = _values(mask)
    if kind == "latent":
        channels = _latent_channels(values, grid)
    else:
        values = _pixel_frames(values, grid)
        if rule == "any":
            return _finish(_any_pixel(values, grid), grid, clear_first)
        channels = _pixels_to_latent(values, grid)
    if rule == "any":
        inside = F.adaptive_max_pool3d((channels > 0.5).float().amax(1, keepdim=True), grid) > 0.5
    else:
        binary = (channels.mean(1, keepdim=True) > 0.5).float()
        inside = F.adaptive_avg_pool3d(binary, grid) > 0.5
    return _finish(inside, grid, clear_first)


def clear_first_frame(tokens: Tensor, grid: Grid) -> Tensor:
    """Put every token of frame 0 outside the mask.

    The user supplies that frame finished, so it never sees the reference.

    Args:
        tokens: bool [B, f * h * w].
        grid: the token grid (f, h, w).

    Returns:
        A new tensor of the same shape.

    Raises:
        ValueError: the number of tokens is not that of the grid.

    Example:
        >>> import genhoi, torch
        >>> genhoi.clear_first_frame(torch.ones(1, 8, dtype=torch.bool), (2, 2, 2)).int().tolist()
        [[0, 0, 0, 0, 1, 1, 1, 1]]
    """
    _check_grid(grid)
    f, h, w = grid
    if tokens.ndim != 2 or tokens.shape[1] != f * h * w:
        raise ValueError(
            f"tokens: got shape {tuple(tokens.shape)}, want [B, {f * h * w}] for grid {grid}"
        )
    cleared = tokens.clone()
    cleared[:, : h * w] = False
    return cleared


def fold_frames(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a mask over pixels into the form of the latents.

    Nearest resize; frame 0 repeated 4 times; then every 4 frames become the 4 channels of one
    latent frame.

    Args:
        mask: floating [B, F, H, W], F = 1 + 4 (f - 1).
        size: height and width of the result, in latent pixels.

    Returns:
        [B, 4, f, *size] in the mask's dtype.
    """
    small = F.interpolate(mask, size=size, mode="nearest")
    first = small[:, :1].expand(-1, STRIDES.time, -1, -1)
    frames = torch.cat([first, small[:, 1:]], dim=1)
    return frames.unflatten(1, (-1, STRIDES.time)).transpose(1, 2)


def _finish(inside: Tensor, grid: Grid, clear_first: bool) -> Tensor:
    tokens = inside.flatten(1)
    return clear_first_frame(tokens, grid) if clear_first else tokens


def _check_options(rule: str, kind: str) -> None:
    if rule not in ("release", "any"):
        raise ValueError(f'rule: got {rule!r}, want "release" or "any"')
    if kind not in ("latent", "pixel"):
        raise ValueError(f'kind: got {kind!r}, want "latent" or "pixel"')


def _check_grid(grid: Grid) -> None:
    if len(grid) != 3 or any(not isinstance(n, int) or n < 1 for n in grid):
        raise ValueError(f"grid: got {grid!r}, want three positive integers (f, h, w)")


def _values(mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool or mask.dtype.is_floating_point:
        return mask.float()
    if mask.dtype.is_complex:
        raise TypeError(f"mask: got {mask.dtype}, want bool, an integer or a floating type")
    # 255 would count as a value far above any mean; 1 of 255 is noise. Only the caller knows which
    # it is.
    if mask.numel() and (int(mask.min()) < 0 or int(mask.max()) > 1):
        raise ValueError(
            f"mask: got {mask.dtype} with values from {int(mask.min())} to {int(mask.max())}, "
            "want 0 and 1 only; binarise it first, for example mask > 127"
        )
    return mask.float()


def _latent_channels(mask: Tensor, grid: Grid) -> Tensor:
    """Bring either form of a latent mask into [B, C, f, H, W]."""
    if mask.ndim == 4:
        mask = mask[:, None]
    f, h, w = grid
    fits = mask.ndim == 5 and mask.shape[1] in (1, 4) and mask.shape[2] == f
    if not fits or mask.shape[3] < h or mask.shape[4] < w:
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, want [B, 4 or 1, {f}, H, W] or [B, {f}, H, W] "
            f"with H at least {h} and W at least {w} for grid {grid}"
        )
    return mask


def _pixel_frames(mask: Tensor, grid: Grid) -> Tensor:
    """Bring either form of a pixel mask into [B, F, H, W]."""
    if mask.ndim == 3:
        mask = mask[None]
    f, h, w = grid
    frames = STRIDES.pixel_frames(f)
    if mask.ndim != 4 or mask.shape[1] != frames or mask.shape[2] < h or mask.shape[3] < w:
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, want [B, {frames}, H, W] or [{frames}, H, W] "
            f"with H at least {h} and W at least {w} for grid {grid}"
        )
    return mask


def _pixels_to_latent(mask: Tensor, grid: Grid) -> Tensor:
    """Fold [B, F, H, W] to [B, 4, f, H', W'], H' and W' the latent's size."""
    f, h, w = grid
    size = (mask.shape[2] // STRIDES.space, mask.shape[3] // STRIDES.space)
    if STRIDES.latent_grid(f, *size) != (f, h, w):
        # A mask drawn at another size than the clip: the grid alone tells the latent's size.
        size = (STRIDES.patch * h, STRIDES.patch * w)
    return fold_frames(mask, size)


def _any_pixel(mask: Tensor, grid: Grid) -> Tensor:
    """Take the maximum of [B, F, H, W] over a token's pixels, bool [B, 1, f, h, w]."""
    f, h, w = grid
    pooled = F.adaptive_max_pool2d((mask > 0.5).float(), (h, w))
    later = pooled[:, 1:].unflatten(1, (f - 1, STRIDES.time)).amax(2) if f > 1 else pooled[:, 1:]
    return torch.cat([pooled[:, :1], later], dim=1)[:, None] > 0.5
