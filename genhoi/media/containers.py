"""Opening files with PyAV, for pictures and for sound."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from genhoi.extras import needed_for

__all__ = ["open_video", "pyav"]


def pyav() -> ModuleType:
    """Import PyAV where a video is: models and still images do without it."""
    with needed_for("reading and writing videos"):
        import av
    return av


def open_video(path: Path) -> Any:
    """Open a file that holds a video stream.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    av = pyav()
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: not a video that can be read ({error})") from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path}: holds no video stream")
    return container
