"""Colours as people tell them apart."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lab", "luma"]

_LUMA = (0.299, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Weigh red, green and blue of uint8 [..., 3], as video does; float64 [...], 0 to 255."""
    return image.double() @ torch.tensor(_LUMA, dtype=torch.float64, device=image.device)


def lab(pixels: Tensor) -> Tensor:
    """Convert sRGB uint8 [P, 3] into CIELAB, white D65, float64 [P, 3]."""
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
