"""Bulk (tensor) copies: TMA."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from emugpu.ptxemu.errors import (
    EmuError,
    MisalignedError,
    OutOfBoundsError,
)
from emugpu.ptxemu.memory import PARAM_WINDOW, SHARED_WINDOW, Buffer
from emugpu.ptxemu.numerics import POISON32, UNSIGNED, i4, i8
from emugpu.ptxemu.tensor_map import TensorMap

Lanes = np.ndarray | None
# NaN, or the like, by the size of an element.
OUTSIDE_NAN = {1: 0x7F, 2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0}


class BulkCopies:
    """Bulk (tensor) copies: TMA."""

    def tensor_map_bytes(self, pc: int, lane: int, addr: int) -> np.ndarray:
        """A writable view of the 128 bytes at a generic address."""
        k = int(addr) >> 40
        if k == 3:
            o = int(addr) - PARAM_WINDOW
            return self.params[o : o + 128]
        if k <= 1:
            a = np.array([int(addr) - k * SHARED_WINDOW], i8)
            tracking, self.tracking = self.tracking, False
            g = int(self.shared_index(pc, np.array([lane]), a, 128, True)[0])
            self.tracking = tracking
            if self.shared.init is not None:
                self.shared.init[g : g + 128] = True
            return self.shared.flat[g : g + 128]
        b, _, o = self.global_plan(
            pc, np.array([lane]), np.array([int(addr)], i8), 128, "tensor map access"
        )[0]
        return b.raw[int(o[0]) : int(o[0]) + 128]

    def tensor_map_at(self, pc: int, lane: int, addr: int) -> TensorMap:
        """The tensor map at an address. Raises EmuError if there is none, or a bad one."""
        t = TensorMap.decode(self.tensor_map_bytes(pc, lane, addr))
        if t is None:
            where = self.thread_name(int(lane))
            raise EmuError(
                f"{self.name}: no tensor map at {int(addr):#x}, {where}; {self.text(pc)}"
            )
        try:
            t.check()
        except ValueError as error:
            raise EmuError(f"{self.name}: bad tensor map: {error}; {self.text(pc)}") from error
        return t

    def tensor_map_memory(
        self, pc: int, lane: int, tensor_map: Any, offset: int, ok: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(element view of the buffer, element indices of the in-bounds part)."""
        b = self.memory.find(tensor_map.address)
        o = offset[ok] + (tensor_map.address - (b.base if b else 0))
        if b is None or (o.size and (int(o.min()) < 0 or int(o.max()) + tensor_map.size > b.size)):
            raise OutOfBoundsError(
                f"kernel {self.name}: tensor map reaches outside its buffer "
                f"[{self.memory.nearest(tensor_map.address)}], {self.thread_name(int(lane))}; "
                f"{self.text(pc)}"
            )
        return b.view(tensor_map.size), o // tensor_map.size

    def tensor_map_replace(
        self,
        pc: int,
        active: Lanes,
        a: Any,
        offset: int,
        field: str,
        ordinal: int,
        val: Any,
    ) -> None:
        """tensormap.replace."""
        base = self.lanes_of(active)
        a = self.address(active, a, offset)
        val = np.broadcast_to(np.asarray(val), base.shape)
        for j, lane in enumerate(base):
            TensorMap.replace(self.tensor_map_bytes(pc, lane, a[j]), field, ordinal, int(val[j]))

    def tensor_map_copy(
        self, pc: int, active: Lanes, to: Any, to_offset: int, source: Any, source_offset: int
    ) -> None:
        """tensormap.cp_fenceproxy (.sync.aligned): one copy per warp."""
        base = self.lanes_of(active)
        d, s = self.address(active, to, to_offset), self.address(active, source, source_offset)
        for j in np.flatnonzero(np.r_[True, base[1:] // 32 != base[:-1] // 32]):
            self.tensor_map_bytes(pc, base[j], d[j])[:] = self.tensor_map_bytes(pc, base[j], s[j])

    def write_shared(
        self,
        pc: int,
        lane: int,
        addrs: np.ndarray,
        size: Any,
        vals: np.ndarray | None,
        track: bool = True,
    ) -> None:
        """Write elements at shared offsets of the lane's CTA; vals None poisons."""
        active = np.full(addrs.size, lane)
        tracking, self.tracking = self.tracking, self.tracking and track
        indices = self.shared_index(pc, active, addrs, size, True)
        self.tracking = tracking
        if self.shared.race:
            g = indices // self.shared.GRANULE
            self.shared.unfenced[g] = self.shared.unfenced[
                g + max(1, size // self.shared.GRANULE) - 1
            ] = False
        poison = np.uint64(POISON32 << 32 | POISON32).tobytes()
        if self.shared.init is not None:
            self.shared.init[indices[:, None] + np.arange(size)] = vals is not None
        if vals is None:
            vals = np.frombuffer(poison, UNSIGNED[size * 8])[0]
        self.shared.views[size][indices // size] = vals

    def async_index(self, pc: int, lane: int, a: Any, size: Any) -> np.ndarray:
        """Byte indices that the async proxy reads."""
        tracking, self.tracking = self.tracking, False
        indices = self.shared_index(pc, np.full(a.size, lane), a, size, False)
        self.tracking = tracking
        if tracking:
            self.shared.async_read(
                self,
                pc,
                indices,
                size,
                np.full(a.size, self.cta_of[lane]),
                np.full(a.size, self.warp_of[lane]),
            )
        return indices

    def proxy_fence(self, active: Lanes) -> None:
        """fence.proxy.async."""
        if self.shared.race:
            base = self.lanes_of(active)
            for k in np.unique(self.cta_of[base] * 64 + self.warp_of[base]):
                self.shared.proxy_fence(int(k) // 64, int(k) % 64)

    def complete_bytes(
        self, pc: int, lane: int, mkey: tuple[int, int], nbytes: int, fn: Callable[[], None]
    ) -> None:
        """Bytes of a copy have arrived; ``fn`` writes them once somebody has waited."""
        b = self.mbarrier_at(pc, lane, mkey)
        b.queue.append((b.phase, fn))
        if self.shared.race:
            w = int(self.warp_of[lane])
            np.maximum(b.clock, self.shared.clocks[mkey[0], w], out=b.clock)
            self.shared.bump(mkey[0], w)
        b.tx -= nbytes
        self.mbarrier_complete(b)

    def tma_load(
        self,
        pc: int,
        active: Lanes,
        dst: Any,
        to_offset: int,
        tensor_map: Any,
        map_offset: int,
        coords: list[Any],
        mb: Any,
        barrier_offset: int,
    ) -> None:
        """cp.async.bulk.tensor from global memory.

        Raises EmuError, MisalignedError, OutOfBoundsError.
        """
        base = self.lanes_of(active)
        d = self.shared_address(active, dst, to_offset, True)
        t = self.address(active, tensor_map, map_offset)
        m = self.shared_address(active, mb, barrier_offset, True)
        cs = [np.broadcast_to(np.asarray(x).astype(i4), base.shape) for x in coords]
        for j, lane in enumerate(base):
            tensor_map = self.tensor_map_at(pc, lane, t[j])
            if len(cs) != len(tensor_map.dims):
                rank = len(tensor_map.dims)
                raise EmuError(
                    f"{self.name}: {len(cs)} coordinates for a rank-{rank} tensor map; "
                    f"{self.text(pc)}"
                )
            if int(d[j]) % 128:
                raise MisalignedError(
                    f"{self.name}: TMA destination {int(d[j])} is not 128-byte aligned; "
                    f"{self.text(pc)}"
                )
            offset, ok = tensor_map.elements([c[j] for c in cs])
            src, o = self.tensor_map_memory(pc, lane, tensor_map, offset, ok)
            outside = OUTSIDE_NAN[tensor_map.size] if tensor_map.oob else 0
            vals = np.full(offset.shape, outside, UNSIGNED[tensor_map.size * 8])
            vals[ok] = src[o]
            addrs = tensor_map.smem(int(d[j]))
            self.write_shared(pc, lane, addrs, tensor_map.size, None)
            key = (int(self.cta_of[lane]), int(m[j]))
            land = partial(self.write_shared, pc, lane, addrs, tensor_map.size, vals, False)
            self.complete_bytes(pc, lane, key, tensor_map.nbytes, land)

    def tma_store(
        self,
        pc: int,
        active: Lanes,
        tensor_map: Any,
        map_offset: int,
        coords: list[Any],
        src: Any,
        source_offset: int,
        op: str | None,
    ) -> None:
        """cp.async.bulk.tensor to global memory, cp.reduce if there is an ``op``."""
        base = self.lanes_of(active)
        s = self.shared_address(active, src, source_offset, True)
        t = self.address(active, tensor_map, map_offset)
        cs = [np.broadcast_to(np.asarray(x).astype(i4), base.shape) for x in coords]
        for j, lane in enumerate(base):
            tensor_map = self.tensor_map_at(pc, lane, t[j])
            elements = tensor_map.elements([c[j] for c in cs])
            addrs = tensor_map.smem(int(s[j]))
            land = partial(self._tma_store_now, pc, lane, tensor_map, addrs, *elements, op)
            self.bulk_open.append([int(lane), None, land])

    def _tma_store_now(
        self,
        pc: int,
        lane: int,
        tensor_map: TensorMap,
        addrs: np.ndarray,
        offset: np.ndarray,
        ok: np.ndarray,
        op: str | None,
    ) -> None:
        size = tensor_map.size
        values = self.shared.views[size][self.async_index(pc, lane, addrs, size) // size]
        target, index = self.tensor_map_memory(pc, lane, tensor_map, offset, ok)
        if op is None:
            target[index] = values[ok]
        else:  # the element type is not in our map: f32 or bf16
            dtype = {4: "f32", 2: "bf16"}[size]
            self.apply_atomic(target, index, op, dtype, values[ok], None, False)

    def bulk_load(
        self,
        pc: int,
        active: Lanes,
        dst: Any,
        to_offset: int,
        src: Any,
        source_offset: int,
        size: Any,
        mb: Any,
        barrier_offset: int,
    ) -> None:
        """cp.async.bulk from global memory. Raises MisalignedError, OutOfBoundsError."""
        base = self.lanes_of(active)
        d, s, m = (
            self.shared_address(active, dst, to_offset, True),
            self.address(active, src, source_offset),
            self.shared_address(active, mb, barrier_offset, True),
        )
        size = np.broadcast_to(np.asarray(size).astype(i8), base.shape)
        for j, lane in enumerate(base):
            n = int(size[j])
            if n % 16 or int(d[j]) % 16 or int(s[j]) % 16:
                raise MisalignedError(
                    f"{self.name}: cp.async.bulk needs 16-byte sizes and addresses; {self.text(pc)}"
                )
            a = np.arange(0, n, 4, dtype=i8)
            plan, bad = self.memory.plan(s[j : j + 1], n)
            if plan is None:
                what = f"out-of-bounds bulk read of {n} bytes"
                self.fault(OutOfBoundsError, pc, np.array([lane]), bad, s[j : j + 1], what)
            b, _, o = plan[0]
            vals = b.view(4)[(int(o[0]) + a) // 4]
            self.write_shared(pc, lane, int(d[j]) + a, 4, None)
            key = (int(self.cta_of[lane]), int(m[j]))
            land = partial(self.write_shared, pc, lane, int(d[j]) + a, 4, vals, False)
            self.complete_bytes(pc, lane, key, n, land)

    def bulk_store(
        self,
        pc: int,
        active: Lanes,
        dst: Any,
        to_offset: int,
        src: Any,
        source_offset: int,
        size: Any,
        op: str | None,
    ) -> None:
        """cp.async.bulk to global memory, cp.reduce of float32 if there is an ``op``.

        Raises OutOfBoundsError.
        """
        base = self.lanes_of(active)
        d, s = (
            self.address(active, dst, to_offset),
            self.shared_address(active, src, source_offset, True),
        )
        size = np.broadcast_to(np.asarray(size).astype(i8), base.shape)
        for j, lane in enumerate(base):
            n = int(size[j])
            plan, bad = self.memory.plan(d[j : j + 1], n)
            if plan is None:
                what = f"out-of-bounds bulk store of {n} bytes"
                self.fault(OutOfBoundsError, pc, np.array([lane]), bad, d[j : j + 1], what)
            addrs = int(s[j]) + np.arange(0, n, 4, dtype=i8)
            land = partial(self._bulk_store_now, pc, lane, addrs, plan[0], op)
            self.bulk_open.append([int(lane), None, land])

    def _bulk_store_now(
        self,
        pc: int,
        lane: int,
        addrs: np.ndarray,
        where: tuple[Buffer, Any, np.ndarray],
        op: str | None,
    ) -> None:
        values = self.shared.views[4][self.async_index(pc, lane, addrs, 4) // 4]
        buffer, _, offset = where
        target, index = buffer.view(4), (int(offset[0]) + addrs - addrs[0]) // 4
        if op is None:
            target[index] = values
        else:
            self.apply_atomic(target, index, op, "f32", values, None, False)

    def bulk_commit(self, active: Lanes) -> None:
        """cp.async.bulk.commit_group."""
        base = self.lanes_of(active)
        s = set(base.tolist())
        for record in self.bulk_open:
            if record[1] is None and record[0] in s:
                record[1] = int(self.bulk_count[record[0]])
        self.bulk_count[base] += 1

    def bulk_wait(self, active: Lanes, keep: int) -> None:
        """cp.async.bulk.wait_group."""
        base = self.lanes_of(active)
        s = set(base.tolist())
        left = []
        for record in self.bulk_open:
            if (
                record[0] in s
                and record[1] is not None
                and record[1] < self.bulk_count[record[0]] - keep
            ):
                record[2]()
            else:
                left.append(record)
        self.bulk_open = left

    def finish_async(self) -> None:
        """At the end of a kernel: what was never waited for becomes a warning."""
        if self.bulk_open:
            self.report.warnings.append(
                "kernel ended with bulk stores that were never waited for (performed at exit)"
            )
            for record in self.bulk_open:
                record[2]()
        if self.wgmma_open:
            self.report.warnings.append(
                "kernel ended with wgmma operations that were never waited for"
            )
        for (_, a), b in self.mbarriers.items():
            if b.queue and any(ph >= b.phase for ph, _ in b.queue):
                self.report.warnings.append(f"mbarrier {a}: TMA load never completed")
                break
