"""Loads, stores and atomics."""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import numerics
from .errors import (
    MisalignedError,
    OutOfBoundsError,
)
from .memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from .numerics import NUMPY_TYPE, UNSIGNED, i8
from .syntax import BITS

Lanes = np.ndarray | None


class MemoryAccess:
    """Loads, stores and atomics."""

    def address(self, active: Lanes, a: Any, offset: int) -> np.ndarray:
        """The address of each active lane."""
        if a is None:
            return np.full(self.nlanes if active is None else active.size, offset, i8)
        a = a.astype(i8)
        return a + i8(offset) if offset else a

    def is_space(self, a: Any, space: str | None) -> np.ndarray:
        """isspacep: whether generic addresses lie in a space."""
        k = a.astype(i8) >> 40
        return {
            "shared": k == 1,
            "shared::cta": k == 1,
            "local": k == 2,
            "const": k == 9,
            "param": k == 3,
            "shared::cluster": k == 1,
            "global": k > 3,
        }[space]

    def shared_address(self, active: Lanes, a: Any, offset: int, generic: bool) -> np.ndarray:
        """The shared offset of each active lane, from a generic address if need be."""
        a = self.address(active, a, offset)
        if generic and a.size and int(a[0]) >= SHARED_WINDOW:
            a = a - i8(SHARED_WINDOW)
        return a

    def shared_index(
        self,
        pc: int,
        active: Lanes,
        a: Any,
        nbytes: int,
        write: bool,
        atomic: bool = False,
        values: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Bounds and alignment check; flat byte index of each lane's access."""
        if a.size == 0:
            return a
        if int(a.min()) < 0 or int(a.max()) + nbytes > self.shared.size:
            self.fault(
                OutOfBoundsError,
                pc,
                active,
                (a < 0) | (a + nbytes > self.shared.size),
                a,
                f"out-of-bounds shared {'write' if write else 'read'} of {nbytes} bytes "
                f"(shared memory has {self.shared.size} bytes)",
            )
        if (a & i8(nbytes - 1)).any():
            self.fault(
                MisalignedError,
                pc,
                active,
                (a & i8(nbytes - 1)) != 0,
                a,
                f"misaligned shared access of {nbytes} bytes",
            )
        indices = a + (self.shared_base if active is None else self.shared_base[active])
        if self.tracking:
            c = self.cta_of if active is None else self.cta_of[active]
            w = self.warp_of if active is None else self.warp_of[active]
            self.shared.track(self, pc, indices, nbytes, c, w, write, atomic, values)
        return indices

    def global_plan(self, pc: int, active: Lanes, a: Any, nbytes: int, what: str) -> list[Any]:
        """GlobalMemory.plan; raises OutOfBoundsError or MisalignedError."""
        plan, bad = self.memory.plan(a, nbytes)
        if plan is None:
            j = int(np.flatnonzero(bad)[0])
            near = self.memory.nearest(int(a[j]))
            what = f"out-of-bounds global {what} of {nbytes} bytes [near {near}]"
            self.fault(OutOfBoundsError, pc, active, bad, a, what)
        if (a & i8(nbytes - 1)).any():
            self.fault(
                MisalignedError,
                pc,
                active,
                (a & i8(nbytes - 1)) != 0,
                a,
                f"misaligned global {what} of {nbytes} bytes",
            )
        return plan

    def local_index(self, pc: int, active: Lanes, a: Any, nbytes: int) -> np.ndarray:
        """Byte index into the local memory of all lanes. Raises OutOfBoundsError."""
        if int(a.min()) < 0 or int(a.max()) + nbytes > self.program.local_size:
            self.fault(
                OutOfBoundsError,
                pc,
                active,
                (a < 0) | (a + nbytes > self.program.local_size),
                a,
                "out-of-bounds local access",
            )
        return a + self.lanes_of(active) * self.local_stride

    def generic_space(self, a: Any) -> tuple[str, int] | None:
        """(space, base) of generic addresses that lie in one space, else None."""
        k = a >> i8(40)
        k0 = int(k[0])
        if (k == k0).all():
            return self.window(k0)
        return None

    @staticmethod
    def window(k: int) -> tuple[str, int]:
        """(space, base) of the window that begins at k << 40."""
        return {
            1: ("shared", SHARED_WINDOW),
            2: ("local", LOCAL_WINDOW),
            3: ("param", PARAM_WINDOW),
        }.get(k, ("global", 0))

    def load(
        self, pc: int, active: Lanes, space: str | None, a: Any, offset: int, nbytes: int, v: int
    ) -> list[np.ndarray]:
        """ld: an array for each of ``v`` elements."""
        a = self.address(active, a, offset)
        return self.load_at(pc, active, space, a, nbytes, v)

    def load_at(
        self, pc: int, active: Lanes, space: str | None, a: Any, nbytes: int, v: int
    ) -> list[np.ndarray]:
        """The same from addresses."""
        if space is None:
            g = self.generic_space(a)
            if g is None:
                out = [np.empty(a.size, UNSIGNED[nbytes * 8]) for _ in range(v)]
                base = self.lanes_of(active)
                for k in np.unique(a >> i8(40)):
                    picked = np.flatnonzero((a >> i8(40)) == k)
                    s, b = self.window(int(k))
                    part = self.load_at(pc, base[picked], s, a[picked] - i8(b), nbytes, v)
                    for o, x in zip(out, part, strict=True):
                        o[picked] = x
                return out
            space, b = g
            if b:
                a = a - i8(b)
        if space == "global" or space == "const":
            tot = nbytes * v
            plan = self.global_plan(pc, active, a, tot, "read")
            if len(plan) == 1:
                b, _, o = plan[0]
                w, o = b.view(nbytes), o // nbytes if nbytes > 1 else o
                return [w[o + j] if j else w[o] for j in range(v)]
            out = [np.empty(a.size, UNSIGNED[nbytes * 8]) for _ in range(v)]
            for b, picked, o in plan:
                w, o = b.view(nbytes), o // nbytes
                for j in range(v):
                    out[j][picked] = w[o + j]
            return out
        if space == "shared":
            o = self.shared_index(pc, active, a, nbytes * v, False) // nbytes
            w = self.shared.views[nbytes]
            return [w[o + j] if j else w[o] for j in range(v)]
        if space == "local":
            o = self.local_index(pc, active, a, nbytes * v) // nbytes
            w = self.local_views[nbytes]
            return [w[o + j] for j in range(v)]
        if space == "param":
            if int(a.min()) < 0 or int(a.max()) + nbytes * v > self.program.param_size:
                self.fault(
                    OutOfBoundsError,
                    pc,
                    active,
                    (a < 0) | (a + nbytes * v > self.program.param_size),
                    a,
                    "out-of-bounds param read",
                )
            w = self.params[: self.params.size // nbytes * nbytes].view(UNSIGNED[nbytes * 8])
            return [w[a // nbytes + j] for j in range(v)]
        self.unsupported(pc, f"space {space}")

    def store(
        self,
        pc: int,
        active: Lanes,
        space: str | None,
        a: Any,
        offset: int,
        nbytes: int,
        values: list[np.ndarray] | None,
    ) -> None:
        """st: an array for each element."""
        a = self.address(active, a, offset)
        self.store_at(pc, active, space, a, nbytes, values)

    def store_at(
        self,
        pc: int,
        active: Lanes,
        space: str | None,
        a: Any,
        nbytes: int,
        values: list[np.ndarray] | None,
    ) -> None:
        """The same to addresses."""
        v = len(values)
        if space is None:
            g = self.generic_space(a)
            if g is None:
                base = self.lanes_of(active)
                for k in np.unique(a >> i8(40)):
                    picked = np.flatnonzero((a >> i8(40)) == k)
                    s, b = self.window(int(k))
                    self.store_at(
                        pc,
                        base[picked],
                        s,
                        a[picked] - i8(b),
                        nbytes,
                        [np.broadcast_to(x, a.shape)[picked] for x in values],
                    )
                return
            space, b = g
            if b:
                a = a - i8(b)
        if space == "global":
            plan = self.global_plan(pc, active, a, nbytes * v, "write")
            for b, picked, o in plan:
                w, o = b.view(nbytes), o // nbytes
                for j, x in enumerate(values):
                    w[o + j] = x if picked is None else np.broadcast_to(x, a.shape)[picked]
            return
        if space == "shared":
            o = self.shared_index(pc, active, a, nbytes * v, True, values=values) // nbytes
            w = self.shared.views[nbytes]
        elif space == "local":
            o = self.local_index(pc, active, a, nbytes * v) // nbytes
            w = self.local_views[nbytes]
        else:
            self.unsupported(pc, f"store to {space}")
        for j, x in enumerate(values):
            w[o + j] = x

    def atomic(
        self,
        pc: int,
        active: Lanes,
        space: str | None,
        a: Any,
        offset: int,
        op: str,
        dtype: str,
        x: Any,
        c: Any,
        ret: bool,
    ) -> Any:
        """atom and red: the old values."""
        a = self.address(active, a, offset)
        nbytes = BITS[dtype] // 8
        x = np.broadcast_to(np.asarray(x), a.shape)
        if space is None:
            g = self.generic_space(a)
            if g is None:
                self.unsupported(pc, "generic atomic over mixed spaces")
            space, b = g
            a = a - i8(b)
        if space == "shared":
            o = self.shared_index(pc, active, a, nbytes, True, True)
            return self.apply_atomic(self.shared.views[nbytes], o // nbytes, op, dtype, x, c, ret)
        old = np.empty(a.shape, UNSIGNED[nbytes * 8])
        for b, picked, o in self.global_plan(pc, active, a, nbytes, "atomic"):
            if picked is None:
                return self.apply_atomic(b.view(nbytes), o // nbytes, op, dtype, x, c, ret)
            cc = c if c is None or np.ndim(c) == 0 else c[picked]
            old[picked] = self.apply_atomic(
                b.view(nbytes), o // nbytes, op, dtype, x[picked], cc, ret
            )
        return old

    @staticmethod
    def atomic_function(op: str, dtype: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """The function (old, value) -> new of an atomic, on bits."""
        if dtype in ("bf16", "bf16x2"):
            g = {"add": np.add, "min": np.fmin, "max": np.fmax}[op]
            return lambda o, x: numerics.float_to_bfloat16(
                g(
                    numerics.bfloat16_to_float(np.ascontiguousarray(o).view(np.uint16)),
                    numerics.bfloat16_to_float(np.ascontiguousarray(x).view(np.uint16)),
                )
            ).view(o.dtype)
        t = NUMPY_TYPE[dtype]
        if op == "inc":
            return lambda o, x: np.where(o >= x, 0, o + 1).astype(o.dtype)
        if op == "dec":
            return lambda o, x: np.where((o == 0) | (o > x), x, o - 1).astype(o.dtype)
        if op == "exch":
            return lambda o, x: x
        g = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[op]
        return lambda o, x: g(
            np.ascontiguousarray(o).view(t), np.ascontiguousarray(x).view(t)
        ).view(o.dtype)

    def apply_atomic(
        self, view: np.ndarray, idx: np.ndarray, op: str, dtype: str, x: Any, c: Any, ret: bool
    ) -> np.ndarray | None:
        """Carry out an atomic on elements of a view; lanes with one address take turns."""
        x = np.ascontiguousarray(x)
        if (
            op != "cas"
            and not ret
            and op in ("add", "min", "max", "and", "or", "xor")
            and dtype not in ("bf16", "bf16x2", "f16x2")
        ):
            g = {
                "add": np.add,
                "min": np.minimum,
                "max": np.maximum,
                "and": np.bitwise_and,
                "or": np.bitwise_or,
                "xor": np.bitwise_xor,
            }[op]
            g.at(view.view(NUMPY_TYPE[dtype]), idx, x.view(NUMPY_TYPE[dtype]))
            return None
        # rounds: the k-th access to each address is applied in round k
        order = np.argsort(idx, kind="stable")
        s = idx[order]
        first = np.r_[True, s[1:] != s[:-1]]
        start = np.maximum.accumulate(np.where(first, np.arange(len(s)), 0))
        rank = np.empty(len(s), i8)
        rank[order] = np.arange(len(s)) - start
        old = np.empty(idx.shape, view.dtype)
        cc = None if c is None else np.broadcast_to(np.asarray(c), idx.shape)
        f = None if op == "cas" else self.atomic_function(op, dtype)
        for k in range(int(rank.max()) + 1):
            j = np.flatnonzero(rank == k)
            o = view[idx[j]]
            old[j] = o
            # cas d, [a], b, c : compare with b, swap in c
            view[idx[j]] = np.where(o == x[j], cc[j], o) if op == "cas" else f(o, x[j])
        return old
