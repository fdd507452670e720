"""What GenHOI's Wan image-to-video sees of a clip, made with a pipeline's VAE."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from genhoi.bases.wan_codec import encode_frames
from genhoi.conditioning.condition import build_condition
from genhoi.conditioning.grid import STRIDES

__all__ = ["edit_condition"]


def edit_condition(
    vae: Any,
    frames: Tensor,
    mask: Tensor,
    *,
    first_frame: Tensor | None = None,
    last_frame: Tensor | None = None,
) -> Tensor:
    """Build what stands beside the noise in a GenHOI model's input: [mask 4 | clip's latent C].

    In the mask 1 means "generate here", and what is generated is grey in the clip. Stock Wan
    image-to-video means the opposite, "given", and sees its first frame and zeros.

    Args:
        vae: a diffusers `AutoencoderKLWan` of Wan 2.1 and 2.2 14B: `pipe.vae`.
        frames: uint8 [F, H, W, 3], F = 1 + 4 n, H and W multiples of 16.
        mask: bool [F, H, W], where to generate.
        first_frame, last_frame: uint8 [H, W, 3], finished: they take the place of the clip's, and
            nothing is generated there. None: they are frames like any other.

    Returns:
        float32 [1, 4 + C, 1 + n, H/8, W/8], where the VAE computes.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or a VAE with other strides, whose models have no mask channels.

    Example:
        >>> import genhoi, torch
        >>> from diffusers import AutoencoderKLWan
        >>> vae = AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        >>> clip = torch.zeros(5, 32, 48, 3, dtype=torch.uint8)
        >>> mask = torch.ones(5, 32, 48, dtype=torch.bool)
        >>> condition = genhoi.edit_condition(vae, clip, mask, first_frame=clip[0])
        >>> noise = torch.randn(1, 16, 2, 4, 6)
        >>> torch.cat([noise, condition], dim=1).shape  # the transformer's hidden_states
        torch.Size([1, 36, 2, 4, 6])
    """
    strides = (vae.config.scale_factor_temporal, vae.config.scale_factor_spatial)
    if strides != (STRIDES.time, STRIDES.space):
        raise ValueError(
            f"vae: got one with {strides[0]} frames and {strides[1]} x {strides[1]} pixels a "
            f"latent, wanted {STRIDES.time} and {STRIDES.space} x {STRIDES.space}, as of Wan 2.1 "
            f"and 2.2 14B"
        )
    condition = build_condition(
        frames,
        mask,
        partial(encode_frames, vae),
        first_frame=first_frame,
        last_frame=last_frame,
    )
    return condition.channels
