"""Exchange between the lanes of a warp."""

from typing import Any

import numpy as np

from .errors import (
    DivergedError,
)
from .numerics import POISON32, i8, u4, u8

Lanes = np.ndarray | None


class WarpCollectives:
    """Exchange between the lanes of a warp."""

    def active_mask(self, active: Lanes) -> np.ndarray:
        """The active lanes as booleans."""
        if active is None:
            return np.ones(self.nlanes, bool)
        if self._mask_of is not active:
            a = np.zeros(self.nlanes, bool)
            a[active] = True
            self._mask_of, self._mask = active, a
        return self._mask

    def whole_warps(self, pc: int, active: Lanes) -> None:
        """Raise DivergedError unless whole warps are active."""
        if active is None or active is self._whole:
            return
        if active.size % 32 == 0:
            x = active.reshape(-1, 32)
            if ((x[:, 31] - x[:, 0] == 31) & (x[:, 0] % 32 == 0)).all():
                self._whole = active
                return
        n = np.bincount(active // 32, minlength=self.nlanes // 32)
        bad = active[n[active // 32] != 32]
        raise DivergedError(pc, bad)

    def converge(self, pc: int, active: Lanes, mask: Any = 0xFFFFFFFF) -> None:
        """Raise DivergedError unless all live lanes of ``mask`` are active."""
        if active is None:
            return
        allm = np.ndim(mask) == 0 and int(mask) == 0xFFFFFFFF
        if allm and active is self._converged:
            return
        act = self.active_mask(active)
        need = (
            self.live
            if allm
            else self.live & (((np.asarray(mask).astype(i8) >> self.lane_id) & 1) != 0)
        )
        if not allm and np.ndim(mask):
            # each active lane's own mask counts; inactive lanes' registers do not
            m = np.where(act, np.asarray(mask).astype(i8), 0).reshape(-1, 32)
            m = np.bitwise_or.reduce(m, 1)
            need = self.live & (((np.repeat(m, 32) >> self.lane_id) & 1) != 0)
        miss = (need & ~act).reshape(-1, 32).any(1)
        if miss.any():
            bad = active[miss[active // 32]]
            if bad.size:
                raise DivergedError(pc, bad)
        if allm:
            self._converged = active

    def shuffle(
        self, pc: int, active: Lanes, mode: str, a: Any, b: Any, c: Any, mask: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """shfl: (values, whether the source lane was in range)."""
        self.converge(pc, active, mask)
        lane = self.lane_id
        b = np.asarray(b).astype(i8) & 31
        c = np.asarray(c).astype(i8)
        seg = (c >> 8) & 31
        mx = (lane & seg) | (c & 31 & ~seg)
        mn = lane & seg
        if mode == "up":
            j = lane - b
            ok = j >= mx
        elif mode == "down":
            j = lane + b
            ok = j <= mx
        elif mode == "bfly":
            j = lane ^ b
            ok = j <= mx
        else:
            j = mn | (b & ~seg & 31)
            ok = j <= mx
        j = np.where(ok, j, lane)
        src = self.warp_base + j
        a = np.broadcast_to(a, (self.nlanes,))
        v = a[src]
        if active is not None:
            v = np.where(self.active_mask(active)[src], v, np.uint32(POISON32))
        return v, np.broadcast_to(ok, (self.nlanes,)).copy()

    def ballot(self, active: Lanes, p: Any) -> np.ndarray:
        """A bit for each active lane of the warp that says yes."""
        p = np.broadcast_to(p, (self.nlanes,)) & self.active_mask(active)
        b = (p.reshape(-1, 32).astype(u8) << np.arange(32, dtype=u8)).sum(1)
        return np.repeat(b.astype(u4), 32)

    def vote(self, pc: int, active: Lanes, mode: str, p: Any, mask: Any) -> np.ndarray:
        """vote.sync: any, all, uni or ballot."""
        self.converge(pc, active, mask)
        mb = np.asarray(mask).astype(u4)
        b = self.ballot(active, p) & mb
        if mode == "ballot":
            return b
        if mode == "any":
            return b != 0
        act = self.ballot(active, np.ones(self.nlanes, bool)) & mb
        if mode == "all":
            return b == act
        return (b == act) | (b == 0)

    def activemask(self, active: Lanes) -> np.ndarray:
        """The lanes of the warp that are active here."""
        return self.ballot(active, np.ones(self.nlanes, bool))

    def redux(self, pc: int, active: Lanes, op: str, a: Any, mask: Any) -> np.ndarray:
        """redux.sync: a reduction over the warp."""
        self.converge(pc, active, mask)
        act = self.active_mask(active) & (((np.asarray(mask).astype(i8) >> self.lane_id) & 1) != 0)
        a = np.broadcast_to(a, (self.nlanes,))
        if a.dtype.kind == "f":
            x = np.where(act, a, np.nan).astype(a.dtype).reshape(-1, 32)
            return np.repeat((np.fmin if op == "min" else np.fmax).reduce(x, 1), 32)
        ii = np.iinfo(a.dtype)
        ident = {
            "add": 0,
            "or": 0,
            "xor": 0,
            "and": -1 if ii.min < 0 else ii.max,
            "min": ii.max,
            "max": ii.min,
        }[op]
        x = np.where(act, a, a.dtype.type(ident)).reshape(-1, 32)
        f = {
            "add": np.add,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
            "and": np.bitwise_and,
            "min": np.minimum,
            "max": np.maximum,
        }[op]
        return np.repeat(f.reduce(x, 1, dtype=a.dtype), 32)

    def match(
        self, pc: int, active: Lanes, mode: str, a: Any, mask: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """match.sync: the lanes that have the same value."""
        self.converge(pc, active, mask)
        act = (
            self.active_mask(active) & (((np.asarray(mask).astype(i8) >> self.lane_id) & 1) != 0)
        ).reshape(-1, 32)
        x = np.broadcast_to(a, (self.nlanes,)).reshape(-1, 32)
        eq = (x[:, :, None] == x[:, None, :]) & act[:, None, :]
        w = (eq.astype(u8) << np.arange(32, dtype=u8)).sum(2).astype(u4)
        if mode == "all":
            am = (act.astype(u8) << np.arange(32, dtype=u8)).sum(1).astype(u4)[:, None]
            ok = (np.where(act, w == am, True)).all(1, keepdims=True)
            return np.where(ok, am, 0).astype(u4).repeat(32, 1).reshape(-1), np.broadcast_to(
                ok, w.shape
            ).reshape(-1).copy()
        return w.reshape(-1), None

    def elect(self, pc: int, active: Lanes, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """elect.sync: (leader, whether this lane is it)."""
        self.converge(pc, active, mask)
        m = np.broadcast_to(np.asarray(mask).astype(i8), (self.nlanes,)).reshape(-1, 32)
        act = self.active_mask(active).reshape(-1, 32) & (((m >> np.arange(32)) & 1) != 0)
        lead = act.argmax(1)
        t = np.repeat(lead, 32)
        return t.astype(u4), self.lane_id == t
