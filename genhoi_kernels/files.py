"""Files and folders that are whole or absent.

What is written lies beside its target under a temporary name, `.NAME.01234567.tmp.SUFFIX`, until it
is complete. The suffix stays last, because many writers choose a format by it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["remove_folder", "remove_unfinished", "whole_file", "whole_folder"]

_TEMPORARY = re.compile(r"\.(?P<stem>.*)\.[0-9a-f]{8}\.tmp(?P<suffix>\.[^.]*)?")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, to be written in the block; parent folders are made.

    What lies there replaces `path` when the block ends well. If the block raises (Ctrl-C included)
    it is removed, and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened by the block, so that the file has the permissions that others get.
    temporary = _temporary_name(path)
    try:
        yield temporary
        _install(temporary, path)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside `path`, to be filled in the block; otherwise as `whole_file`.

    A folder that `path` already is gets replaced as a whole, with all that it holds.
    """
    with whole_file(path) as temporary:
        temporary.mkdir()
        yield temporary


def remove_folder(path: Path) -> None:
    """Remove a folder, which nobody sees half removed under its own name."""
    aside = _temporary_name(path)
    os.replace(path, aside)
    shutil.rmtree(aside)


def remove_unfinished(folder: Path, *, target: Path | None = None) -> None:
    """Remove what killed programs left in a folder under temporary names.

    Args:
        folder: where to look; nothing is done where there is none.
        target: remove only what was to become this file or folder. None: all.
    """
    for path in folder.glob(".*.tmp*"):
        name = _TEMPORARY.fullmatch(path.name)
        if name is None:
            continue
        if target is None or (name["stem"], name["suffix"] or "") == (target.stem, target.suffix):
            _remove(path)


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


def _install(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # A folder cannot be replaced in one step: put the old one aside first.
    aside = _temporary_name(path)
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(aside, path)
        raise
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
