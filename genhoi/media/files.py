"""What this package does with every kind of file: write it whole, hash it, lock it.

Every write goes to a temporary name in the target's own folder and takes the final name only when
it is complete, so an interrupted program leaves nothing half-written.

Locks are the operating system's, and end with a program that is killed. On a file system without
locks there are none, and two programs are the user's care.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from genhoi.extras import needed_for
from genhoi_kernels.files import whole_file

__all__ = [
    "IMAGE_SUFFIXES",
    "PathLike",
    "alone_in",
    "atomic_path",
    "check_space",
    "check_target",
    "digest",
    "existing",
    "one_after_the_other",
    "size_of",
]

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


def check_target(path: PathLike, *, overwrite: bool = False) -> Path:
    """Return `path` if it may be written, so that a long computation does not end in a refusal.

    Raises:
        FileExistsError: it exists and `overwrite` is False, or it is a folder that holds more than
            images.
        NotADirectoryError: one of its parents is a file.
    """
    path = Path(path)
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise NotADirectoryError(f"{path}: {parent} is a file, want a folder")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise FileExistsError(f"{path} exists already; overwriting it has to be asked for")
    if path.is_dir():
        other = next((p for p in path.iterdir() if p.suffix.lower() not in IMAGE_SUFFIXES), None)
        if other is not None:
            raise FileExistsError(
                f"{path} is a folder that holds {other.name}, which is not an image: not replaced"
            )
    return path


@contextmanager
def atomic_path(path: PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path`, to be written in the block.

    What lies there becomes `path` when the block ends well. If the block raises (Ctrl-C included)
    it is removed and `path` stays as it was.

    Raises:
        FileExistsError: the target exists and `overwrite` is False; see `check_target`.
    """
    path = check_target(path, overwrite=overwrite)
    with whole_file(path) as temporary:
        yield temporary
        check_target(path, overwrite=overwrite)


def digest(path: Path) -> str:
    """Hash a file, or all files of a folder in order, by SHA-256; in hexadecimal."""
    whole = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def existing(path: PathLike, what: str) -> Path:
    """Return `path`.

    Raises:
        FileNotFoundError: there is nothing there; the message calls it `what`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{what}: there is no file or folder {path}")
    return path


def size_of(folder: Path) -> int:
    """Count the bytes of all files in a folder and below; links count as what they lead to."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError unless so many bytes are free where a folder is or would be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OSError(
            f"{folder}: got {free / 1e9:.3g} GB of free space, wanted {needed / 1e9:.3g} GB"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every other program from training in a run's folder within the block.

    Raises:
        FileExistsError: another program trains there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(folder / ".lock", wait=False))
        except BlockingIOError:
            raise FileExistsError(
                f"out: another program is training in {folder}; wait for it, or name another folder"
            ) from None
        yield


@contextmanager
def one_after_the_other(target: Path) -> Iterator[None]:
    """Let programs that want to make the same file or folder wait for the first of them."""
    with _locked(target.parent / f".{target.name}.lock", wait=True):
        yield


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of this name; BlockingIOError if another program does and `wait` is False."""
    with needed_for("sharing files between programs"):  # clips and images do without it
        from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise BlockingIOError(f"{path} is locked") from error
    except NotImplementedError:  # how filelock says that the file system has no locks
        yield
        return
    try:
        yield
    finally:
        lock.release()
