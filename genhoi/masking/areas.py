"""How large a mask is in every frame, and how far to trust it there: a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from genhoi.masking.cues import Cue, Text
from genhoi.masking.protocol import Track
from genhoi.media import atomic_path

__all__ = ["grown_frames", "write_areas"]

_TWICE = 2.0
_COLUMNS = ("frame", "pixels", "share", "tracked_pixels", "confidence", "state")


def grown_frames(track: Track, cues: Sequence[Cue]) -> list[int]:
    """List frames whose mask is twice as large as in any frame with a cue, or larger.

    A thing that comes nearer grows too, but so does a mask that runs out into what surrounds it,
    which its confidence need not show.
    """
    known = [cue.frame for cue in cues if not isinstance(cue, Text)]
    areas = track.mask.flatten(1).sum(1)
    if not known or not (largest := int(areas[known].max())):
        return []
    return (areas >= _TWICE * largest).nonzero()[:, 0].tolist()


def write_areas(
    path: Path, mask: Tensor, track: Track, cues: Sequence[Cue], *, overwrite: bool = False
) -> Path:
    """Write a CSV with a row for each frame.

    Its columns: the frame; pixels and share (0 to 1) of the mask as written; pixels before it was
    grown or boxed; the track's confidence; and "cue", "tracked" or "lost".

    Args:
        path: the target.
        mask: bool [F, H, W], as written.
        track: that it was made of.
        cues: that the track began with.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the target exists and `overwrite` is False.
    """
    given = {cue.frame for cue in cues if not isinstance(cue, Text)}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for frame in range(len(mask)):
        pixels = int(mask[frame].sum())
        state = "lost" if track.lost[frame] else "cue" if frame in given else "tracked"
        share = f"{pixels / mask[frame].numel():.5f}"
        tracked = int(track.mask[frame].sum())
        confidence = f"{float(track.confidence[frame]):.3f}"
        table.writerow([frame, pixels, share, tracked, confidence, state])
    with atomic_path(path, overwrite=overwrite) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return path
