"""mbarrier objects in shared memory."""

from typing import Any

import numpy as np

from .errors import (
    EmuError,
)
from .numerics import i8

Lanes = np.ndarray | None


# Time-outs of try_wait before waiting for an mbarrier counts as a deadlock.
MOST_TIMEOUTS = 200


class MBarrier:
    """State of one mbarrier; ``queue`` holds the copies that land with each phase.

    ``clock`` is what its arrivals have seen, ``done_clock`` the same of the last completed phase.
    """

    __slots__ = ("clock", "count", "done_clock", "pending", "phase", "queue", "tx")

    def __init__(self, count: int, nwarps: int) -> None:
        self.count = self.pending = count
        self.tx, self.phase, self.queue = 0, 0, []
        self.clock, self.done_clock = np.zeros(nwarps, np.int32), np.zeros(nwarps, np.int32)


class MBarriers:
    """mbarrier objects in shared memory."""

    def mbarrier_keys(
        self, pc: int, active: Lanes, a: Any, offset: int, write: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(lanes, CTAs, offsets).

        For the race detector init and inval are plain writes, every other operation is atomic.
        """
        a = self.shared_address(active, a, offset, True)
        self.shared_index(pc, active, a, 8, True, not write)
        base = self.lanes_of(active)
        return base, self.cta_of[base], a

    def mbarrier_at(self, pc: int, lane: int, key: tuple[int, int]) -> MBarrier:
        """The mbarrier at (cta, offset). Raises EmuError if there is none."""
        b = self.mbarriers.get(key)
        if b is None:
            raise EmuError(
                f"{self.name}: mbarrier at shared offset {key[1]} is not initialised, "
                f"{self.thread_name(int(lane))}; {self.text(pc)}"
            )
        return b

    def mbarrier_init(self, pc: int, active: Lanes, a: Any, offset: int, count: Any) -> None:
        """mbarrier.init."""
        _, c, a = self.mbarrier_keys(pc, active, a, offset, True)
        count = np.broadcast_to(np.asarray(count), c.shape)
        for cc, aa, n in zip(c, a, count, strict=True):
            self.mbarriers[(int(cc), int(aa))] = MBarrier(int(n), self.shared.nwarps)

    def mbarrier_inval(self, pc: int, active: Lanes, a: Any, offset: int) -> None:
        """mbarrier.inval."""
        _, c, a = self.mbarrier_keys(pc, active, a, offset, True)
        for cc, aa in set(zip(c.tolist(), a.tolist(), strict=True)):
            b = self.mbarriers.pop((cc, aa), None)
            if b is not None and any(ph >= b.phase for ph, _ in b.queue):
                self.report.warnings.append(f"mbarrier {aa} invalidated with a TMA load in flight")

    def mbarrier_complete(self, b: MBarrier) -> None:
        """Begin the next phase if nothing is pending."""
        if b.pending == 0 and b.tx == 0:
            b.phase += 1
            b.pending = b.count
            b.done_clock = b.clock.copy()
            self.mbarrier_progress = True
            self.mbarrier_spins = 0

    def mbarrier_arrive(
        self, pc: int, active: Lanes, a: Any, offset: int, count: Any, tx: Any, arrive: bool = True
    ) -> np.ndarray:
        """mbarrier.arrive and expect_tx: the phase of each lane. Raises EmuError for too many."""
        base, c, a = self.mbarrier_keys(pc, active, a, offset)
        count = np.broadcast_to(np.asarray(count).astype(i8), base.shape)
        tx = np.broadcast_to(np.asarray(tx).astype(i8), base.shape)
        state = np.zeros(base.shape, np.uint64)
        bump = set()
        for j in range(base.size):
            cc = int(c[j])
            b = self.mbarrier_at(pc, base[j], (cc, int(a[j])))
            state[j] = b.phase
            b.tx += int(tx[j])
            if self.shared.race and arrive:
                w = int(self.warp_of[base[j]])
                np.maximum(b.clock, self.shared.clocks[cc, w], out=b.clock)
                bump.add((cc, w))
            if arrive:
                b.pending -= int(count[j])
                if b.pending < 0:
                    raise EmuError(
                        f"{self.name}: mbarrier at {int(a[j])} received more arrivals than its "
                        f"count {b.count}; {self.text(pc)}"
                    )
                self.mbarrier_complete(b)
        for cc, w in bump:
            self.shared.bump(cc, w)
        return state

    def mbarrier_wait(
        self, pc: int, active: Lanes, a: Any, offset: int, phase: Any, is_parity: bool, slot: int
    ) -> int | None:
        """Blocking wait: lanes whose phase has not completed are parked at this pc."""
        base, c, a = self.mbarrier_keys(pc, active, a, offset)
        phase = np.broadcast_to(np.asarray(phase).astype(i8), base.shape)
        ok = np.zeros(base.shape, bool)
        for k in np.unique(c * (1 << 20) + a):
            picked = np.flatnonzero(c * (1 << 20) + a == k)
            key = (int(k) >> 20, int(k) & 0xFFFFF)
            b = self.mbarrier_at(pc, base[picked[0]], key)
            done = (
                ((b.phase & 1) != (phase[picked] & 1)) if is_parity else (b.phase != phase[picked])
            )
            ok[picked] = done
            if done.any():
                self.mbarrier_flush(b)
                if self.shared.race:
                    for w in np.unique(self.warp_of[base[picked[done]]]):
                        self.shared.acquire(key[0], int(w), b.done_clock)
        if ok.all():
            self.registers[slot][base] = True
            return None if active is not None and not active.size else pc + 1
        if ok.any():
            self.registers[slot][base[ok]] = True
            self.add(pc + 1, base[ok])
        self.mbarrier_waiters.append((pc, base[~ok], slot))
        return None

    def mbarrier_waiting(self) -> bool:
        """Whether lanes are parked at an mbarrier."""
        return bool(self.mbarrier_waiters)

    def mbarrier_poll(self) -> bool:
        """Wake parked waiters; without any progress, let try_wait time out (return false)."""
        if not self.mbarrier_waiters:
            self.mbarrier_progress = False
            return False
        w, self.mbarrier_waiters = self.mbarrier_waiters, []
        if self.mbarrier_progress:
            self.mbarrier_progress = False
            for pc, lanes, _ in w:
                self.add(pc, lanes)
            return True
        self.mbarrier_spins += 1
        if self.mbarrier_spins > MOST_TIMEOUTS:
            self.mbarrier_waiters = w
            return False
        for pc, lanes, slot in w:
            self.registers[slot][lanes] = False
            self.add(pc + 1, lanes)
        return True

    def mbarrier_describe(self) -> list[str]:
        """What is pending, for messages."""
        out = []
        for pc, lanes, _ in self.mbarrier_waiters:
            first = self.thread_name(int(lanes[0]))
            out.append(f"{lanes.size} threads (first {first}) wait at {self.text(pc)}")
        for (c, a), b in self.mbarriers.items():
            out.append(
                f"mbarrier {a} of block {self.cta_name(c)}: phase {b.phase}, {b.pending} of "
                f"{b.count} arrivals and {b.tx} bytes pending"
            )
        return out

    def mbarrier_flush(self, b: MBarrier) -> None:
        """Let the copies of completed phases land."""
        for ph, fn in b.queue:
            if ph < b.phase:
                fn()
        b.queue = [q for q in b.queue if q[0] >= b.phase]

    def copy_mbarrier_arrive(
        self, pc: int, active: Lanes, a: Any, offset: int, noinc: bool
    ) -> None:
        """cp.async.mbarrier.arrive: completes the thread's copies and arrives, both at once."""
        self.copy_commit(active)
        self.copy_wait(active, 0)
        if not noinc:
            base, c, aa = self.mbarrier_keys(pc, active, a, offset)
            for j in range(base.size):
                self.mbarrier_at(pc, base[j], (int(c[j]), int(aa[j]))).pending += 1
        self.mbarrier_arrive(pc, active, a, offset, 1, 0)
