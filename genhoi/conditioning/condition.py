"""The condition that a GenHOI model sees beside the noisy latents.

Input of the model, for every latent pixel: [noisy latent C | mask 4 | masked-video latent C]. In
the mask 1 means "generate here", the opposite of stock Wan image-to-video, where 1 marks what is
given.

Source: GenHOI, arXiv 2603.06048.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genhoi.conditioning.grid import STRIDES, Grid, Strides
from genhoi.conditioning.masks import MaskRule, fold_frames, token_mask

__all__ = [
    "GREY",
    "Condition",
    "build_condition",
    "latent_mask",
    "paint_grey",
    "reference_tokens",
    "with_finished_frames",
]

# The middle of 0..255, as for the background of reference pictures: near 0 for the VAE.
GREY = 128


@dataclass(frozen=True)
class Condition:
    """What stays the same over all denoising steps of one window.

    Args:
        channels: float32 [1, channels, f, H/8, W/8]; see `build_condition` and
            `genhoi.conditioning.vace.vace_context` for what they are.
        mask: bool [F, H, W], what is generated.
        first_image: uint8 [H, W, 3], frame 0 as the model sees it; for the image encoder.
        last_image: uint8 [H, W, 3], the last frame as the model sees it.
    """

    channels: Tensor
    mask: Tensor
    first_image: Tensor
    last_image: Tensor


def latent_mask(mask: Tensor, strides: Strides = STRIDES) -> Tensor:
    """Bring a hard pixel mask into the form of the latents; see `fold_frames`.

    Args:
        mask: bool [B, F, H, W] or [F, H, W], F = 1 + 4 (f - 1), H and W multiples of 16.
        strides: of the model; all sizes here are those of Wan 2.1.

    Returns:
        float32 [B, 4, f, H/8, W/8] of exact zeros and ones.

    Raises:
        TypeError: another dtype. A mask with noise in it has to be binarised first.
        ValueError: another shape.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, wanted torch.bool; binarise it first")
    if mask.ndim == 3:
        mask = mask[None]
    if mask.ndim != 4 or not strides.is_whole(mask.shape[1]) or not strides.fits(*mask.shape[2:]):
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, wanted [B, 1 + {strides.time} n, H, W] with H "
            f"and W multiples of {strides.token}"
        )
    size = (mask.shape[2] // strides.space, mask.shape[3] // strides.space)
    return fold_frames(mask.float(), size).contiguous()


def paint_grey(frames: Tensor, mask: Tensor) -> Tensor:
    """Paint masked pixels grey.

    Args:
        frames: uint8 [F, H, W, 3].
        mask: bool [F, H, W].

    Returns:
        A new uint8 tensor [F, H, W, 3].

    Raises:
        TypeError: another dtype.
        ValueError: the shapes do not belong together.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames: got {frames.dtype}, wanted torch.uint8")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: got {mask.dtype}, wanted torch.bool; binarise it first")
    if frames.ndim != 4 or frames.shape[3] != 3 or mask.shape != frames.shape[:3]:
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, wanted {tuple(frames.shape[:3])} for frames of "
            f"shape {tuple(frames.shape)}"
        )
    return torch.where(mask[..., None], torch.full_like(frames, GREY), frames)


def build_condition(
    frames: Tensor,
    mask: Tensor,
    encode: Callable[[Tensor], Tensor],
    *,
    first_frame: Tensor | None = None,
    last_frame: Tensor | None = None,
    strides: Strides = STRIDES,
) -> Condition:
    """Build the condition of one window.

    Args:
        frames: uint8 [F, H, W, 3], F = 1 + 4 n, H and W multiples of 16.
        mask: bool [F, H, W], where to generate.
        encode: uint8 [F, H, W, 3] -> normalised latents [1, C, f, H/8, W/8].
        first_frame: uint8 [H, W, 3], frame 0 finished: it takes the place of the clip's, and
            nothing is masked there. None: frame 0 is masked like any other, which departs from the
            authors' release.
        last_frame: the same for the last frame.
        strides: of the model; all sizes here are those of Wan 2.1.

    Raises:
        TypeError, ValueError: as `latent_mask` and `paint_grey`; a finished frame of another dtype
            or shape; nothing masked at all.
    """
    frames, mask = with_finished_frames(frames, mask, first_frame, last_frame)
    channels = latent_mask(mask, strides)
    painted = paint_grey(frames, mask)
    latents = encode(painted).float()
    return Condition(
        channels=torch.cat([channels.to(latents.device), latents], dim=1),
        mask=mask,
        first_image=painted[0],
        last_image=painted[-1],
    )


def with_finished_frames(
    frames: Tensor, mask: Tensor, first_frame: Tensor | None, last_frame: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Put finished frames in the place of a clip's first and last, unmasked.

    Args and errors as `build_condition`.

    Returns:
        New frames and mask.
    """
    frames, mask = frames.clone(), mask.clone()
    for name, index, image in (("first_frame", 0, first_frame), ("last_frame", -1, last_frame)):
        if image is None:
            continue
        if image.dtype != torch.uint8:
            raise TypeError(f"{name}: got {image.dtype}, wanted torch.uint8")
        if image.shape != frames.shape[1:]:
            raise ValueError(
                f"{name}: got shape {tuple(image.shape)}, wanted {tuple(frames.shape[1:])} like "
                f"the clip's frames"
            )
        frames[index], mask[index] = image, False
    return frames, mask


def reference_tokens(
    masks: Sequence[Tensor],
    grid: Grid,
    *,
    rule: MaskRule = "release",
    first_frame_given: bool,
) -> Tensor:
    """Say of every video token which references it may see.

    Args:
        masks: bool [F, H, W] for each reference, with finished frames still in.
        grid: the token grid (f, h, w).
        rule: see `token_mask`.
        first_frame_given: frame 0 is finished, so none of its tokens sees a reference.

    Returns:
        int32 [1, f * h * w]; bit r: the token sees reference r.
    """
    bits = torch.zeros(1, grid[0] * grid[1] * grid[2], dtype=torch.int32)
    for r, mask in enumerate(masks):
        seen = token_mask(mask, grid, rule=rule, kind="pixel", clear_first=first_frame_given)
        bits |= seen.to(torch.int32) << r
    return bits
