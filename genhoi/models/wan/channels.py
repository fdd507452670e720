"""The input channels of Wan image-to-video: [noisy latent C | mask 4 | masked-video latent C]."""

from __future__ import annotations

import torch
from torch import Tensor

from genhoi.conditioning.grid import STRIDES

__all__ = ["complete_channels"]

_MASK_CHANNELS = STRIDES.time  # one for every pixel frame of a latent frame


def complete_channels(reference: Tensor, in_channels: int, latent_channels: int) -> Tensor:
    """Fill a reference's latent up to what the model's patch embedding takes.

    Args:
        reference: ``[b, C, 1, h, w]``; C is latent_channels or in_channels.
        in_channels, latent_channels: of the model.

    Returns:
        ``[b, in_channels, 1, h, w]``: [latent | 4 zeros | latent] for an image-to-video model.

    Raises:
        ValueError: another number of channels.
    """
    channels = reference.shape[1]
    if channels == in_channels:
        return reference
    if channels == latent_channels and in_channels == 2 * channels + _MASK_CHANNELS:
        zeros = torch.zeros_like(reference[:, :1]).expand(-1, _MASK_CHANNELS, -1, -1, -1)
        return torch.cat([reference, zeros, reference], dim=1)
    wanted = {in_channels}
    if in_channels == 2 * latent_channels + _MASK_CHANNELS:
        wanted.add(latent_channels)
    raise ValueError(
        f"references: got {channels} channels, wanted {' or '.join(map(str, sorted(wanted)))}"
    )
