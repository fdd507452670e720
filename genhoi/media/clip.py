"""What a clip is: frames and their rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["DEFAULT_FPS", "Clip"]

DEFAULT_FPS = Fraction(24)


@dataclass(frozen=True, repr=False)
class Clip:
    """Frames of a video and their rate.

    Args:
        frames: uint8 [F, H, W, 3], RGB, at least one frame.
        fps: frames a second; kept as an exact `Fraction`.

    Raises:
        TypeError: `frames` is not a uint8 tensor.
        ValueError: `frames` has another shape or is empty, or `fps` is not positive.

    Example:
        >>> import genhoi, torch
        >>> genhoi.Clip(torch.zeros(9, 32, 48, 3, dtype=torch.uint8), fps=24)
        Clip(9 frames, 48x32, 24 fps)
    """

    frames: Tensor
    fps: Fraction | float = DEFAULT_FPS

    def __post_init__(self) -> None:
        """Check the frames and make the rate exact."""
        if not isinstance(self.frames, Tensor) or self.frames.dtype != torch.uint8:
            got = getattr(self.frames, "dtype", type(self.frames).__name__)
            raise TypeError(f"frames: got {got}, want a uint8 tensor [F, H, W, 3]")
        shape = tuple(self.frames.shape)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"frames: got shape {shape}, want [F, H, W, 3] with no size zero")
        object.__setattr__(self, "fps", _rate(self.fps))

    def __repr__(self) -> str:
        """Say how long and large it is, not its pixels."""
        count = f"{self.num_frames} frame{'s' if self.num_frames > 1 else ''}"
        return f"Clip({count}, {self.width}x{self.height}, {float(self.fps):.6g} fps)"

    @property
    def num_frames(self) -> int:
        """Count the frames, F."""
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """Count the rows of a frame, in pixels."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """Count the columns of a frame, in pixels."""
        return self.frames.shape[2]


def _rate(fps: Fraction | float) -> Fraction:
    finite = math.isfinite(fps)
    rate = Fraction(fps).limit_denominator(1001) if finite else Fraction(0)
    if rate <= 0:
        raise ValueError(f"fps: got {fps}, want a positive number of frames a second")
    return rate
