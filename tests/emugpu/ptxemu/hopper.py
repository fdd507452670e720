"""Hopper: mbarrier, bulk (tensor) copies with an own tensor map, and wgmma.

Asynchronous effects happen as late as the program allows: TMA loads land when a wait on their
mbarrier first succeeds (the destination is poisoned at issue), wgmma reads its operands and writes its
accumulators at wgmma.wait_group, and bulk stores read shared memory at their wait.
"""

import struct

import numpy as np

from . import memory as M
from . import warp as W
from .numerics import POISON32, UINT, f2, f4, i4, i8, u1, u4, bf2f

SWZ = {"none": 0, "32B": 1, "64B": 2, "128B": 3}
# Own 128-byte tensor-map format (the real one is opaque): magic, address, dims, strides of dims 1..4, box, ...
TMAP = struct.Struct("<6sBBQ5I4Q5I5BBBB")
MAGIC = b"EMUTM1"
ELEM_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 4, 9: 8, 10: 2, 11: 4, 12: 4}
ELEM_FLOAT = {6, 7, 8, 9, 10, 11, 12}


def swizzle(addr, bits):
    """XOR address bits [4, 4 + bits) with bits [7, 7 + bits)."""
    return addr ^ (((addr >> 7) & ((1 << bits) - 1)) << 4)


class TensorMap:
    """What cuTensorMapEncodeTiled describes. dims and box are innermost first; strides in bytes, for dims 1..n-1."""

    def __init__(
        self, array, dims, strides, box, elem_bytes, swizzle="none", elem_strides=None, oob="zero"
    ):
        self.array, self.dims, self.box, self.es = array, tuple(dims), tuple(box), elem_bytes
        self.strides = (elem_bytes,) + tuple(strides)
        self.swizzle, self.oob = SWZ[swizzle], int(oob == "nan")
        self.elem_strides = tuple(elem_strides or (1,) * len(self.dims))
        self.addr = 0
        self.check()

    def check(self):
        if len(self.strides) != len(self.dims) or len(self.box) != len(self.dims):
            raise ValueError("dims, box and strides disagree")
        if any(s % 16 for s in self.strides[1:]):
            raise ValueError("global strides must be multiples of 16 bytes")
        if any(not 1 <= b <= 256 for b in self.box) or self.box[0] * self.es % 16:
            raise ValueError(
                "box dimensions must be 1..256 and the inner one a multiple of 16 bytes"
            )
        if self.swizzle and self.box[0] * self.es > 16 << self.swizzle:
            raise ValueError("inner box dimension exceeds the swizzle span")
        if any(s != 1 for s in self.elem_strides):
            raise ValueError("element strides are not modelled")

    @classmethod
    def of(cls, x, box, swizzle="none", oob="zero"):
        """A row-major array or tensor; box given outermost first, like x.shape."""
        es = x.element_size() if hasattr(x, "element_size") else x.itemsize
        st = [s * es for s in x.stride()] if hasattr(x, "element_size") else list(x.strides)
        return cls(x, tuple(x.shape)[::-1], st[::-1][1:], tuple(box)[::-1], es, swizzle, oob=oob)

    def encode(self, mem, temps):
        before = mem.next
        a = mem.register(self.array)
        if a >= before:
            temps.append(a)
        n = len(self.dims)
        pad = lambda t, k, v: tuple(t) + (v,) * (k - len(t))
        b = TMAP.pack(
            MAGIC,
            n,
            self.es,
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
    def decode(cls, blob):
        f = TMAP.unpack(bytes(blob[: TMAP.size]))
        if f[0] != MAGIC:
            return None
        t = cls.__new__(cls)
        n, t.es, t.addr = f[1], f[2], f[3]
        t.dims, t.strides, t.box = f[4 : 4 + n], (t.es,) + f[9 : 9 + n - 1], f[13 : 13 + n]
        t.elem_strides, t.swizzle, t.oob = f[18 : 18 + n], f[23], f[24]
        return t

    @staticmethod
    def replace(blob, field, ordn, val):
        """tensormap.replace on a 128-byte array."""
        f = list(TMAP.unpack(bytes(blob[: TMAP.size])))
        if f[0] != MAGIC:
            f = [MAGIC, 1, 0, 0] + [1] * 5 + [0] * 4 + [1] * 5 + [1] * 5 + [0, 0, 0]
        if field == "global_address":
            f[3] = val
        elif field == "rank":
            f[1] = val + 1
        elif field == "box_dim":
            f[13 + ordn] = val
        elif field == "global_dim":
            f[4 + ordn] = val
        elif field == "global_stride":
            f[9 + ordn] = val
        elif field == "element_stride":
            f[18 + ordn] = val
        elif field == "elemtype":
            f[2] = ELEM_BYTES[val]
        elif field == "swizzle_mode":
            f[23] = val
        elif field == "fill_mode":
            f[24] = val
        elif field not in ("interleave_layout", "swizzle_atomicity"):
            raise KeyError(field)
        b = TMAP.pack(*f)
        blob[: len(b)] = np.frombuffer(b, u1)

    @property
    def nbytes(self):
        return int(np.prod(self.box)) * self.es

    def elements(self, coords):
        """(byte offsets, in-bounds mask) of the box at `coords`, in shared-memory order."""
        off, ok = np.zeros((1,), i8), np.ones((1,), bool)
        for d in range(len(self.dims)):
            i = int(coords[d]) + np.arange(self.box[d], dtype=i8)
            o = (i >= 0) & (i < self.dims[d])
            off = (off[None, :] + (i * self.strides[d])[:, None]).reshape(-1)
            ok = (ok[None, :] & o[:, None]).reshape(-1)
        return off, ok

    def smem(self, dst):
        a = dst + np.arange(int(np.prod(self.box)), dtype=i8) * self.es
        return swizzle(a, self.swizzle) if self.swizzle else a


class MBar:
    __slots__ = ("count", "pending", "tx", "phase", "vc", "donevc", "queue")

    def __init__(self, count, W):
        self.count = self.pending = count
        self.tx, self.phase, self.queue = 0, 0, []
        self.vc, self.donevc = np.zeros(W, np.int32), np.zeros(W, np.int32)


class HopperMixin:
    def hopper_init(self):
        self.mb, self.mbw, self._fresh_mb, self.mb_spins = {}, [], False, 0
        self.wg_open, self.wg_cnt = [], np.zeros(self.L, i8)
        self.bulk_open, self.bulk_cnt = [], np.zeros(self.L, i8)

    # -- mbarrier --------------------------------------------------------------------------
    def mb_keys(self, pc, ix, a, off, write=False):
        """For the race detector init and inval are plain writes, every other operation is atomic."""
        a = self.shaddr(ix, a, off, True)
        self.sh_index(pc, ix, a, 8, True, not write)
        base = self.lanes if ix is None else ix
        return base, self.cta_of[base], a

    def mb_get(self, pc, lane, key):
        b = self.mb.get(key)
        if b is None:
            raise M.EmuError(
                f"{self.name}: mbarrier at shared offset {key[1]} is not initialised, "
                f"{self.thread_name(int(lane))}; {self.text(pc)}"
            )
        return b

    def mb_init(self, pc, ix, a, off, cnt):
        base, c, a = self.mb_keys(pc, ix, a, off, True)
        cnt = np.broadcast_to(np.asarray(cnt), base.shape)
        for l, cc, aa, n in zip(base, c, a, cnt):
            self.mb[(int(cc), int(aa))] = MBar(int(n), self.sh.nwarps)

    def mb_inval(self, pc, ix, a, off):
        base, c, a = self.mb_keys(pc, ix, a, off, True)
        for cc, aa in set(zip(c.tolist(), a.tolist())):
            b = self.mb.pop((cc, aa), None)
            if b is not None and any(ph >= b.phase for ph, _ in b.queue):
                self.rep.warnings.append(f"mbarrier {aa} invalidated with a TMA load in flight")

    def mb_complete(self, b):
        if b.pending == 0 and b.tx == 0:
            b.phase += 1
            b.pending = b.count
            b.donevc = b.vc.copy()
            self._fresh_mb = True
            self.mb_spins = 0

    def mb_arrive(self, pc, ix, a, off, cnt, tx, arrive=True):
        base, c, a = self.mb_keys(pc, ix, a, off)
        cnt = np.broadcast_to(np.asarray(cnt).astype(i8), base.shape)
        tx = np.broadcast_to(np.asarray(tx).astype(i8), base.shape)
        state = np.zeros(base.shape, np.uint64)
        bump = set()
        for j in range(base.size):
            cc = int(c[j])
            b = self.mb_get(pc, base[j], (cc, int(a[j])))
            state[j] = b.phase
            b.tx += int(tx[j])
            if self.sh.race and arrive:
                w = int(self.warp_of[base[j]])
                np.maximum(b.vc, self.sh.vc[cc, w], out=b.vc)
                bump.add((cc, w))
            if arrive:
                b.pending -= int(cnt[j])
                if b.pending < 0:
                    raise M.EmuError(
                        f"{self.name}: mbarrier at {int(a[j])} received more arrivals than its count {b.count}; {self.text(pc)}"
                    )
                self.mb_complete(b)
        for cc, w in bump:
            self.sh.bump(cc, w)
        return state

    def mb_wait(self, pc, ix, a, off, par, isparity, slot):
        """Blocking wait: lanes whose phase has not completed are parked at this pc."""
        base, c, a = self.mb_keys(pc, ix, a, off)
        par = np.broadcast_to(np.asarray(par).astype(i8), base.shape)
        ok = np.zeros(base.shape, bool)
        for k in np.unique(c * (1 << 20) + a):
            sel = np.flatnonzero(c * (1 << 20) + a == k)
            key = (int(k) >> 20, int(k) & 0xFFFFF)
            b = self.mb_get(pc, base[sel[0]], key)
            done = ((b.phase & 1) != (par[sel] & 1)) if isparity else (b.phase != par[sel])
            ok[sel] = done
            if done.any():
                self.mb_flush(key, b)
                if self.sh.race:
                    for w in np.unique(self.warp_of[base[sel[done]]]):
                        self.sh.acquire(key[0], int(w), b.donevc)
        if ok.all():
            self.r[slot][base] = True
            return None if ix is not None and not ix.size else pc + 1
        if ok.any():
            self.r[slot][base[ok]] = True
            self.add(pc + 1, base[ok])
        self.mbw.append((pc, base[~ok], slot))
        return None

    def mb_waiting(self):
        return bool(self.mbw)

    def mb_poll(self):
        """Wake parked waiters. Without any progress, let try_wait time out (return false) a few times."""
        if not self.mbw:
            self._fresh_mb = False
            return False
        w, self.mbw = self.mbw, []
        if self._fresh_mb:
            self._fresh_mb = False
            for pc, lanes, slot in w:
                self.add(pc, lanes)
            return True
        self.mb_spins += 1
        if self.mb_spins > 200:
            self.mbw = w
            return False
        for pc, lanes, slot in w:
            self.r[slot][lanes] = False
            self.add(pc + 1, lanes)
        return True

    def mb_describe(self):
        out = []
        for pc, lanes, slot in self.mbw:
            out.append(
                f"{lanes.size} threads (first {self.thread_name(int(lanes[0]))}) wait at {self.text(pc)}"
            )
        for (c, a), b in self.mb.items():
            out.append(
                f"mbarrier {a} of block {self.cta_name(c)}: phase {b.phase}, {b.pending} of {b.count} arrivals and {b.tx} bytes pending"
            )
        return out

    def mb_flush(self, key, b):
        for ph, fn in b.queue:
            if ph < b.phase:
                fn()
        b.queue = [q for q in b.queue if q[0] >= b.phase]

    def cp_mbar_arrive(self, pc, ix, a, off, noinc):
        """cp.async.mbarrier.arrive: modelled as completing the thread's copies and arriving at once."""
        self.cp_commit(ix)
        self.cp_wait(ix, 0)
        if not noinc:
            base, c, aa = self.mb_keys(pc, ix, a, off)
            for j in range(base.size):
                self.mb_get(pc, base[j], (int(c[j]), int(aa[j]))).pending += 1
        self.mb_arrive(pc, ix, a, off, 1, 0)

    # -- bulk copies -----------------------------------------------------------------------
    def bytes128(self, pc, lane, addr):
        """A writable view of the 128 bytes at a generic address."""
        k = int(addr) >> 40
        if k == 3:
            o = int(addr) - M.PARAM_WINDOW
            return self.params[o : o + 128]
        if k <= 1:
            a = np.array([int(addr) - k * M.SHARED_WINDOW], i8)
            trk, self.tracking = self.tracking, False
            g = int(self.sh_index(pc, np.array([lane]), a, 128, True)[0])
            self.tracking = trk
            if self.sh.init is not None:
                self.sh.init[g : g + 128] = True
            return self.sh.flat[g : g + 128]
        b, _, o = self.glob_plan(
            pc, np.array([lane]), np.array([int(addr)], i8), 128, "tensor map access"
        )[0]
        return b.raw[int(o[0]) : int(o[0]) + 128]

    def tmap(self, pc, lane, addr):
        t = TensorMap.decode(self.bytes128(pc, lane, addr))
        if t is None:
            raise M.EmuError(
                f"{self.name}: no tensor map at {int(addr):#x}, {self.thread_name(int(lane))}; {self.text(pc)}"
            )
        try:
            t.check()
        except ValueError as e:
            raise M.EmuError(f"{self.name}: bad tensor map: {e}; {self.text(pc)}")
        return t

    def tmap_mem(self, pc, lane, T, off, ok):
        """(element view of the buffer, element indices of the in-bounds part)."""
        b = self.mem.find(T.addr)
        o = off[ok] + (T.addr - (b.base if b else 0))
        if b is None or (o.size and (int(o.min()) < 0 or int(o.max()) + T.es > b.size)):
            raise M.OutOfBounds(
                f"kernel {self.name}: tensor map reaches outside its buffer [{self.mem.nearest(T.addr)}], "
                f"{self.thread_name(int(lane))}; {self.text(pc)}"
            )
        return b.view(T.es), o // T.es

    def tmap_replace(self, pc, ix, a, off, field, ordn, val, shared):
        base = self.lanes if ix is None else ix
        a = self.addr(ix, a, off)
        val = np.broadcast_to(np.asarray(val), base.shape)
        for j, lane in enumerate(base):
            TensorMap.replace(self.bytes128(pc, lane, a[j]), field, ordn, int(val[j]))

    def tmap_copy(self, pc, ix, da, doff, sa, soff):
        """tensormap.cp_fenceproxy (.sync.aligned): one copy per warp."""
        base = self.lanes if ix is None else ix
        d, s = self.addr(ix, da, doff), self.addr(ix, sa, soff)
        for j in np.flatnonzero(np.r_[True, base[1:] // 32 != base[:-1] // 32]):
            self.bytes128(pc, base[j], d[j])[:] = self.bytes128(pc, base[j], s[j])

    def sh_write_bytes(self, pc, lane, addrs, es, vals, track=True):
        """Write elements at shared offsets of the lane's CTA; vals None poisons."""
        ix = np.full(addrs.size, lane)
        trk, self.tracking = self.tracking, self.tracking and track
        gi = self.sh_index(pc, ix, addrs, es, True)
        self.tracking = trk
        if self.sh.race:
            g = gi // self.sh.G
            self.sh.unfenced[g] = self.sh.unfenced[g + max(1, es // self.sh.G) - 1] = False
        v = self.sh.views[es]
        v[gi // es] = (
            np.frombuffer(np.uint64(POISON32 << 32 | POISON32).tobytes(), UINT[es * 8])[0]
            if vals is None
            else vals
        )
        if vals is None and self.sh.init is not None:
            self.sh.init[gi[:, None] + np.arange(es)] = False
        elif self.sh.init is not None:
            self.sh.init[gi[:, None] + np.arange(es)] = True

    def async_index(self, pc, lane, a, es):
        trk, self.tracking = self.tracking, False
        gi = self.sh_index(pc, np.full(a.size, lane), a, es, False)
        self.tracking = trk
        if trk:
            self.sh.async_read(
                self,
                pc,
                gi,
                es,
                np.full(a.size, self.cta_of[lane]),
                np.full(a.size, self.warp_of[lane]),
            )
        return gi

    def proxy_fence(self, ix):
        if self.sh.race:
            base = self.lanes if ix is None else ix
            for k in np.unique(self.cta_of[base] * 64 + self.warp_of[base]):
                self.sh.proxy_fence(int(k) // 64, int(k) % 64)

    def tx_done(self, pc, lane, mkey, nbytes, fn):
        b = self.mb_get(pc, lane, mkey)
        b.queue.append((b.phase, fn))
        if self.sh.race:
            w = int(self.warp_of[lane])
            np.maximum(b.vc, self.sh.vc[mkey[0], w], out=b.vc)
            self.sh.bump(mkey[0], w)
        b.tx -= nbytes
        self.mb_complete(b)

    def tma_load(self, pc, ix, dst, doff, tm, toff, coords, mb, moff):
        base = self.lanes if ix is None else ix
        d = self.shaddr(ix, dst, doff, True)
        t = self.addr(ix, tm, toff)
        m = self.shaddr(ix, mb, moff, True)
        cs = [np.broadcast_to(np.asarray(x).astype(i4), base.shape) for x in coords]
        for j, lane in enumerate(base):
            T = self.tmap(pc, lane, t[j])
            if len(cs) != len(T.dims):
                raise M.EmuError(
                    f"{self.name}: {len(cs)} coordinates for a rank-{len(T.dims)} tensor map; {self.text(pc)}"
                )
            al = 128 if not T.swizzle else 128
            if int(d[j]) % al:
                raise M.Misaligned(
                    f"{self.name}: TMA destination {int(d[j])} is not {al}-byte aligned; {self.text(pc)}"
                )
            off, ok = T.elements([c[j] for c in cs])
            src, o = self.tmap_mem(pc, lane, T, off, ok)
            vals = np.full(
                off.shape,
                ({1: 0x7F, 2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0}[T.es] if T.oob else 0),
                UINT[T.es * 8],
            )
            vals[ok] = src[o]
            addrs = T.smem(int(d[j]))
            self.sh_write_bytes(pc, lane, addrs, T.es, None)
            self.tx_done(
                pc,
                lane,
                (int(self.cta_of[lane]), int(m[j])),
                T.nbytes,
                lambda lane=lane, addrs=addrs, T=T, vals=vals: self.sh_write_bytes(
                    pc, lane, addrs, T.es, vals, False
                ),
            )

    def tma_store(self, pc, ix, tm, toff, coords, src, soff, op=None):
        base = self.lanes if ix is None else ix
        s = self.shaddr(ix, src, soff, True)
        t = self.addr(ix, tm, toff)
        cs = [np.broadcast_to(np.asarray(x).astype(i4), base.shape) for x in coords]
        for j, lane in enumerate(base):
            T = self.tmap(pc, lane, t[j])
            off, ok = T.elements([c[j] for c in cs])
            addrs = T.smem(int(s[j]))

            def fn(lane=lane, addrs=addrs, T=T, off=off, ok=ok):
                gi = self.async_index(pc, lane, addrs, T.es)
                v = self.sh.views[T.es][gi // T.es]
                dst, o = self.tmap_mem(pc, lane, T, off, ok)
                if op is None:
                    dst[o] = v[ok]
                else:  # element type is not in our map: f32 or bf16
                    self.atom_apply(dst, o, op, {4: "f32", 2: "bf16"}[T.es], v[ok], None, False)

            self.bulk_open.append([int(lane), None, fn])

    def bulk_load(self, pc, ix, dst, doff, src, soff, size, mb, moff):
        base = self.lanes if ix is None else ix
        d, s, m = (
            self.shaddr(ix, dst, doff, True),
            self.addr(ix, src, soff),
            self.shaddr(ix, mb, moff, True),
        )
        size = np.broadcast_to(np.asarray(size).astype(i8), base.shape)
        for j, lane in enumerate(base):
            n = int(size[j])
            if n % 16 or int(d[j]) % 16 or int(s[j]) % 16:
                raise M.Misaligned(
                    f"{self.name}: cp.async.bulk needs 16-byte sizes and addresses; {self.text(pc)}"
                )
            a = np.arange(0, n, 4, dtype=i8)
            b, _, o = (
                self.glob_plan(pc, np.array([lane]), s[j : j + 1], n, "bulk read")[0]
                if n & (n - 1) == 0
                else self.mem.plan(s[j : j + 1], n)[0][0]
            )
            vals = b.view(4)[(int(o[0]) + a) // 4]
            self.sh_write_bytes(pc, lane, int(d[j]) + a, 4, None)
            self.tx_done(
                pc,
                lane,
                (int(self.cta_of[lane]), int(m[j])),
                n,
                lambda lane=lane, x=int(d[j]) + a, vals=vals: self.sh_write_bytes(
                    pc, lane, x, 4, vals, False
                ),
            )

    def bulk_store(self, pc, ix, dst, doff, src, soff, size):
        base = self.lanes if ix is None else ix
        d, s = self.addr(ix, dst, doff), self.shaddr(ix, src, soff, True)
        size = np.broadcast_to(np.asarray(size).astype(i8), base.shape)
        for j, lane in enumerate(base):
            n = int(size[j])
            pl, bad = self.mem.plan(d[j : j + 1], n)
            if pl is None:
                self.fault(
                    M.OutOfBounds,
                    pc,
                    np.array([lane]),
                    bad,
                    d[j : j + 1],
                    f"out-of-bounds bulk store of {n} bytes",
                )

            def fn(lane=lane, pl=pl, a=int(s[j]) + np.arange(0, n, 4, dtype=i8)):
                gi = self.async_index(pc, lane, a, 4)
                b, _, o = pl[0]
                b.view(4)[(int(o[0]) + a - a[0]) // 4] = self.sh.views[4][gi // 4]

            self.bulk_open.append([int(lane), None, fn])

    def bulk_commit(self, ix):
        base = self.lanes if ix is None else ix
        s = set(base.tolist())
        for rec in self.bulk_open:
            if rec[1] is None and rec[0] in s:
                rec[1] = int(self.bulk_cnt[rec[0]])
        self.bulk_cnt[base] += 1

    def bulk_wait(self, ix, keep):
        base = self.lanes if ix is None else ix
        s = set(base.tolist())
        left = []
        for rec in self.bulk_open:
            if rec[0] in s and rec[1] is not None and rec[1] < self.bulk_cnt[rec[0]] - keep:
                rec[2]()
            else:
                left.append(rec)
        self.bulk_open = left

    def finish_async(self):
        if self.bulk_open:
            self.rep.warnings.append(
                "kernel ended with bulk stores that were never waited for (performed at exit)"
            )
            for rec in self.bulk_open:
                rec[2]()
        if self.wg_open:
            self.rep.warnings.append(
                "kernel ended with wgmma operations that were never waited for"
            )
        for (c, a), b in self.mb.items():
            if b.queue and any(ph >= b.phase for ph, _ in b.queue):
                self.rep.warnings.append(f"mbarrier {a}: TMA load never completed")
                break

    # -- wgmma -----------------------------------------------------------------------------
    def whole_groups(self, pc, ix):
        if ix is None:
            if self.T % 128:
                raise M.EmuError(
                    f"{self.name}: wgmma in a block of {self.T} threads; {self.text(pc)}"
                )
            return
        if ix.size % 128 == 0:
            x = ix.reshape(-1, 128)
            if ((x[:, 127] - x[:, 0] == 127) & (self.tid[x[:, 0]] % 128 == 0)).all():
                return
        from .machine import Diverged

        g = self.cta_of[ix] * 64 + self.tid[ix] // 128
        n = np.bincount(g, minlength=self.ncta * 64)
        raise Diverged(pc, ix[n[g] != 128])

    def wgmma(self, pc, ix, spec):
        """spec: dict built by the code generator; operand values captured at issue, memory read at the wait."""
        base = self.lanes if ix is None else ix
        if self.eager:
            self.wg_run(base, spec, pc)
        else:
            self.wg_open.append([base, None, spec, pc])

    def wg_commit(self, ix):
        base = self.lanes if ix is None else ix
        if ix is None:
            for rec in self.wg_open:
                if rec[1] is None:
                    rec[1] = self.wg_cnt[rec[0]].copy()
        else:
            act = self.act(ix)
            out = []
            for rec in self.wg_open:
                if rec[1] is None:
                    m = act[rec[0]]
                    if m.all():
                        rec[1] = self.wg_cnt[rec[0]].copy()
                    elif m.any():
                        out += [
                            self.wg_part(rec, m, self.wg_cnt[rec[0][m]].copy()),
                            self.wg_part(rec, ~m, None),
                        ]
                        continue
                out.append(rec)
            self.wg_open = out
        self.wg_cnt[base] += 1

    @staticmethod
    def wg_part(rec, m, grp):
        s = dict(rec[2])
        for k in ("adesc", "bdesc", "scaled"):
            if isinstance(s.get(k), np.ndarray) and s[k].ndim:
                s[k] = s[k][m]
        return [rec[0][m], grp, s, rec[3]]

    def wg_wait(self, ix, keep):
        act = None if ix is None else self.act(ix)
        left = []
        for rec in self.wg_open:
            base, grp, spec, pc = rec
            if grp is None:
                left.append(rec)
                continue
            done = grp < self.wg_cnt[base] - keep
            if act is not None:
                done &= act[base]
            if done.all():
                self.wg_run(base, spec, pc)
            elif done.any():
                d = self.wg_part(rec, done, None)
                self.wg_run(d[0], d[2], pc)
                left.append(self.wg_part(rec, ~done, grp[~done]))
            else:
                left.append(rec)
        self.wg_open = left

    def desc_tile(self, pc, lanes, desc, rows, K, es, trans, isa=False):
        """Elements (G, rows, K) of the operand a descriptor names; rows is M or N."""
        d = desc.astype(np.uint64).view(i8)[:, None, None]
        start = (d & 0x3FFF) << 4
        lbo = ((d >> 16) & 0x3FFF) << 4
        sbo = ((d >> 32) & 0x3FFF) << 4
        mode = (desc.astype(np.uint64) >> np.uint64(62)).astype(int)
        if len(set(mode.tolist())) != 1:
            raise M.EmuError("mixed swizzle modes")
        if (((d >> 49) & 7) != 0).any():
            raise M.EmuError(
                f"{self.name}: descriptor base offset is not modelled; {self.text(pc)}"
            )
        bits = {0: 0, 1: 3, 2: 2, 3: 1}[int(mode[0])]
        r = np.arange(rows, dtype=i8)[None, :, None]
        k = np.arange(K, dtype=i8)[None, None, :]
        t = 16 // es  # elements per 16 bytes
        if not trans:  # K-major
            if bits == 0:
                a = start + (r // 8) * sbo + (r % 8) * 16 + (k // t) * lbo + (k % t) * es
            else:
                a = start + (r // 8) * sbo + (r % 8) * (16 << bits) + k * es
        else:  # MN-major
            if bits == 0:
                a = start + (r // t) * sbo + (r % t) * es + (k // 8) * lbo + (k % 8) * 16
            else:
                span = t << bits
                a = (
                    start
                    + (r // span) * lbo
                    + (r % span) * es
                    + (k // 8) * sbo
                    + (k % 8) * (16 << bits)
                )
        if bits:
            a = swizzle(a, bits)
        G = a.shape[0]
        trk, self.tracking = self.tracking, False
        ix = np.repeat(lanes, rows * K)
        gi = self.sh_index(pc, ix, a.reshape(-1), es, False)
        self.tracking = trk
        if trk:  # every warp reads all of B, and its own 16 rows of A
            g3 = np.broadcast_to(gi.reshape(G, rows, K), (G, rows, K))
            for w in range(4):
                x = (g3[:, 16 * w : 16 * w + 16] if isa else g3).reshape(-1)
                n = x.size // G
                self.sh.async_read(
                    self,
                    pc,
                    x,
                    es,
                    np.repeat(self.cta_of[lanes], n),
                    np.repeat(self.warp_of[lanes] + w, n),
                )
        return self.sh.views[es][gi // es].reshape(G, rows, K)

    def wg_run(self, base, s, pc):
        G = base.size // 128
        lead = base[::128]
        N, K, aty, bty, dty = s["N"], s["K"], s["aty"], s["bty"], s["dty"]
        es = {"f16": 2, "bf16": 2, "tf32": 4}.get(aty, 1)
        first = lambda x: np.broadcast_to(np.asarray(x), base.shape)[::128]
        if s["aregs"] is not None:
            A = W.frag_a([self.r[k][base] for k in s["aregs"]], aty, 16).reshape(G, 64, K)
        else:
            bits = self.desc_tile(pc, lead, first(s["adesc"]), 64, K, es, s["ta"], True)
            A = W.decode(bits, aty)
        B = W.decode(self.desc_tile(pc, lead, first(s["bdesc"]), N, K, es, s["tb"]), bty)
        if s["sa"] == -1:
            A = -A
        if s["sb"] == -1:
            B = -B
        P = np.matmul(A, B.transpose(0, 2, 1))
        regs = s["dregs"]
        f16d = dty == "f16"
        old = np.stack([self.r[k][base] for k in regs])
        if f16d:
            o = (
                old[..., None]
                .view(f2)
                .astype(f4)
                .reshape(N // 8, 2, G, 4, 8, 4, 2)
                .transpose(2, 3, 1, 4, 0, 5, 6)
            )
        else:
            o = (
                (old.view(f4) if dty == "f32" else old.view(i4))
                .reshape(N // 8, 2, 2, G, 4, 8, 4)
                .transpose(3, 4, 1, 5, 0, 6, 2)
            )
        o = o.reshape(G, 64, N)
        sd = first(s["scaled"]).astype(bool)[:, None, None]
        D = (
            P.astype(o.dtype) + np.where(sd, o, o.dtype.type(0))
            if not sd.all()
            else P.astype(o.dtype) + o
        )
        x = D.reshape(G, 4, 2, 8, N // 8, 4, 2)
        if f16d:
            y = (
                np.ascontiguousarray(x.astype(f2).transpose(4, 2, 0, 1, 3, 5, 6))
                .view(u4)
                .reshape(len(regs), -1)
            )
        else:
            y = (
                np.ascontiguousarray(x.transpose(4, 2, 6, 0, 1, 3, 5))
                .view(u4)
                .reshape(len(regs), -1)
            )
        full = base.size == self.L
        for k, v in zip(regs, y):
            if full:
                self.r[k] = v.copy()
            else:
                self.r[k][base] = v
