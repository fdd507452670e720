"""From cues on a few frames to a mask of every frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from genhoi.masking.cues import Cue, check_cues
from genhoi.media import Clip

__all__ = ["Engine", "Progress", "Track", "track_mask"]

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


def track_mask(
    clip: Clip,
    cues: Sequence[Cue],
    *,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Track:
    """Mask a thing in every frame of a clip.

    Example:
        >>> import torch
        >>> from genhoi.masking import Box, track_mask
        >>> from genhoi.media import Clip
        >>> frames = torch.zeros(3, 48, 64, 3, dtype=torch.uint8)
        >>> frames[:, 10:30, 20:44] = torch.tensor([200, 60, 20], dtype=torch.uint8)
        >>> found = track_mask(Clip(frames), [Box(18, 8, 28, 24)])
        >>> found.mask.shape, found.lost.tolist()
        (torch.Size([3, 48, 64]), [False, False, False])

    Args:
        clip: F frames.
        cues: where the thing is, in one frame or several.
        engine: what follows it; default: `GraphCutEngine()`, which needs no weights.
        progress: see `Progress`.

    Raises:
        TypeError, ValueError: cues that do not fit the clip (`check_cues`) or the engine.
    """
    if engine is None:
        from genhoi.masking.engine import GraphCutEngine

        engine = GraphCutEngine()
    check_cues(cues, clip)
    engine.check(cues)
    return engine(clip, cues, progress or (lambda done, total, what: None))
