"""Frames to and from a Wan's latents, through diffusers' `AutoencoderKLWan`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genhoi.conditioning.grid import Strides
from genhoi.media import fit_image, pixel_values
from genhoi.models.placement import execution_device

__all__ = ["decode_latents", "encode_frames", "encode_reference"]


def encode_reference(vae: Any, image: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Encode a picture of an object as `Attachment.set_reference` takes it.

    Args:
        vae: a diffusers `AutoencoderKLWan`: `pipe.vae`.
        image: uint8 [H, W, 3], as `read_image` gives it; fitted into the frame on grey.
        size: (height, width) of the clip, in pixels; multiples of 16, of Wan 2.2 TI2V's VAE of 32.

    Returns:
        Normalised float32 latent [1, C, 1, height/8, width/8], where the VAE computes; of Wan 2.2
        TI2V's VAE [1, C, 1, height/16, width/16].

    Raises:
        TypeError: `image` is not uint8. ValueError: a shape or size is wrong.

    Example:
        >>> import genhoi, torch
        >>> from diffusers import AutoencoderKLWan
        >>> vae = AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        >>> mug = torch.full((20, 30, 3), 90, dtype=torch.uint8)
        >>> tuple(genhoi.encode_reference(vae, mug, size=(64, 96)).shape)
        (1, 16, 1, 8, 12)
    """
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image: got {type(image).__name__}, wanted uint8 [H, W, 3], as genhoi.read_image gives"
        )
    token = Strides(space=vae.config.scale_factor_spatial).token
    if any(side % token or side < token for side in size):
        raise ValueError(f"size: got {size}, wanted (height, width), multiples of {token}")
    return encode_frames(vae, fit_image(image, size)[None])


@torch.no_grad()
def encode_frames(vae: Any, frames: Tensor) -> Tensor:
    """Encode a clip: the mode of the VAE's distribution, normalised by its statistics.

    Args:
        vae: a diffusers `AutoencoderKLWan`: `pipe.vae`.
        frames: [F, H, W, 3], F = 1 + 4 n: uint8, or float32 in [-1, 1], as `vace_context` gives
            them.

    Returns:
        Float32 latents [1, C, 1 + n, H/8, W/8] (or H/16, W/16), where the VAE computes.

    Example:
        >>> import genhoi, torch
        >>> from diffusers import AutoencoderKLWan
        >>> vae = AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
        >>> clip = torch.zeros(5, 32, 48, 3, dtype=torch.uint8)
        >>> tuple(genhoi.encode_frames(vae, clip).shape)
        (1, 16, 2, 4, 6)
    """
    pixels = pixel_values(frames.to(execution_device(vae))).permute(3, 0, 1, 2)[None]
    latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float()
    mean, std = _statistics(vae, latents.device)
    return (latents - mean) / std


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Undo `encode_frames`; return uint8 [F, H, W, 3] on the CPU."""
    mean, std = _statistics(vae, latents.device)
    pixels = vae.decode((latents.float() * std + mean).to(vae.dtype), return_dict=False)[0]
    pixels = (pixels[0].float().clamp(-1, 1) + 1) * 127.5
    return pixels.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def _statistics(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std
