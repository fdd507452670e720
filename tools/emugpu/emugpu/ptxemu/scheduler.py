"""Which lanes run next: min-pc scheduling, divergence, barriers."""

from typing import Any, NoReturn

import numpy as np

from .codegen import EXIT, TRAP
from .errors import (
    DeadlockError,
    DeviceTrapError,
    DivergedError,
)
from .numerics import i8

Lanes = np.ndarray | None


# Backward jumps of one group before the others get a turn.
PATIENCE = 2000


class Group:
    """Lanes at one pc; a parked group waits for the rest of its warps. ``rank`` is its warp."""

    __slots__ = ("active", "parked", "pc", "rank")

    def __init__(self, pc: int, active: Lanes, parked: bool = False, rank: int = 0) -> None:
        self.pc, self.active, self.parked, self.rank = pc, active, parked, rank


class Scheduler:
    """Which lanes run next: min-pc scheduling, divergence, barriers."""

    def add(self, pc: int, active: Lanes, parked: bool = False) -> None:
        """Queue lanes at a pc (EXIT and TRAP are carried out). Raises DeviceTrapError."""
        if pc == EXIT:
            self.exit(active)
            return
        if pc == TRAP:
            raise DeviceTrapError(f"{self.name}: trap in {self.thread_name(int(active[0]))}")
        if self.schedule != "lockstep":
            w = self.warp_of[active]
            u = np.unique(w)
            if len(u) > 1:
                for k in u:
                    self._add(pc, active[w == k], parked, int(k))
                return
            self._add(pc, active, parked, int(u[0]))
            return
        self._add(pc, active, parked, 0)

    def _add(self, pc: int, active: np.ndarray, parked: bool, rank: int) -> None:
        for g in self.groups:
            if g.pc == pc and g.rank == rank:
                g.active = np.sort(np.concatenate([g.active, active]))
                g.parked = g.parked and parked
                return
        self.groups.append(Group(pc, active, parked, rank))

    def exit(self, active: Lanes) -> None:
        """Lanes have finished; that can complete a collective or a barrier."""
        if active is None:
            active = self.lanes
        self.live[active] = False
        self.nlive -= np.bincount(self.cta_of[active], minlength=self.ncta)
        for g in self.groups:  # an exit can complete a collective or a barrier
            g.parked = False
        for key in list(self.barriers):
            self.barrier_check(key)

    def pick(self) -> Any:
        """The group that runs next: the lowest pc, in serial schedules of the first warp."""
        sign = -1 if self.schedule == "warp-desc" else 1
        ready = (group for group in self.groups if not group.parked)
        return min(ready, key=lambda group: (sign * group.rank, group.pc), default=None)

    def run(self) -> None:
        """Run all lanes to their end.

        Raises DeadlockError, and what the instructions raise."""
        live = np.flatnonzero(self.live)
        self.add(0, live)
        nlanes, r, generator, report = self.nlanes, self.registers, self.generator, self.report
        report.lanes += int(live.size)
        streak = 0
        while self.groups or self.barriers or self.mbarrier_waiting():
            g = self.pick()
            if g is None:
                if self.merge_parked() or self.mbarrier_poll():
                    continue
                self.deadlock()
            self.groups.remove(g)
            pc, active = g.pc, g.active
            full = active.size == nlanes
            if full:
                active = None
            mode = "full" if full else "masked"
            try:
                while True:
                    fn = generator.segments.get((pc, mode)) or generator.segment(pc, mode)
                    report.segments += 1
                    report.instructions += fn.count
                    if report.instructions > report.limit:
                        raise DeadlockError(
                            f"{self.name}: no end after {report.instructions} instructions "
                            f"(livelock?) at {self.text(pc)}"
                        )
                    following = fn(self, r, active)
                    if type(following) is int:
                        if following < 0:
                            self.add(following, self.lanes_of(active))
                            break
                        streak = streak + 1 if following <= pc else 0
                        pc = following
                        if self.groups and (active is None or self.must_yield(pc, g.rank, streak)):
                            if streak > PATIENCE:
                                streak = 0
                                self.rotate(pc, active, g.rank)
                                break
                            self.add(pc, self.lanes_of(active))
                            break
                        continue
                    if following is None:  # absorbed by a barrier
                        break
                    taken, through, p = following
                    base = self.lanes_of(active)
                    self.add(through, base[~p])
                    self.add(taken, base[p])
                    break
            except DivergedError as error:
                base = self.lanes_of(active)
                good = np.setdiff1d(base, error.bad, assume_unique=True)
                if good.size:  # good runs now, bad waits
                    self.run_one(Group(error.pc, good, rank=g.rank), error.bad)
                else:
                    self.add(error.pc, error.bad, True)
            if self.mbarrier_progress:
                self.mbarrier_poll()
        self.finish_async()
        if self.copies:
            report.warnings.append("kernel ended with cp.async copies that were never waited for")

    def merge_parked(self) -> bool:
        """Serial schedules keep warps apart: bring them together for warpgroup collectives."""
        if self.schedule == "lockstep":
            return False
        by = {}
        for g in self.groups:
            by.setdefault(g.pc, []).append(g)
        out = False
        for gs in by.values():
            if len(gs) > 1:
                gs[0].active = np.sort(np.concatenate([g.active for g in gs]))
                gs[0].parked = False
                for g in gs[1:]:
                    self.groups.remove(g)
                out = True
        return out

    def run_one(self, g: Any, waiting: np.ndarray) -> None:
        """Run the complete warps of a collective past it before the others are queued there."""
        fn = self.generator.segment(g.pc, "masked")
        try:
            following = fn(self, self.registers, g.active)
        except DivergedError as error:
            self.add(error.pc, g.active)
            self.add(g.pc, waiting, True)
            return
        if type(following) is int:
            self.add(following, g.active)
        elif following is not None:
            taken, through, p = following
            self.add(through, g.active[~p])
            self.add(taken, g.active[p])
        self.add(g.pc, waiting, True)

    def must_yield(self, pc: int, rank: int, streak: int) -> bool:
        """Whether another group has to run before this one goes on at ``pc``."""
        if streak > PATIENCE:
            return True
        for g in self.groups:
            if not g.parked and g.rank == rank and g.pc <= pc:
                return True
            if g.parked and g.pc == pc and g.rank == rank:
                return True
        return False

    def rotate(self, pc: int, active: Lanes, rank: int) -> None:
        """A group has looped for long while others wait (a spin lock?): let the others go first."""
        others = [g for g in self.groups if not g.parked]
        active = self.lanes_of(active)
        if not others:
            self.add(pc, active)
            return
        g = others[0]
        self.groups.remove(g)
        fn = self.generator.segment(g.pc, "masked")
        try:
            following = fn(self, self.registers, g.active)
        except DivergedError as error:
            self.add(error.pc, g.active, True)
            following = None
        if type(following) is int:
            self.add(following, g.active)
        elif following is not None:
            taken, through, p = following
            self.add(through, g.active[~p])
            self.add(taken, g.active[p])
        self.add(pc, active)

    def deadlock(self) -> NoReturn:
        """Raise DeadlockError with what everyone waits for."""
        out = []
        for g in self.groups:
            out.append(
                f"{g.active.size} threads (first {self.thread_name(int(g.active[0]))}) wait for "
                f"the rest of their warp at {self.text(g.pc)}"
            )
        for (c, b), s in self.barriers.items():
            out.append(
                f"block {self.cta_name(c)} barrier {b}: {s['count']} of "
                f"{s['expected'] or int(self.nlive[c])} threads arrived at {self.text(s['pc'])}"
            )
        out += self.mbarrier_describe()
        raise DeadlockError(f"{self.name}: deadlock: " + "; ".join(out[:6]))

    def barrier(self, pc: int, active: Lanes, number: Any, count: Any, wait: bool) -> int | None:
        """bar.sync and bar.arrive: the next pc, or None if the lanes wait."""
        if active is None and count is None and np.ndim(number) == 0 and not self.barriers:
            self.shared.join(None)
            return pc + 1
        base = self.lanes_of(active)
        b = np.broadcast_to(np.asarray(number).astype(i8), base.shape)
        expected = np.broadcast_to(np.asarray(0 if count is None else count).astype(i8), base.shape)
        if count is None and wait and not self.barriers and np.ndim(number) == 0:
            n = np.bincount(self.cta_of[base], minlength=self.ncta)
            if ((n == 0) | (n == self.nlive)).all():
                if self.shared.race:
                    for c in np.flatnonzero(n):
                        self.shared.join(int(c))
                return pc + 1
        c = self.cta_of[base]
        keys = c * 64 + b
        for k in np.unique(keys):
            picked = keys == k
            lanes = base[picked]
            key = (int(k) // 64, int(k) % 64)
            s = self.barriers.setdefault(
                key, dict(count=0, expected=0, wait=[], warps=set(), pc=pc)
            )
            s["count"] += lanes.size
            s["expected"] = int(expected[picked][0])
            s["pc"] = pc
            s["warps"].update(self.warp_of[lanes].tolist())
            if wait:
                s["wait"].append((pc + 1, lanes))
            self.barrier_check(key)
        return None if wait else pc + 1

    def barrier_check(self, key: tuple[int, int]) -> None:
        """Release a barrier that is complete."""
        s = self.barriers[key]
        expected = s["expected"] or int(self.nlive[key[0]])
        if s["count"] >= expected:
            del self.barriers[key]
            self.shared.join(key[0], sorted(s["warps"]) if s["expected"] else None)
            for next_pc, lanes in s["wait"]:
                self.add(next_pc, lanes)

    def barrier_reduce(
        self, pc: int, active: Lanes, number: Any, count: Any, op: str, p: Any, slot: int
    ) -> int:
        """bar.red: a vote of the whole CTA."""
        if active is not None or count is not None:
            self.unsupported(pc, "bar.red in divergent code")
        q = p.reshape(self.ncta, self.nthreads)
        res = q.sum(1) if op == "popc" else q.all(1) if op == "and" else q.any(1)
        self.registers[slot] = np.repeat(res, self.nthreads).astype(self.registers[slot].dtype)
        self.shared.join(None)
        return pc + 1
