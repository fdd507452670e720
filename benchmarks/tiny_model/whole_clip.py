"""A pass of diffusers' `AutoencoderKLWan` over a whole clip at once, for training.

diffusers' own `encode` and `decode` go through a clip frame by frame and keep what the next ones
need, which saves memory and computes the same; on a CPU one pass is several times faster. Of a
single frame only the last of a causal kernel's three taps in time meets anything but zeros, so it
is convolved in two dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["decode", "encode", "inflate"]


def encode(vae: Any, frames: Tensor) -> Tensor:
    """Encode clips.

    Args:
        vae: an `AutoencoderKLWan` with `patch_size`.
        frames: [B, 3, 1 + 4 n, H, W], -1 to 1.

    Returns:
        Mean and log of the variance, [B, 2 z_dim, 1 + n, H/8, W/8].
    """
    size = vae.config.patch_size
    b, c, f, height, width = frames.shape
    x = frames.view(b, c, f, height // size, size, width // size, size)
    x = x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)
    encoder = vae.encoder
    x = _conv(encoder.conv_in, x.contiguous(memory_format=torch.channels_last_3d))
    for block in encoder.down_blocks:
        x = _resample(block, x) if hasattr(block, "resample") else _residual(block, x)
    x = _middle(encoder.mid_block, x)
    x = _conv(encoder.conv_out, _activated(encoder.norm_out, x))
    return _conv(vae.quant_conv, x)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, z_dim, 1 + n, H/8, W/8] to [B, 3, 1 + 4 n, H, W], not clamped."""
    decoder = vae.decoder
    x = _conv(vae.post_quant_conv, latents.contiguous(memory_format=torch.channels_last_3d))
    x = _middle(decoder.mid_block, _conv(decoder.conv_in, x))
    for block in decoder.up_blocks:
        for residual in block.resnets:
            x = _residual(residual, x)
        for resample in block.upsamplers or ():
            x = _resample(resample, x)
    x = _conv(decoder.conv_out, _activated(decoder.norm_out, x))
    size = vae.config.patch_size
    x = x.unflatten(1, (-1, size, size)).permute(0, 1, 4, 5, 3, 6, 2)
    return x.flatten(5, 6).flatten(3, 4)


@torch.no_grad()
def inflate(vae: Any) -> None:
    """Let a VAE that has learnt single frames begin with clips: what it makes of a still is right.

    Kernels see the present frame alone; going down the mean of two frames is kept, going up a frame
    is shown twice.
    """
    for module in vae.modules():
        if getattr(module, "kernel_size", ())[:1] != (3,) or module.weight.ndim != 5:
            continue
        if module.kernel_size == (3, 3, 3):
            module.weight[:, :, :2] = 0
            continue
        # The kernel over time of a resampling, [C or 2 C, C, 3, 1, 1].
        module.bias.zero_()
        module.weight.zero_()
        down = module.stride[0] == 2
        for part in module.weight.split(module.in_channels):
            part[:, :, 2, 0, 0].fill_diagonal_(0.5 if down else 1.0)
            part[:, :, 1, 0, 0].fill_diagonal_(0.5 if down else 0.0)


def _conv(conv: Any, x: Tensor) -> Tensor:
    """Convolve, causally in time."""
    space = (conv._padding[2], conv._padding[0])
    past = conv._padding[4]
    weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    if x.shape[2] == 1:
        y = F.conv2d(x[:, :, 0], weight[:, :, -1], bias, conv.stride[1:], space)
        return y[:, :, None]
    if past:
        x = F.pad(x, (0, 0, 0, 0, past, 0))
    return F.conv3d(x, weight, bias, conv.stride, (0, *space))


def _activated(norm: Any, x: Tensor) -> Tensor:
    return _silu_of_norm(x, norm.gamma)


@torch.compile(dynamic=False)
def _silu_of_norm(x: Tensor, gamma: Tensor) -> Tensor:
    # Half of a training step where torch is left to do it operation by operation.
    return F.silu(_norm(x, gamma)).to(x.dtype)


def _norm(x: Tensor, gamma: Tensor) -> Tensor:
    return x.float() * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-12) * gamma


def _residual(block: Any, x: Tensor) -> Tensor:
    shortcut = _conv(block.conv_shortcut, x) if block.in_dim != block.out_dim else x
    h = _conv(block.conv1, _activated(block.norm1, x))
    return shortcut + _conv(block.conv2, _activated(block.norm2, h))


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    attention = block.attentions[0]
    b, _, f, height, width = x.shape
    h = _norm(x.transpose(1, 2).flatten(0, 1), attention.norm.gamma).to(x.dtype)
    qkv = F.conv2d(h, attention.to_qkv.weight.to(x.dtype), attention.to_qkv.bias.to(x.dtype))
    q, k, v = qkv.flatten(2).transpose(1, 2)[:, None].chunk(3, -1)
    h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, (height, width))
    h = F.conv2d(h, attention.proj.weight.to(x.dtype), attention.proj.bias.to(x.dtype))
    return _residual(block.resnets[1], x + h.unflatten(0, (b, f)).transpose(1, 2))


def _resample(layer: Any, x: Tensor) -> Tensor:
    """Halve or double the size; in time the first frame stands apart."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        later = _conv(layer.time_conv, x[:, :, 1:])
        later = later.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        x = torch.cat([x[:, :, :1], later], 2)
    b = x.shape[0]
    y = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    first, conv = layer.resample
    weight, bias = conv.weight.to(x.dtype), conv.bias.to(x.dtype)
    y = F.conv2d(first(y), weight, bias, conv.stride, conv.padding)
    y = y.unflatten(0, (b, -1)).transpose(1, 2)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        y = torch.cat([y[:, :, :1], _conv(layer.time_conv, y)], 2)
    return y
