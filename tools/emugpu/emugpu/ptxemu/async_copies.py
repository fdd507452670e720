"""cp.async: performed when it is waited for."""

from typing import Any

import numpy as np

from .errors import (
    OutOfBoundsError,
)
from .memory import SHARED_WINDOW
from .numerics import POISON32, i8

Lanes = np.ndarray | None


class AsyncCopies:
    """cp.async: performed when it is waited for."""

    def copy_async(
        self,
        pc: int,
        active: Lanes,
        to: Any,
        to_offset: int,
        source: Any,
        source_offset: int,
        nbytes: int,
        sizes: Any,
    ) -> None:
        """cp.async: poison the destination now, copy at the wait. Raises OutOfBoundsError."""
        d = self.address(active, to, to_offset)
        if d.size and int(d[0]) >= SHARED_WINDOW:
            d = d - i8(SHARED_WINDOW)
        s = self.address(active, source, source_offset)
        base = self.lanes_of(active)
        n = (
            np.full(d.shape, nbytes, i8)
            if sizes is None
            else np.broadcast_to(np.asarray(sizes).astype(i8), d.shape)
        )
        n = np.minimum(n, nbytes)
        tracking, self.tracking = self.tracking, False
        indices = self.shared_index(pc, active, d, nbytes, True)
        self.tracking = tracking
        pos = np.flatnonzero(n > 0)
        if pos.size:
            full = n[pos] == nbytes
            for part, size in ((pos[full], nbytes), (pos[~full], None)):
                if part.size:
                    if size:
                        self.global_plan(pc, base[part], s[part], nbytes, "cp.async read")
                    else:
                        for j in part:
                            _, bad = self.memory.plan(s[j : j + 1], int(n[j]))
                            if bad is not None:
                                self.fault(
                                    OutOfBoundsError,
                                    pc,
                                    base[j : j + 1],
                                    bad,
                                    s[j : j + 1],
                                    "out-of-bounds cp.async read",
                                )
        if self.shared.race:  # the destination may be overwritten from now on
            self.shared.track(
                self, pc, indices, nbytes, self.cta_of[base], self.warp_of[base], True
            )
        w = self.shared.views[nbytes if nbytes < 8 else 8]
        k = max(1, nbytes // 8)
        gk = indices // min(nbytes, 8)
        for j in range(k):  # poison until the copy is waited for
            w[gk + j] = {4: np.uint32(POISON32), 8: np.uint64(POISON32 << 32 | POISON32)}[
                min(nbytes, 8)
            ]
        if self.shared.init is not None:
            self.shared.init[indices[:, None] + np.arange(nbytes)] = False
        self.copies.append([pc, base, indices, s, n, nbytes, None])

    def copy_commit(self, active: Lanes) -> None:
        """cp.async.commit_group."""
        base = self.lanes_of(active)
        for record in self.copies:
            if record[6] is None or (record[6] < 0).any():
                if record[6] is None:
                    record[6] = np.full(record[1].shape, -1, i8)
                picked = (record[6] < 0) & (
                    True if active is None else self.active_mask(active)[record[1]]
                )
                record[6] = np.where(picked, self.copy_count[record[1]], record[6])
        self.copy_count[base] += 1

    def copy_wait(self, active: Lanes, keep: int) -> None:
        """cp.async.wait_group: carry out all but the last ``keep`` groups."""
        left = []
        act = None if active is None else self.active_mask(active)
        for record in self.copies:
            pc, lanes, indices, s, n, nbytes, group = record
            if group is None:
                left.append(record)
                continue
            done = (group >= 0) & (group < self.copy_count[lanes] - keep)
            if act is not None:
                done &= act[lanes]
            if done.all():
                self.copy_perform(pc, lanes, indices, s, n, nbytes)
            elif done.any():
                self.copy_perform(pc, lanes[done], indices[done], s[done], n[done], nbytes)
                k = ~done
                left.append([pc, lanes[k], indices[k], s[k], n[k], nbytes, group[k]])
            else:
                left.append(record)
        self.copies = left

    def copy_perform(
        self, pc: int, lanes: np.ndarray, indices: np.ndarray, s: Any, n: Any, nbytes: int
    ) -> None:
        """Carry out a copy."""
        u = min(nbytes, 8)
        w, k = self.shared.views[u], nbytes // u
        if self.tracking:
            self.shared.track(
                self, pc, indices, nbytes, self.cta_of[lanes], self.warp_of[lanes], True
            )
        if (n == nbytes).all():
            for b, picked, o in self.memory.plan(s, nbytes)[0]:
                src, o = b.view(u), o // u
                d = (indices if picked is None else indices[picked]) // u
                for j in range(k):
                    w[d + j] = src[o + j]
            return
        for j in range(k):
            w[indices // u + j] = 0
        full = n == nbytes
        if full.any():
            for b, picked, o in self.memory.plan(s[full], nbytes)[0]:
                src, o = b.view(u), o // u
                d = (indices[full] if picked is None else indices[full][picked]) // u
                for j in range(k):
                    w[d + j] = src[o + j]
        for j in np.flatnonzero(~full & (n > 0)):
            b, _, o = self.memory.plan(s[j : j + 1], int(n[j]))[0][0]
            self.shared.flat[indices[j] : indices[j] + n[j]] = b.raw[
                int(o[0]) : int(o[0]) + int(n[j])
            ]
