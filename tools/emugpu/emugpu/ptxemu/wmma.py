"""wmma: loads, stores and products of fragments."""

from typing import Any

import numpy as np

from . import warp
from .numerics import NUMPY_TYPE, UNSIGNED, i4, i8
from .syntax import BITS

Lanes = np.ndarray | None


class WarpMatrices:
    """wmma: loads, stores and products of fragments."""

    def wmma_addresses(
        self,
        active: Lanes,
        a: Any,
        offset: int,
        ld: Any,
        rows: int,
        cols: int,
        layout: str,
        nbytes: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(addresses, lanes) of the elements of a fragment."""
        a = self.address(active, a, offset)[::32]
        ld = np.broadcast_to(
            np.asarray(ld).astype(i8), (self.nlanes if active is None else active.size,)
        )[::32]
        i, j = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
        elements = (i * ld[:, None, None] + j) if layout == "row" else (j * ld[:, None, None] + i)
        lanes = self.lanes_of(active)[::32]
        return (a[:, None] + elements.reshape(len(a), -1) * nbytes).reshape(-1), np.repeat(
            lanes, rows * cols
        )

    def wmma_load(
        self,
        pc: int,
        active: Lanes,
        space: str | None,
        a: Any,
        offset: int,
        ld: Any,
        rows: int,
        cols: int,
        layout: str,
        dtype: str,
        count: Any,
    ) -> list[np.ndarray]:
        """wmma.load."""
        nbytes = BITS[dtype] // 8
        A, lanes = self.wmma_addresses(active, a, offset, ld, rows, cols, layout, nbytes)
        v = self.load_at(pc, lanes, space, A, nbytes, 1)[0]
        return warp.wmma_pack(v.reshape(-1, rows * cols), dtype, count)

    def wmma_store(
        self,
        pc: int,
        active: Lanes,
        space: str | None,
        a: Any,
        offset: int,
        ld: Any,
        rows: int,
        cols: int,
        layout: str,
        dtype: str,
        regs: list[np.ndarray],
    ) -> None:
        """wmma.store."""
        nbytes = BITS[dtype] // 8
        A, lanes = self.wmma_addresses(active, a, offset, ld, rows, cols, layout, nbytes)
        self.store_at(
            pc, lanes, space, A, nbytes, [warp.wmma_unpack(regs, dtype, rows * cols).reshape(-1)]
        )

    def wmma_mma(
        self,
        a: Any,
        b: Any,
        c: Any,
        m: Any,
        n: Any,
        k: int,
        at: str,
        bt: str,
        ct: str,
        dt: str,
        count: Any,
    ) -> list[np.ndarray]:
        """wmma.mma."""
        A = warp.decode(warp.wmma_unpack(a, at, m * k), at).reshape(-1, m, k)
        B = warp.decode(warp.wmma_unpack(b, bt, k * n), bt).reshape(-1, k, n)
        C = warp.decode(warp.wmma_unpack(c, ct, m * n), ct).reshape(-1, m, n)
        D = (np.matmul(A, B) + C) if ct != "s32" else (np.matmul(A, B).astype(i4) + C)
        D = D.astype(NUMPY_TYPE[dt]).reshape(-1, m * n)
        return warp.wmma_pack(D.view(UNSIGNED[BITS[dt]]), dt, count)
