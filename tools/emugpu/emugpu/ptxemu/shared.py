"""Shared memory of a batch of CTAs: poison, tracking of initialisation, and the race detector."""

from typing import Any

import numpy as np

from .errors import RaceError, UninitError
from .numerics import POISON32, UNSIGNED, u1, u4


class Shared:
    """Shared memory of a batch of CTAs, with optional happens-before race detection.

    Race detection keeps, per 2-byte granule, the last writer warp and clock and a read clock per
    warp, and a vector clock per warp that barriers (and mbarriers) join.
    """

    GRANULE = 2

    def __init__(
        self, ncta: int, size: int, nwarps: int, race: str | None = None, init: str | None = None
    ) -> None:
        self.size, self.ncta, self.nwarps = size, ncta, nwarps
        self.stride = max(16, (size + 15) // 16 * 16)
        self.flat = np.full(ncta * self.stride // 4, POISON32, u4).view(u1)
        self.views = {nbytes: self.flat.view(UNSIGNED[nbytes * 8]) for nbytes in (1, 2, 4, 8)}
        self.init = np.zeros(ncta * self.stride, bool) if init else None
        self.init_mode = init
        self.race = race
        self.races, self.uninit = [], []
        if race:
            granules = ncta * self.stride // self.GRANULE
            self.write_clock = np.zeros(granules, np.int32)
            self.writer = np.full(granules, -1, np.int16)
            self.write_pc = np.full(granules, -1, np.int32)
            self.write_atomic = np.zeros(granules, bool)
            self.read_clock = np.zeros((granules, nwarps), np.int32)
            self.read_pc = np.full(granules, -1, np.int32)
            self.unfenced = np.zeros(
                granules, bool
            )  # generic-proxy write with no fence.proxy.async since
            self.clocks = np.zeros((ncta, nwarps, nwarps), np.int32)
            self.clocks[:, np.arange(nwarps), np.arange(nwarps)] = 1

    def join(self, cta: Any, warps: Any = None) -> None:
        """A barrier among `warps` of `cta` (None: all; cta None: every CTA)."""
        if not self.race:
            return
        W = self.nwarps
        if cta is None:
            self.clocks[:] = self.clocks.max(1, keepdims=True)
            self.clocks[:, np.arange(W), np.arange(W)] += 1
        else:
            w = np.arange(W) if warps is None else np.asarray(warps)
            self.clocks[cta, w] = self.clocks[cta, w].max(0)
            self.clocks[cta, w, w] += 1

    def clock_of(self, cta: Any, warp: Any) -> np.ndarray:
        """A copy of one warp's vector clock."""
        return self.clocks[cta, warp].copy()

    def acquire(self, cta: Any, warp: Any, clock: np.ndarray) -> None:
        """Order one warp after what ``clock`` has seen."""
        np.maximum(self.clocks[cta, warp], clock, out=self.clocks[cta, warp])

    def bump(self, cta: Any, warp: Any) -> None:
        """Begin a new epoch of one warp: later accesses are not covered by earlier releases."""
        self.clocks[cta, warp, warp] += 1

    def proxy_fence(self, cta: Any, warp: Any) -> None:
        """fence.proxy.async by one warp: covers every write that happens before it."""
        n = self.stride // self.GRANULE
        part = slice(cta * n, cta * n + n)
        last_writer = self.writer[part]
        seen = (last_writer >= 0) & (
            self.clocks[cta, warp][np.maximum(last_writer, 0)] >= self.write_clock[part]
        )
        self.unfenced[part] &= ~seen

    def async_read(
        self, batch: Any, pc: int, indices: np.ndarray, nbytes: int, cta: Any, warp: Any
    ) -> None:
        """Reads by wgmma or bulk copies, which generic writes must be fenced for.

        Raises what ``track`` raises.
        """
        self.track(batch, pc, indices, nbytes, cta, warp, False)
        if not self.race:
            return
        bad = self.unfenced[indices // self.GRANULE]
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            record = dict(
                kind="race: missing fence.proxy.async",
                pc=pc,
                ins=batch.text(pc),
                other=batch.text(int(self.write_pc[indices[j] // self.GRANULE])),
                cta=batch.cta_name(int(cta[j])),
                warp=int(warp[j]),
                offset=int(indices[j] % self.stride),
                count=int(bad.sum()),
            )
            if self.race == "raise":
                raise RaceError(f"{batch.name}: {record}")
            if not any(x["pc"] == pc and x["kind"] == record["kind"] for x in self.races):
                self.races.append(record)

    def track(
        self,
        batch: Any,
        pc: int,
        indices: np.ndarray,
        nbytes: int,
        cta: Any,
        warp: Any,
        write: bool,
        atomic: bool = False,
        values: list[np.ndarray] | None = None,
    ) -> None:
        """Record accesses, and report those that race or read what nobody wrote.

        indices: flat byte index of each access. cta, warp: arrays of the accessing thread. values:
        what is stored. Unordered writes of the same value by two warps are not reported (replicated
        layouts do that). Raises RaceError and UninitError if the checks are to raise.
        """
        if self.init is not None:
            k = indices[:, None] + np.arange(nbytes)
            if write:
                self.init[k] = True
            else:
                bad = ~self.init[k].all(1)
                if bad.any():
                    j = int(np.flatnonzero(bad)[0])
                    record = dict(
                        kind="uninitialised shared read",
                        pc=pc,
                        ins=batch.text(pc),
                        cta=batch.cta_name(int(cta[j])),
                        warp=int(warp[j]),
                        offset=int(indices[j] % self.stride),
                        count=int(bad.sum()),
                    )
                    if self.init_mode == "raise":
                        raise UninitError(f"{batch.name}: {record}")
                    if not any(x["pc"] == pc for x in self.uninit):
                        self.uninit.append(record)
        if not self.race:
            return
        granules = max(1, nbytes // self.GRANULE)
        g = (indices[:, None] // self.GRANULE + np.arange(granules)).reshape(-1)
        c = np.repeat(cta, granules)
        w = np.repeat(warp, granules)
        own = self.clocks[c, w, w]
        last_writer = self.writer[g]
        bad = (
            (last_writer >= 0)
            & (last_writer != w)
            & (self.clocks[c, w, np.maximum(last_writer, 0)] < self.write_clock[g])
        )
        if atomic:
            bad &= ~self.write_atomic[g]
        kind = "write-after-write" if write else "read-after-write"
        other = self.write_pc[g]
        if write and values is not None and bad.any():
            u = nbytes // len(values)
            same = np.ones(len(indices), bool)
            for j, x in enumerate(values):
                same &= self.views[u][indices // u + j] == x
            bad &= ~np.repeat(same, granules)
        if write:
            if not atomic:
                rb = self.read_clock[g] > self.clocks[c, w]
                rb[np.arange(len(w)), w] = False
                rb = rb.any(1)
                if rb.any() and not bad.any():
                    kind, other = "write-after-read", self.read_pc[g]
                bad = bad | rb
            self.writer[g] = w
            self.unfenced[g] = True
            if not atomic:  # two warps, one instruction, same address
                clash = self.writer[g] != w
                if clash.any() and values is not None:
                    u = nbytes // len(values)
                    same = np.ones(len(indices), bool)
                    for j, x in enumerate(values):
                        tmp = self.views[u].copy()
                        tmp[indices // u + j] = x
                        same &= tmp[indices // u + j] == x
                    clash &= ~np.repeat(same, granules)
                if clash.any() and not bad.any():
                    other = np.full_like(other, pc)
                bad = bad | clash
            self.write_clock[g] = own
            self.write_pc[g] = pc
            self.write_atomic[g] = atomic
        else:
            self.read_clock[g, w] = own
            self.read_pc[g] = pc
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            record = dict(
                kind="race: " + kind,
                pc=pc,
                ins=batch.text(pc),
                other=batch.text(int(other[j])),
                cta=batch.cta_name(int(c[j])),
                warp=int(w[j]),
                other_warp=int(last_writer[j]),
                offset=int(g[j] * self.GRANULE % self.stride),
                count=int(bad.sum()),
            )
            if self.race == "raise":
                raise RaceError(f"{batch.name}: {record}")
            if not any(x["pc"] == pc and x["kind"] == record["kind"] for x in self.races):
                self.races.append(record)
