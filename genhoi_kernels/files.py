"""Files that are never half written."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, to be written in the block; folders are made.

    What lies there replaces `path` when the block ends well. If the block raises (Ctrl-C included)
    it is removed, and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by the block, so that the file has the permissions that others get.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
