"""The VACE context: what a Wan VACE model sees beside the noisy latents (docs/model_layer.md).

For every latent pixel of the video [inactive latent C | reactive latent C | mask 64]: the part of
the clip that stays, the part that is generated, each alone on grey, and where that is. References
come as latent frames before the video's: [reference latent C | zeros C | zeros 64].

Source: Wan VACE, arXiv 2503.07598, as GenHOI uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from genhoi.conditioning.condition import Condition, paint_grey, with_finished_frames
from genhoi.conditioning.grid import STRIDES, Strides
from genhoi.media import pixel_values

__all__ = ["build_vace_condition", "vace_context", "with_reference_frames"]


def vace_context(
    frames: Tensor,
    mask: Tensor | None,
    encode: Callable[[Tensor], Tensor],
    *,
    references: Sequence[Tensor] = (),
    strides: Strides = STRIDES,
) -> Tensor:
    """Build the VACE context of a clip: the transformer's ``control_hidden_states``.

    The codec sees 0, mid grey, where a half of the clip leaves something out. A latent frame's mask
    is that of one pixel frame, near its middle, so the masks of the first and the last frame never
    reach the mask channels, as in VACE itself: such a frame shows through the inactive latent.

    Args:
        frames: ``[F, H, W, 3]``, F = 1 + 4 n, H and W multiples of 16: uint8, or float32 in
            [-1, 1].
        mask: ``[F, H, W]``, bool or float in [0, 1], 1 where to generate; None: everywhere.
        encode: float32 frames in [-1, 1] -> normalised latents ``[1, C, f, H/8, W/8]``.
        references: latents ``[1, C, 1, H/8, W/8]``, each encoded alone, as one frame, in order.
        strides: of the model; all sizes here are those of Wan 2.1.

    Returns:
        float32 ``[1, 2 C + 64, R + f, H/8, W/8]``.

    Raises:
        TypeError: frames or a mask of another dtype.
        ValueError: shapes that do not fit each other or the strides.

    Example:
        >>> import genhoi, torch
        >>> clip = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
        >>> mask = torch.ones(5, 32, 32, dtype=torch.bool)
        >>> encode = lambda frames: torch.zeros(1, 16, 2, 4, 4)  # else a Wan VAE
        >>> mug = torch.ones(1, 16, 1, 4, 4)
        >>> genhoi.vace_context(clip, mask, encode, references=[mug]).shape
        torch.Size([1, 96, 3, 4, 4])
    """
    pixels = pixel_values(frames)
    weight = _weight(mask, pixels, strides)
    inside = weight[..., None]
    halves = [encode(pixels * part).float() for part in (1 - inside, inside)]
    channels = _mask_channels(weight, strides).to(halves[0].device)
    return with_reference_frames(torch.cat([*halves, channels], dim=1), references)


def with_reference_frames(context: Tensor, references: Sequence[Tensor]) -> Tensor:
    """Put references before the video's frames of a VACE context.

    Args:
        context: ``[B, channels, f, h, w]``.
        references: latents ``[B or 1, C, 1, h, w]``, in order.

    Returns:
        ``[B, channels, R + f, h, w]``; rows of a reference are zero in the channels beside its own.

    Raises:
        ValueError: a reference of another size than the context's frames.
    """
    batch, channels, _, height, width = context.shape
    frames = []
    for x in references:
        fits = x.ndim == 5 and len(x) in (1, batch) and x.shape[1] <= channels
        if not fits or tuple(x.shape[2:]) != (1, height, width):
            raise ValueError(
                f"references: got a latent of shape {tuple(x.shape)}, wanted [1 or {batch}, C, 1, "
                f"{height}, {width}] for a context of shape {tuple(context.shape)}"
            )
        frame = context.new_zeros(batch, channels, 1, height, width)
        frame[:, : x.shape[1]] = x.to(context)
        frames.append(frame)
    return torch.cat([*frames, context], dim=2) if frames else context


def build_vace_condition(
    frames: Tensor,
    mask: Tensor,
    encode: Callable[[Tensor], Tensor],
    *,
    first_frame: Tensor | None = None,
    last_frame: Tensor | None = None,
    strides: Strides = STRIDES,
) -> Condition:
    """Build the condition of one window, without references.

    What is generated is painted grey first, so that the model sees nothing of what was there.

    Args:
        frames: uint8 [F, H, W, 3], F = 1 + 4 n, H and W multiples of 16.
        mask: bool [F, H, W], where to generate.
        encode: as for `vace_context`.
        first_frame, last_frame: uint8 [H, W, 3], finished, or None; see
            `genhoi.conditioning.condition.build_condition`.
        strides: of the model.

    Raises:
        TypeError, ValueError: as `genhoi.conditioning.condition.build_condition`.
    """
    frames, mask = with_finished_frames(frames, mask, first_frame, last_frame)
    painted = paint_grey(frames, mask)
    return Condition(
        channels=vace_context(painted, mask, encode, strides=strides),
        mask=mask,
        first_image=painted[0],
        last_image=painted[-1],
    )


def _weight(mask: Tensor | None, pixels: Tensor, strides: Strides) -> Tensor:
    """Return the mask as float32 [F, H, W], after checking it and the clip's sizes."""
    count, height, width = pixels.shape[:3]
    if not strides.is_whole(count) or not strides.fits(height, width):
        raise ValueError(
            f"frames: got shape {tuple(pixels.shape)}, wanted [1 + {strides.time} n, H, W, 3] with "
            f"H and W multiples of {strides.token}"
        )
    if mask is None:
        return pixels.new_ones(count, height, width)
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"mask: got {mask.dtype}, wanted torch.bool or a floating type in [0, 1]")
    if mask.shape != pixels.shape[:3]:
        raise ValueError(
            f"mask: got shape {tuple(mask.shape)}, wanted {(count, height, width)} as the frames"
        )
    return mask.to(pixels)


def _mask_channels(weight: Tensor, strides: Strides) -> Tensor:
    """Bring a mask [F, H, W] into the form of the latents: [1, 64, f, H/8, W/8].

    The pixels of a latent pixel become channels, row by row; of the frames the nearest is taken.
    """
    count, height, width = weight.shape
    cell = strides.space
    cells = weight.view(count, height // cell, cell, width // cell, cell)
    channels = cells.permute(2, 4, 0, 1, 3).flatten(0, 1)[None]
    size = (strides.latent_frames(count), height // cell, width // cell)
    return F.interpolate(channels, size=size, mode="nearest-exact")
