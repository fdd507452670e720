"""Locks between programs. They are the operating system's, and end with a program that is killed.

On a file system without locks there are none, and two programs are the user's care.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["alone_in", "one_after_the_other"]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other program trains in a run's folder within the block.

    Raises:
        FileExistsError: another program does.
    """
    with ExitStack() as held:
        try:
            held.enter_context(_held(folder / ".lock", timeout=0))
        except Timeout:
            raise FileExistsError(
                f"out: another program is training in {folder}; wait for it, or name another folder"
            ) from None
        yield


@contextmanager
def one_after_the_other(target: Path) -> Iterator[None]:
    """Of programs that want to make the same folder, the others wait for the first."""
    with _held(target.parent / f".{target.name}.lock", timeout=-1):
        yield


@contextmanager
def _held(path: Path, *, timeout: float) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except NotImplementedError:  # how filelock says that the file system has no locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
