"""From cues on a few frames to a mask of every frame."""

from __future__ import annotations

from collections.abc import Sequence

from genhoi.masking.cues import Cue, check_cues
from genhoi.masking.engine import GraphCutEngine
from genhoi.masking.protocol import Engine, Progress, Track
from genhoi.media import Clip

__all__ = ["track_mask"]


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
    engine = engine or GraphCutEngine()
    check_cues(cues, clip)
    engine.check(cues)
    return engine(clip, cues, progress or (lambda done, total, what: None))
