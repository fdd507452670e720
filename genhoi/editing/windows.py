"""The windows of a long clip, which are edited one after the other."""

from __future__ import annotations

from genhoi.conditioning.grid import STRIDES

__all__ = ["windows"]


def windows(frames: int, window: int) -> list[tuple[int, int]]:
    """Lay windows over a clip: the first and one-past-last frame of each.

    Each begins with the last frame of the one before.

    All are of one length, except the last, which may be shorter.

    Raises:
        ValueError: a length that is not 1 + 4 n with n at least 1.
    """
    for name, length in (("frames", frames), ("window", window)):
        if not STRIDES.is_clip(length):
            raise ValueError(f"{name}: got {length}, wanted 1 + 4 n: 5, 9, ..., 81, ...")
    step = window - 1
    return [(start, min(start + window, frames)) for start in range(0, frames - 1, step)]
