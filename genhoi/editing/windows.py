"""The windows of a long clip, which are edited one after the other."""

from __future__ import annotations

from genhoi.conditioning.grid import STRIDES

__all__ = ["windows"]


def windows(frames: int, window: int, overlap: int = 1) -> list[tuple[int, int]]:
    """Lay windows over a clip: the first and one-past-last frame of each.

    There are as few as can be, of one length as nearly as can be: they differ by 4
    frames at most. A last window of a few frames, which a base has never seen, would
    be painted worse.

    Args:
        frames: of the clip.
        window: frames of a window.
        overlap: frames that each has in common with the one before.

    Raises:
        ValueError: a length that is not 1 + 4 n with n at least 1; an overlap that is not 1 + 4 n,
            or more than half a window.
    """
    for name, length in (("frames", frames), ("window", window)):
        if not STRIDES.is_clip(length):
            raise ValueError(f"{name}: got {length}, wanted 1 + 4 n: 5, 9, ..., 81, ...")
    if not STRIDES.is_whole(overlap) or 2 * overlap > window + 1:
        raise ValueError(
            f"overlap: got {overlap}, wanted 1 + 4 n, at most half of the window of {window}"
        )
    time = STRIDES.time
    # In latent frames: what the windows make in all, the first one's given frames included.
    todo, most = (frames - overlap) // time, (window - overlap) // time
    count = max(1, -(-todo // most))
    steps = [todo // count + (i < todo % count) for i in range(count)]
    ends = [overlap + time * sum(steps[: i + 1]) for i in range(count)]
    return [(end - overlap - time * step, end) for end, step in zip(ends, steps, strict=True)]
