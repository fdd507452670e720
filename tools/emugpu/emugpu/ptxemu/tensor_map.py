"""Tensor maps, in a format of the emulator's own: what cuTensorMapEncodeTiled describes."""

import struct
from typing import Any

import numpy as np

from .memory import GlobalMemory
from .numerics import i8, u1

SWIZZLES = {"none": 0, "32B": 1, "64B": 2, "128B": 3}
# The 128-byte format (the real one is opaque): magic, address, dims, strides of dims 1..4, box, ...
FORMAT = struct.Struct("<6sBBQ5I4Q5I5BBBB")
MAGIC = b"EMUTM1"
# Where the fields of tensormap.replace begin in the unpacked format.
FIELDS = {
    **{"global_address": 3, "global_dim": 4, "global_stride": 9, "box_dim": 13},
    **{"element_stride": 18, "swizzle_mode": 23, "fill_mode": 24},
}
# Bytes of an element by CUtensorMapDataType.
ELEM_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 4, 9: 8, 10: 2, 11: 4, 12: 4}


def swizzle(addr: Any, bits: int) -> Any:
    """XOR address bits [4, 4 + bits) with bits [7, 7 + bits)."""
    return addr ^ (((addr >> 7) & ((1 << bits) - 1)) << 4)


class TensorMap:
    """What cuTensorMapEncodeTiled describes.

    dims and box are innermost first; strides are in bytes, of dims 1 to n - 1.
    """

    def __init__(
        self,
        array: Any,
        dims: tuple[int, ...],
        strides: tuple[int, ...],
        box: tuple[int, ...],
        elem_bytes: int,
        swizzle: str = "none",
        elem_strides: tuple[int, ...] | None = None,
        oob: str = "zero",
    ) -> None:
        self.array, self.dims, self.box, self.size = array, tuple(dims), tuple(box), elem_bytes
        self.strides = (elem_bytes, *strides)
        self.swizzle, self.oob = SWIZZLES[swizzle], int(oob == "nan")
        self.elem_strides = tuple(elem_strides or (1,) * len(self.dims))
        self.address = 0
        self.check()

    def check(self) -> None:
        """Raise ValueError for what the hardware does not allow."""
        if len(self.strides) != len(self.dims) or len(self.box) != len(self.dims):
            raise ValueError("dims, box and strides disagree")
        if any(s % 16 for s in self.strides[1:]):
            raise ValueError("global strides must be multiples of 16 bytes")
        if any(not 1 <= b <= 256 for b in self.box) or self.box[0] * self.size % 16:
            raise ValueError(
                "box dimensions must be 1..256 and the inner one a multiple of 16 bytes"
            )
        if self.swizzle and self.box[0] * self.size > 16 << self.swizzle:
            raise ValueError("inner box dimension exceeds the swizzle span")
        if any(s != 1 for s in self.elem_strides):
            raise ValueError("element strides are not modelled")

    @classmethod
    def of(
        cls, x: Any, box: tuple[int, ...], swizzle: str = "none", oob: str = "zero"
    ) -> "TensorMap":
        """A row-major array or tensor; box given outermost first, like x.shape."""
        size = x.element_size() if hasattr(x, "element_size") else x.itemsize
        st = [s * size for s in x.stride()] if hasattr(x, "element_size") else list(x.strides)
        return cls(x, tuple(x.shape)[::-1], st[::-1][1:], tuple(box)[::-1], size, swizzle, oob=oob)

    def encode(self, memory: GlobalMemory, temporary: list[int]) -> bytes:
        """The 128 bytes of a kernel parameter; ``temporary`` takes the address if it is new."""
        before = memory.next
        a = memory.register(self.array)
        if a >= before:
            temporary.append(a)
        n = len(self.dims)

        def pad(values: tuple[int, ...], length: int, value: int) -> tuple[int, ...]:
            return (*values, *[value] * (length - len(values)))

        b = FORMAT.pack(
            MAGIC,
            n,
            self.size,
            a,
            *pad(self.dims, 5, 1),
            *pad(self.strides[1:], 4, 0),
            *pad(self.box, 5, 1),
            *pad(self.elem_strides, 5, 1),
            self.swizzle,
            self.oob,
            0,
        )
        return b + bytes(128 - len(b))

    @classmethod
    def decode(cls, raw: np.ndarray) -> "TensorMap | None":
        """The tensor map in 128 bytes, None if there is none."""
        fields = FORMAT.unpack(bytes(raw[: FORMAT.size]))
        if fields[0] != MAGIC:
            return None
        t = cls.__new__(cls)
        n, t.size, t.address = fields[1], fields[2], fields[3]
        t.dims, t.box = fields[4 : 4 + n], fields[13 : 13 + n]
        t.strides = (t.size, *fields[9 : 9 + n - 1])
        t.elem_strides, t.swizzle, t.oob = fields[18 : 18 + n], fields[23], fields[24]
        return t

    @staticmethod
    def replace(raw: np.ndarray, field: str, ordinal: int, val: int) -> None:
        """tensormap.replace on a 128-byte array. Raises KeyError for an unknown field."""
        fields = list(FORMAT.unpack(bytes(raw[: FORMAT.size])))
        if fields[0] != MAGIC:
            fields = [MAGIC, 1, 0, 0] + [1] * 5 + [0] * 4 + [1] * 5 + [1] * 5 + [0, 0, 0]
        if field == "elemtype":
            fields[2] = ELEM_BYTES[val]
        elif field == "rank":
            fields[1] = val + 1
        elif field not in ("interleave_layout", "swizzle_atomicity"):
            fields[FIELDS[field] + ordinal] = val
        b = FORMAT.pack(*fields)
        raw[: len(b)] = np.frombuffer(b, u1)

    @property
    def nbytes(self) -> int:
        """Bytes of a box."""
        return int(np.prod(self.box)) * self.size

    def elements(self, coords: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """(byte offsets, in-bounds mask) of the box at `coords`, in shared-memory order."""
        offset, ok = np.zeros((1,), i8), np.ones((1,), bool)
        for d in range(len(self.dims)):
            i = int(coords[d]) + np.arange(self.box[d], dtype=i8)
            o = (i >= 0) & (i < self.dims[d])
            offset = (offset[None, :] + (i * self.strides[d])[:, None]).reshape(-1)
            ok = (ok[None, :] & o[:, None]).reshape(-1)
        return offset, ok

    def smem(self, dst: int) -> np.ndarray:
        """The shared addresses of a box at ``dst``, swizzled."""
        a = dst + np.arange(int(np.prod(self.box)), dtype=i8) * self.size
        return swizzle(a, self.swizzle) if self.swizzle else a
