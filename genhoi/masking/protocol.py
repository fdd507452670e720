"""What a tracker of things gives back, and what it has to offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from genhoi.masking.cues import Cue
from genhoi.media import Clip

__all__ = ["Engine", "Progress", "Track"]

Progress = Callable[[int, int, str], object]
"""Called with what is done, of how much, and what is being done."""


@dataclass(frozen=True)
class Track:
    """A mask of every frame, and how far to trust it.

    Args:
        mask: bool [F, H, W]; empty where the thing was lost.
        confidence: float32 [F], 0 to 1. Engines measure it differently: compare frames, not
            engines.
        lost: bool [F], frames in which the thing was not found.
    """

    mask: Tensor
    confidence: Tensor
    lost: Tensor


class Engine(Protocol):
    """What follows a thing through a clip."""

    def check(self, cues: Sequence[Cue]) -> None:
        """Raise ValueError with one sentence for a cue that this engine does not know."""

    def __call__(self, clip: Clip, cues: Sequence[Cue], progress: Progress) -> Track:
        """Follow what the cues, which were checked, point at."""
