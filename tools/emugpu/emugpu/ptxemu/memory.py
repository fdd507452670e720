"""Global memory: registered buffers at 64-bit addresses, and the windows of the other spaces."""

import bisect
import ctypes
from typing import Any

import numpy as np

from .numerics import UNSIGNED, i8, u1

SHARED_WINDOW = 0x0100_0000_0000
LOCAL_WINDOW = 0x0200_0000_0000
PARAM_WINDOW = 0x0300_0000_0000
GLOBAL_BASE = 0x7000_0000_0000


class Buffer:
    """Bytes at an address: a view of an array or tensor, which ``keep`` holds alive."""

    def __init__(self, base: int, raw: np.ndarray, name: str, keep: Any) -> None:
        self.base, self.raw, self.name, self.keep = base, raw, name, keep
        self.size = raw.nbytes
        self.end = base + self.size
        self._views = {}

    def view(self, nbytes: int) -> np.ndarray:
        """The buffer as unsigned integers of ``nbytes`` each."""
        v = self._views.get(nbytes)
        if v is None:
            v = self._views[nbytes] = self.raw[: self.size // nbytes * nbytes].view(
                UNSIGNED[nbytes * 8]
            )
        return v

    def __repr__(self) -> str:
        return f"{self.name}[{self.base:#x}..{self.end:#x}) {self.size} bytes"


def _extent(x: Any) -> tuple[np.ndarray, int]:
    """(flat uint8 view over the bytes an array or tensor spans, misalignment to reproduce)."""
    if hasattr(x, "data_ptr"):  # torch CPU tensor
        if x.device.type != "cpu":
            raise TypeError("only CPU tensors")
        item, lo, hi = x.element_size(), 0, 0
        for n, s in zip(x.shape, x.stride(), strict=True):
            if n == 0:
                return np.empty(0, u1), 0
            lo, hi = lo + min(0, (n - 1) * s), hi + max(0, (n - 1) * s)
        start, nbytes = x.data_ptr() + lo * item, (hi - lo + 1) * item
        misalignment = (x.storage_offset() + lo) * item % 256
    else:
        if x.size == 0:
            return np.empty(0, u1), 0
        a, b = np.lib.array_utils.byte_bounds(x)
        start, nbytes = a, b - a
        own = x
        while isinstance(own.base, np.ndarray):
            own = own.base
        misalignment = (a - np.lib.array_utils.byte_bounds(own)[0]) % 256
    raw = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(start), u1)
    raw.flags.writeable = True
    return raw, misalignment


class GlobalMemory:
    """A flat 64-bit address space: arrays are registered in place, with gaps in between."""

    def __init__(self) -> None:
        self.buffers, self.bases, self.next = [], [], GLOBAL_BASE
        self.known = {}

    def register(self, x: Any, name: str | None = None) -> int:
        """The address of an array or a CPU tensor; the same bytes keep their address.

        Raises TypeError for tensors of other devices.
        """
        raw, misalignment = _extent(x)
        key = (raw.ctypes.data, raw.nbytes)
        if key in self.known:
            return self.known[key].base
        base = self.next + misalignment
        b = Buffer(base, raw, name or f"buf{len(self.buffers)}", x)
        self.next = (base + raw.nbytes + 0x10000 + 0xFFF) & ~0xFFF
        self.buffers.append(b)
        self.bases.append(base)
        self.known[key] = b
        return base

    def release(self, bases: set[int]) -> None:
        """Forget the buffers at these addresses."""
        keep = [b for b in self.buffers if b.base not in bases]
        self.buffers, self.bases = keep, [b.base for b in keep]
        self.known = {k: b for k, b in self.known.items() if b.base not in bases}

    def find(self, addr: int) -> Buffer | None:
        """The last buffer that begins at or before an address."""
        i = bisect.bisect_right(self.bases, addr) - 1
        return self.buffers[i] if i >= 0 else None

    def nearest(self, addr: int) -> str:
        """The buffers around an address, for error messages."""
        i = bisect.bisect_right(self.bases, addr) - 1
        c = self.buffers[max(0, i) : i + 2]
        out = []
        for b in c:
            out.append(f"{b!r} (offset {addr - b.base:+d})")
        return "; ".join(out) or "no buffers registered"

    def plan(
        self, addresses: np.ndarray, nbytes: int
    ) -> tuple[list[tuple[Buffer, np.ndarray | None, np.ndarray]] | None, np.ndarray | None]:
        """Split accesses by buffer: [(buffer, selector or None, byte offsets)], None.

        Where one is outside of every buffer: None and the mask of those.
        """
        lo, hi = int(addresses.min()), int(addresses.max())
        b = self.find(lo)
        if b is not None and hi + nbytes <= b.end and lo >= b.base:
            return [(b, None, addresses - i8(b.base))], None
        which = np.searchsorted(np.array(self.bases, i8), addresses, "right") - 1
        ends = np.array([b.end for b in self.buffers] or [0], i8)
        bad = (which < 0) | (addresses + nbytes > ends[np.maximum(which, 0)])
        if bad.any():
            return None, bad
        return [
            (self.buffers[k], sel, addresses[sel] - i8(self.buffers[k].base))
            for k in np.unique(which)
            for sel in [np.flatnonzero(which == k)]
        ], None
