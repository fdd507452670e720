"""Device memory as the emulator sees it."""

import ctypes
from typing import Any

import numpy as np

from . import libraries
from .errors import EmulatedGPUError
from .ptxemu.memory import Buffer, GlobalMemory

BLOCK = np.dtype(
    [("base", "<u8"), ("size", "<u8"), ("serial", "<u8"), ("freed", "<u8"), ("device", "<u8")]
)
# The range that csrc/core.c reserves.
ARENA, ARENA_END = 1 << 44, 2 << 44


def raw(address: int, size: int) -> np.ndarray:
    """The bytes at an address of this process."""
    if not size:
        return np.empty(0, np.uint8)
    array = np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)
    array.flags.writeable = True
    return array


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged


class DeviceMemory(GlobalMemory):
    """Every live cudaMalloc block at its own address.

    Pointers need no translation, also inside structs and device memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generation, self.table = -1, np.empty(0, BLOCK)
        self.seen: dict[int, Buffer] = {}
        self.device = 0
        self.lists: dict[int, tuple[Any, ...]] = {}
        self._bases = self._ends = np.zeros(1, np.int64)

    def _set_buffers(self, buffers: list[Buffer]) -> None:
        self.buffers, self.bases = buffers, [buffer.base for buffer in buffers]
        self._bases = np.array(self.bases or [0], np.int64)
        self._ends = np.array([buffer.end for buffer in buffers] or [0], np.int64)

    def _get_buffers(self) -> tuple[Any, ...]:
        return self.bases, self.buffers, self._bases, self._ends

    def refresh(self, device: int = 0) -> None:
        """Look at the memory of one device."""
        generation = libraries.core.emuGeneration()
        self.device = device
        if generation == self.generation and device in self.lists:
            self.restore(self.lists[device])
            return
        if generation != self.generation:
            self.lists = {}
        self.table = np.empty(libraries.core.emuBlocks(None, 0), BLOCK)
        libraries.core.emuBlocks(self.table.ctypes.data_as(ctypes.c_void_p), len(self.table))
        self.generation = generation
        live = self.table[self.table["freed"] == 0]
        if len(self.seen) > 2 * len(live) + 64:
            keep = set(live["base"].tolist())
            self.seen = {base: buffer for base, buffer in self.seen.items() if base in keep}
        buffers = []
        for base, size, serial, _, _ in live[live["device"] == device].tolist():
            if base not in self.seen:
                self.seen[base] = Buffer(base, raw(base, size), f"allocation {serial}", None)
            buffers.append(self.seen[base])
        self._set_buffers(buffers)
        self.lists[device] = self._get_buffers()

    def register(self, x: Any, name: str | None = None) -> int:
        """Module variables: a new block of device memory with the bytes of an array.

        Raises EmulatedGPUError if there is no memory left.
        """
        size = int(x.nbytes)
        address = libraries.core.emuMalloc(max(size, 1))
        if not address:
            raise EmulatedGPUError("out of device memory")
        raw(address, size)[:] = x.view(np.uint8).reshape(-1)
        return address

    def release(self, bases: set[int]) -> None:
        """Nothing: a launch registers no memory here."""

    def restrict(self, extents: list[tuple[int, int]]) -> tuple[Any, ...]:
        """Cut the blocks that hold ``extents`` down to them (merged); returns what to restore."""
        saved = self._get_buffers()
        groups: dict[int, list[tuple[int, int]]] = {}
        for address, size in extents:
            buffer = self.find(address)
            if size and buffer is not None and address < buffer.end:
                groups.setdefault(buffer.base, []).append((address, address + size))
        if not groups:
            return saved
        buffers = []
        for buffer in self.buffers:
            for low, high in _merged(groups.get(buffer.base, [(buffer.base, buffer.end)])):
                if (low, high) == (buffer.base, buffer.end):
                    buffers.append(buffer)
                else:
                    name = f"{buffer.name} [tensor view]"
                    buffers.append(Buffer(low, raw(low, high - low), name, None))
        self._set_buffers(buffers)
        return saved

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo ``restrict``."""
        self.bases, self.buffers, self._bases, self._ends = saved

    def nearest(self, addr: int) -> str:
        """What lies at or around an address, also if it was freed or is of another device."""
        i = int(np.searchsorted(self.table["base"], addr, "right")) - 1
        if i >= 0:
            base, size, serial, freed, device = self.table[i].tolist()
            if freed and addr < base + max(1, size):
                return f"allocation {serial} of {size} bytes, which has been freed"
            if device != self.device and addr < base + size:
                return (
                    f"allocation {serial} of device {device}, but the kernel runs on device "
                    f"{self.device}: missing device guard?"
                )
        if not ARENA <= addr < ARENA_END:
            return "not a device address" + (" (host memory?)" if addr >> 40 > 3 else "")
        return super().nearest(addr)

    def plan(self, addresses: np.ndarray, nbytes: int) -> tuple[Any, Any]:
        """As GlobalMemory.plan, with the arrays of bounds kept between launches."""
        low, high = int(addresses.min()), int(addresses.max())
        buffer = self.find(low)
        if buffer is not None and low >= buffer.base and high + nbytes <= buffer.end:
            return [(buffer, None, addresses - np.int64(buffer.base))], None
        if not self.buffers:
            return None, np.ones(addresses.shape, bool)
        which = np.searchsorted(self._bases, addresses, "right") - 1
        bad = (which < 0) | (addresses + nbytes > self._ends[np.maximum(which, 0)])
        if bad.any():
            return None, bad
        parts = []
        for k in np.unique(which):
            picked = np.flatnonzero(which == k)
            buffer = self.buffers[k]
            parts.append((buffer, picked, addresses[picked] - np.int64(buffer.base)))
        return parts, None
