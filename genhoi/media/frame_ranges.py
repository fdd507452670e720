"""Frame numbers, written for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

__all__ = ["frame_ranges"]


def frame_ranges(frames: Sequence[int], *, most: int | None = None) -> str:
    """Write ascending frame numbers as ranges: "7, 12-15".

    Args:
        frames: from 0.
        most: ranges to write; how many more there are is said. None: all.
    """
    runs = []
    for _, group in groupby(enumerate(frames), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}")
    more = "" if most is None or len(runs) <= most else f" and {len(runs) - most} more ranges"
    return ", ".join(runs[:most]) + more
