"""What the codec's training lowers: error, error of the edges, structural dissimilarity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.tiny_model import whole_clip
from genhoi.evaluation.metrics import similarity

__all__ = ["codec_loss"]

_EDGES, _STRUCTURE, _KL = 0.5, 0.3, 1e-4
_WINDOW, _STRIDE = 7, 3


def codec_loss(codec: Any, frames: Tensor) -> Tensor:
    """Encode, sample and decode a batch; compare.

    Mean absolute error, the same of the differences between neighbours in space and time, one minus
    SSIM over windows of 7 x 7 pixels, and the KL divergence from a normal distribution, weighed.

    Args:
        codec: an `AutoencoderKLWan`; it computes in bfloat16 here, whatever its weights are in.
        frames: float32 [B, 3, F, H, W], -1 to 1.

    Returns:
        float32 [].
    """
    mean, log_variance = whole_clip.encode(codec, frames.bfloat16()).float().chunk(2, 1)
    log_variance = log_variance.clamp(-20, 4)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    latents = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    result = whole_clip.decode(codec, latents.bfloat16()).float()
    error = result - frames
    edges = sum(error.diff(dim=d).abs().mean() for d in (-1, -2, -3) if error.shape[d] > 1)
    structure = 1 - similarity(_pixels(result), _pixels(frames), average=_average).mean()
    return error.abs().mean() + _EDGES * edges + _STRUCTURE * structure + _KL * kl


def _pixels(frames: Tensor) -> Tensor:
    """Turn [B, 3, F, H, W] in -1 to 1 into [B F, 3, H, W] in 0 to 255."""
    return (frames.transpose(1, 2).flatten(0, 1) + 1) * 127.5


def _average(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, _WINDOW, _STRIDE)
