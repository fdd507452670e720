"""Boxes, points and drawn masks as they are written on a command line: x,y,w,h@frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genhoi.masking.cues import Box, Cue, Drawn, Point, Text
from genhoi.media import Clip, count_frames, read_mask

__all__ = ["numbers", "parse_cues", "read_drawn"]


def parse_cues(
    boxes: Sequence[str], points: Sequence[str], not_points: Sequence[str], text: str | None
) -> list[Cue]:
    """Read cues from what stands behind their options.

    Raises:
        ValueError: one is not of its form; the message names the option.
    """
    cues: list[Cue] = []
    for value in boxes:
        (x, y, w, h), frame = _placed("--box", value, ("x", "y", "w", "h"))
        cues.append(Box(x, y, w, h, frame))
    for option, values in (("--point", points), ("--not-point", not_points)):
        for value in values:
            (x, y), frame = _placed(option, value, ("x", "y"))
            cues.append(Point(x, y, frame, inside=option == "--point"))
    if text is not None:
        cues.append(Text(text))
    return cues


def read_drawn(values: Sequence[str], clip: Clip) -> list[Drawn]:
    """Read drawn masks, each a picture of one frame, of the clip's size or shape.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ValueError: it is no picture, or has another shape than the clip.
    """
    drawn = []
    for value in values:
        path, frame = _from(value)
        if (count := count_frames(path)) != 1:
            raise ValueError(f"--from: {path} has {count} frames, want one picture")
        still = Clip(clip.frames[:1], clip.fps)
        drawn.append(Drawn(read_mask(path, like=still)[0], frame=frame))
    return drawn


def numbers(option: str, value: str, names: Sequence[str]) -> list[float]:
    """Read numbers with commas between them.

    Raises:
        ValueError: there are more, fewer, or something else; the message names the option.
    """
    parts = value.split(",")
    try:
        read = [float(part) for part in parts]
    except ValueError:
        read = []
    if len(read) != len(names) or not all(abs(number) < float("inf") for number in read):
        raise ValueError(f"{option}: got {value!r}, want {','.join(names)}: numbers of pixels")
    return read


def _placed(option: str, value: str, names: Sequence[str]) -> tuple[list[float], int]:
    text, at, frame = value.partition("@")
    if at and not frame.isdecimal():
        form = ",".join(names)
        raise ValueError(f"{option}: got {value!r}, want {form}@frame with a frame's number")
    return numbers(option, text, names), int(frame or 0)


def _from(value: str) -> tuple[Path, int]:
    text, _, frame = value.rpartition("@")
    if frame.isdecimal() and text and not Path(value).exists():
        return Path(text), int(frame)
    return Path(value), 0
