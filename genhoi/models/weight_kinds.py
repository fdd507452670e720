"""What kind of file holds weights, told by its first bytes: a name may say anything, or nothing."""

from __future__ import annotations

import json
import zipfile
from codecs import getincrementaldecoder
from enum import Enum
from pathlib import Path

__all__ = ["Kind", "describe", "kind_of"]

_HEAD = 512
_LARGEST_HEADER = 100_000_000  # of safetensors' own reader
# torch.save's magic number, as pickle writes it.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LFS = b"version https://git-lfs.github.com/spec"
_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<error")
# First bytes -> what people call such a file.
_OTHERS = (
    (b"GGUF", "a GGUF file"),
    (b"\x80", "a pickle that torch.save did not write"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"%PDF", "a PDF file"),
)


class Kind(Enum):
    """How a file of weights is read."""

    SAFETENSORS = "safetensors"
    TORCH = "torch.save's zip"
    LEGACY = "torch.save's form before torch 1.6"
    POINTER = "Git LFS"
    OTHER = "other"


def kind_of(path: Path) -> Kind:
    """Recognise a file by what it holds; only its first bytes and a zip's list are read."""
    head = _head(path)
    if head.startswith(_LFS):
        return Kind.POINTER
    if head.startswith(_LEGACY):
        return Kind.LEGACY
    if _safetensors_length(path, head) == path.stat().st_size:
        return Kind.SAFETENSORS
    if head.startswith(b"PK\x03\x04") and _is_torch_zip(path):
        return Kind.TORCH
    return Kind.OTHER


def describe(path: Path) -> str:
    """Say in a few words what a file is that holds no weights, and what to do about it."""
    head, size = _head(path), path.stat().st_size
    begin = head.lstrip().lower()
    wanted = _safetensors_length(path, head)
    if not head:
        return "an empty file"
    if head.startswith(_LFS):
        return "a Git LFS pointer, whose content `git lfs pull` or `hf download` fetches"
    if wanted is not None:
        return f"a .safetensors file of {size} bytes where its header wants {wanted}; fetch it anew"
    if head.startswith(b"PK\x03\x04"):
        if zipfile.is_zipfile(path):
            return "a zip archive that torch.save did not write"
        return "a zip archive that was cut off; fetch it anew"
    if begin.startswith(_PAGE):
        return "an HTML page, as a download that failed leaves"
    if begin[:1] in (b"{", b"["):
        return "a JSON file"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it"
    for first, name in _OTHERS:
        if head.startswith(first):
            return name
    return "a text file" if _is_text(head) else f"a file that begins with {head[:8].hex(' ')}"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _safetensors_length(path: Path, head: bytes) -> int | None:
    """Compute how long a .safetensors file should be; None if it is none."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= length <= min(_LARGEST_HEADER, path.stat().st_size - 8):
        return None
    with path.open("rb") as file:
        file.seek(8)
        text = file.read(length)
    try:
        tensors = json.loads(text)
        ends = [x["data_offsets"][1] for n, x in tensors.items() if n != "__metadata__"]
        return 8 + length + int(max(ends, default=0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def _is_torch_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _is_text(head: bytes) -> bool:
    try:
        # In parts, for the last character may have been cut in two.
        return "\0" not in getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
