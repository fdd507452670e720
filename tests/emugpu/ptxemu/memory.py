"""Address spaces: registered global buffers, per-CTA shared memory (poison, init and race tracking)."""

import bisect
import ctypes

import numpy as np

from .numerics import u1, u4, i8, UINT, POISON32

SHARED_WINDOW = 0x0100_0000_0000
LOCAL_WINDOW = 0x0200_0000_0000
PARAM_WINDOW = 0x0300_0000_0000
WINDOW = 1 << 40
GLOBAL_BASE = 0x7000_0000_0000


class EmuError(Exception):
    pass


class OutOfBounds(EmuError):
    pass


class Misaligned(EmuError):
    pass


class RaceError(EmuError):
    pass


class UninitError(EmuError):
    pass


class Deadlock(EmuError):
    pass


class Buffer:
    def __init__(self, base, raw, name, keep):
        self.base, self.raw, self.name, self.keep = base, raw, name, keep
        self.size = raw.nbytes
        self.end = base + self.size
        self._views = {}

    def view(self, nb):
        v = self._views.get(nb)
        if v is None:
            v = self._views[nb] = self.raw[: self.size // nb * nb].view(UINT[nb * 8])
        return v

    def __repr__(self):
        return f"{self.name}[{self.base:#x}..{self.end:#x}) {self.size} bytes"


def _extent(x):
    """(flat uint8 view over the bytes an array or tensor spans, misalignment to reproduce)."""
    if hasattr(x, "data_ptr"):  # torch CPU tensor
        if x.device.type != "cpu":
            raise TypeError("only CPU tensors")
        it, lo, hi = x.element_size(), 0, 0
        for n, s in zip(x.shape, x.stride()):
            if n == 0:
                return np.empty(0, u1), 0
            lo, hi = lo + min(0, (n - 1) * s), hi + max(0, (n - 1) * s)
        start, nb = x.data_ptr() + lo * it, (hi - lo + 1) * it
        mis = (x.storage_offset() + lo) * it % 256
    else:
        if x.size == 0:
            return np.empty(0, u1), 0
        a, b = np.lib.array_utils.byte_bounds(x)
        start, nb = a, b - a
        own = x
        while isinstance(own.base, np.ndarray):
            own = own.base
        mis = (a - np.lib.array_utils.byte_bounds(own)[0]) % 256
    raw = np.frombuffer((ctypes.c_uint8 * nb).from_address(start), u1)
    raw.flags.writeable = True
    return raw, mis


class GlobalMemory:
    """A flat 64-bit address space; arrays are registered in place (zero copy), with gaps in between."""

    def __init__(self):
        self.bufs, self.bases, self.next = [], [], GLOBAL_BASE
        self.known = {}

    def register(self, x, name=None):
        raw, mis = _extent(x)
        key = (raw.ctypes.data, raw.nbytes)
        if key in self.known:
            return self.known[key].base
        base = self.next + mis
        b = Buffer(base, raw, name or f"buf{len(self.bufs)}", x)
        self.next = (base + raw.nbytes + 0x10000 + 0xFFF) & ~0xFFF
        self.bufs.append(b)
        self.bases.append(base)
        self.known[key] = b
        return base

    def release(self, bases):
        keep = [b for b in self.bufs if b.base not in bases]
        self.bufs, self.bases = keep, [b.base for b in keep]
        self.known = {k: b for k, b in self.known.items() if b.base not in bases}

    def find(self, addr):
        i = bisect.bisect_right(self.bases, addr) - 1
        return self.bufs[i] if i >= 0 else None

    def nearest(self, addr):
        i = bisect.bisect_right(self.bases, addr) - 1
        c = self.bufs[max(0, i) : i + 2]
        out = []
        for b in c:
            out.append(f"{b!r} (offset {addr - b.base:+d})")
        return "; ".join(out) or "no buffers registered"

    def plan(self, a, nb):
        """Split addresses by buffer: [(buffer, selector or None, byte offsets)], bad mask or None."""
        lo, hi = int(a.min()), int(a.max())
        b = self.find(lo)
        if b is not None and hi + nb <= b.end and lo >= b.base:
            return [(b, None, a - i8(b.base))], None
        bi = np.searchsorted(np.array(self.bases, i8), a, "right") - 1
        ends = np.array([b.end for b in self.bufs] or [0], i8)
        bad = (bi < 0) | (a + nb > ends[np.maximum(bi, 0)])
        if bad.any():
            return None, bad
        return [
            (self.bufs[k], sel, a[sel] - i8(self.bufs[k].base))
            for k in np.unique(bi)
            for sel in [np.flatnonzero(bi == k)]
        ], None


class Shared:
    """Shared memory of a batch of CTAs, with optional happens-before race detection.

    Race detection keeps, per 2-byte granule, the last writer warp and clock and a read clock per
    warp, and a vector clock per warp that barriers (and mbarriers) join.
    """

    G = 2

    def __init__(self, ncta, size, nwarps, race=None, init=None):
        self.size, self.ncta, self.nwarps = size, ncta, nwarps
        self.stride = max(16, (size + 15) // 16 * 16)
        self.flat = np.full(ncta * self.stride // 4, POISON32, u4).view(u1)
        self.views = {nb: self.flat.view(UINT[nb * 8]) for nb in (1, 2, 4, 8)}
        self.init = np.zeros(ncta * self.stride, bool) if init else None
        self.initmode = init
        self.race = race
        self.races, self.uninit = [], []
        if race:
            ng = ncta * self.stride // self.G
            self.wclk = np.zeros(ng, np.int32)
            self.wwarp = np.full(ng, -1, np.int16)
            self.wpc = np.full(ng, -1, np.int32)
            self.watom = np.zeros(ng, bool)
            self.rclk = np.zeros((ng, nwarps), np.int32)
            self.rpc = np.full(ng, -1, np.int32)
            self.unfenced = np.zeros(
                ng, bool
            )  # generic-proxy write with no fence.proxy.async since
            self.vc = np.zeros((ncta, nwarps, nwarps), np.int32)
            self.vc[:, np.arange(nwarps), np.arange(nwarps)] = 1

    # vector clocks ------------------------------------------------------------------------
    def join(self, cta, warps=None):
        """A barrier among `warps` of `cta` (None: all; cta None: every CTA)."""
        if not self.race:
            return
        W = self.nwarps
        if cta is None:
            self.vc[:] = self.vc.max(1, keepdims=True)
            self.vc[:, np.arange(W), np.arange(W)] += 1
        else:
            w = np.arange(W) if warps is None else np.asarray(warps)
            self.vc[cta, w] = self.vc[cta, w].max(0)
            self.vc[cta, w, w] += 1

    def clock_of(self, cta, warp):
        return self.vc[cta, warp].copy()

    def acquire(self, cta, warp, clk):
        np.maximum(self.vc[cta, warp], clk, out=self.vc[cta, warp])

    def bump(self, cta, warp):
        self.vc[cta, warp, warp] += 1

    def proxy_fence(self, cta, warp):
        """fence.proxy.async by one warp: covers every write that happens before it."""
        n = self.stride // self.G
        sl = slice(cta * n, cta * n + n)
        lw = self.wwarp[sl]
        seen = (lw >= 0) & (self.vc[cta, warp][np.maximum(lw, 0)] >= self.wclk[sl])
        self.unfenced[sl] &= ~seen

    def async_read(self, S, pc, gi, nb, cta, warp):
        """Reads by wgmma or bulk copies: also check that generic writes were fenced to the async proxy."""
        self.track(S, pc, gi, nb, cta, warp, False)
        if not self.race:
            return
        bad = self.unfenced[gi // self.G]
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            rec = dict(
                kind="race: missing fence.proxy.async",
                pc=pc,
                ins=S.text(pc),
                other=S.text(int(self.wpc[gi[j] // self.G])),
                cta=S.cta_name(int(cta[j])),
                warp=int(warp[j]),
                offset=int(gi[j] % self.stride),
                count=int(bad.sum()),
            )
            if self.race == "raise":
                raise RaceError(f"{S.name}: {rec}")
            if not any(x["pc"] == pc and x["kind"] == rec["kind"] for x in self.races):
                self.races.append(rec)

    def track(self, S, pc, gi, nb, cta, warp, write, atomic=False, xs=None):
        """gi: flat byte index per access; cta/warp: arrays of the accessing thread; xs: values stored.

        Unordered writes of the same value by two warps are not reported (replicated layouts do that).
        """
        if self.init is not None:
            k = gi[:, None] + np.arange(nb)
            if write:
                self.init[k] = True
            else:
                bad = ~self.init[k].all(1)
                if bad.any():
                    j = int(np.flatnonzero(bad)[0])
                    rec = dict(
                        kind="uninitialised shared read",
                        pc=pc,
                        ins=S.text(pc),
                        cta=S.cta_name(int(cta[j])),
                        warp=int(warp[j]),
                        offset=int(gi[j] % self.stride),
                        count=int(bad.sum()),
                    )
                    if self.initmode == "raise":
                        raise UninitError(f"{S.name}: {rec}")
                    if not any(x["pc"] == pc for x in self.uninit):
                        self.uninit.append(rec)
        if not self.race:
            return
        ng = max(1, nb // self.G)
        g = (gi[:, None] // self.G + np.arange(ng)).reshape(-1)
        c = np.repeat(cta, ng)
        w = np.repeat(warp, ng)
        own = self.vc[c, w, w]
        lw = self.wwarp[g]
        bad = (lw >= 0) & (lw != w) & (self.vc[c, w, np.maximum(lw, 0)] < self.wclk[g])
        if atomic:
            bad &= ~self.watom[g]
        kind = "write-after-write" if write else "read-after-write"
        other = self.wpc[g]
        if write and xs is not None and bad.any():
            u = nb // len(xs)
            same = np.ones(len(gi), bool)
            for j, x in enumerate(xs):
                same &= self.views[u][gi // u + j] == x
            bad &= ~np.repeat(same, ng)
        if write:
            if not atomic:
                rb = self.rclk[g] > self.vc[c, w]
                rb[np.arange(len(w)), w] = False
                rb = rb.any(1)
                if rb.any() and not bad.any():
                    kind, other = "write-after-read", self.rpc[g]
                bad = bad | rb
            self.wwarp[g] = w
            self.unfenced[g] = True
            if not atomic:  # two warps, one instruction, same address
                clash = self.wwarp[g] != w
                if clash.any() and xs is not None:
                    u = nb // len(xs)
                    same = np.ones(len(gi), bool)
                    for j, x in enumerate(xs):
                        tmp = self.views[u].copy()
                        tmp[gi // u + j] = x
                        same &= tmp[gi // u + j] == x
                    clash &= ~np.repeat(same, ng)
                if clash.any() and not bad.any():
                    other = np.full_like(other, pc)
                bad = bad | clash
            self.wclk[g] = own
            self.wpc[g] = pc
            self.watom[g] = atomic
        else:
            self.rclk[g, w] = own
            self.rpc[g] = pc
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            rec = dict(
                kind="race: " + kind,
                pc=pc,
                ins=S.text(pc),
                other=S.text(int(other[j])),
                cta=S.cta_name(int(c[j])),
                warp=int(w[j]),
                other_warp=int(lw[j]),
                offset=int(g[j] * self.G % self.stride),
                count=int(bad.sum()),
            )
            if self.race == "raise":
                raise RaceError(f"{S.name}: {rec}")
            if not any(x["pc"] == pc and x["kind"] == rec["kind"] for x in self.races):
                self.races.append(rec)
