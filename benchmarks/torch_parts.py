"""RoPE and flow gate as people write them: PyTorch's calls, no kernel of this project."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genhoi_kernels import GateWeights, HeadSlidingRope, VideoRope
from genhoi_kernels.reference import GATE_NORM_EPS, rotations

__all__ = ["cos_sin", "rotate", "token_gate"]


def cos_sin(
    rope: VideoRope | HeadSlidingRope, tokens: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines of all tokens, ``[1, tokens, 1 or H, D/2]`` float32."""
    (turn,) = rotations(rope, tokens, device, torch.float32)
    return turn.real.contiguous()[None], turn.imag.contiguous()[None]


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (2i, 2i+1) of x ``[1, N, H, D]``, as diffusers' Wan does."""
    cos, sin = table
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
    return out.flatten(-2).to(x.dtype)


def token_gate(o: Tensor, gate: GateWeights) -> Tensor:
    """Multiply attention rows o ``[..., D]`` by their gates, with weights in o's dtype."""
    x = F.layer_norm(o, o.shape[-1:], gate.norm_weight, gate.norm_bias, GATE_NORM_EPS)
    x = F.gelu(F.linear(x, gate.fc1_weight, gate.fc1_bias))
    return o * torch.sigmoid(F.linear(x, gate.fc2_weight, gate.fc2_bias))
