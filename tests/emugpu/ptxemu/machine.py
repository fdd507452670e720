"""Execution: module, launch, and the SIMT scheduler for a batch of CTAs."""

import struct
import time
from dataclasses import dataclass, field

import numpy as np

from . import hopper, memory as M, numerics as N, warp as W
from .codegen import EXIT, Gen, Unsupported
from .numerics import NPTY, POISON32, UINT, i4, i8, u1, u4, u8
from .parser import BITS, Flattener, Parsed, PTXError

POISON = {
    1: False,
    8: np.uint8(0xFF),
    16: np.uint16(0x7FFF),
    32: np.uint32(POISON32),
    64: np.uint64(0x7FF7FFFF7FFF7FFF),
}
REGDT = {1: bool, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


class Diverged(Exception):
    """A warp collective was reached by only part of a warp (`bad`: lanes that must wait)."""

    def __init__(self, pc, bad):
        self.pc, self.bad = pc, bad


class DeviceTrap(M.EmuError):
    pass


@dataclass
class Report:
    kernel: str
    seconds: float = 0.0
    instructions: int = 0  # instruction issues (each over up to max_lanes lanes)
    segments: int = 0
    lanes: int = 0
    races: list = field(default_factory=list)
    uninit: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    shared_bytes: int = 0
    limit: float = field(default=0.0, repr=False)


class Module:
    def __init__(self, parsed):
        self.parsed = parsed
        self.mem = M.GlobalMemory()
        self.globals, self.gaddr, self.progs = {}, {}, {}
        for v in parsed.vars.values():
            if v.space in ("global", "const") and v.size:
                a = np.zeros(max(v.size, 1), u1)
                if v.init:
                    a[:] = np.frombuffer(v.init, u1)[: v.size]
                self.globals[v.name] = a
                self.gaddr[v.name] = self.mem.register(a, v.name)
        for v in parsed.vars.values():
            for off, sym, es in v.relocs or []:
                nm = sym.replace("generic(", "").rstrip(")")
                base, _, add = nm.partition("+")
                if base in self.gaddr:
                    val = self.gaddr[base] + (int(add) if add else 0)
                    self.globals[v.name][off : off + es] = np.frombuffer(
                        val.to_bytes(8, "little")[:es], u1
                    )

    @classmethod
    def from_ptx(cls, text):
        return cls(Parsed(text))

    @property
    def kernels(self):
        return [f.name for f in self.parsed.funcs.values() if f.is_entry]

    def program(self, kernel):
        if kernel not in self.progs:
            if kernel not in self.parsed.funcs:
                raise PTXError(f"no kernel {kernel}; have {self.kernels}")
            p = Flattener(self.parsed, kernel).program()
            al = 1024
            p.shared_static_aligned = (
                (p.shared_static + al - 1) // al * al if p.shared_static else 0
            )
            p.globals = self.gaddr
            self.progs[kernel] = (p, Gen(p))
        return self.progs[kernel]

    def unsupported(self, kernel):
        """[(line, text, reason)] for instructions of `kernel` that would raise if executed."""
        prog, gen = self.program(kernel)
        out = []
        for pc, ins in enumerate(prog.ins):
            if ins.parts[0] in ("bra", "ret", "exit", "trap", "brkpt"):
                continue
            for mode in ("full", "masked"):
                try:
                    gen.instr(ins, pc, mode)
                except Exception as e:
                    out.append((ins.line, ins.text, str(e)))
                    break
        return out

    def _marshal(self, prog, args, temps):
        buf = bytearray(prog.param_size)
        if len(args) > len(prog.params):
            raise TypeError(f"{prog.name}: {len(args)} arguments for {len(prog.params)} parameters")
        for a, (nm, off, size, al) in zip(args, prog.params):
            if hasattr(a, "data_ptr") or (isinstance(a, np.ndarray) and a.ndim and size == 8):
                before = self.mem.next
                p = self.mem.register(a, nm)
                if p >= before:
                    temps.append(p)
                b = struct.pack("<Q", p)
            elif isinstance(a, hopper.TensorMap):
                b = a.encode(self.mem, temps)
            elif isinstance(a, (bytes, bytearray)):
                b = bytes(a)
            elif isinstance(a, (np.generic, np.ndarray)):
                b = a.tobytes()
            elif isinstance(a, bool) or isinstance(a, int):
                b = (a & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
            elif isinstance(a, float):
                b = (
                    struct.pack("<f" if size == 4 else "<d", a)
                    if size != 2
                    else np.float16(a).tobytes()
                )
            elif a is None:
                b = bytes(size)
            else:
                raise TypeError(f"argument {nm}: {type(a)}")
            if len(b) != size:
                raise TypeError(
                    f"{prog.name}: argument {nm} has {len(b)} bytes, parameter has {size}"
                )
            buf[off : off + size] = b
        if len(args) < len(prog.params):
            raise TypeError(f"{prog.name}: {len(args)} arguments for {len(prog.params)} parameters")
        return np.frombuffer(bytes(buf) + bytes(16), u1)

    def launch(
        self,
        kernel,
        grid,
        block,
        args,
        smem_bytes=0,
        *,
        racecheck=None,
        initcheck=None,
        schedule="lockstep",
        max_lanes=4096,
        max_issues=None,
        eager_wgmma=False,
    ):
        """Run `kernel`. Arrays (NumPy or CPU torch) are used in place.

        racecheck / initcheck: None, 'record' or 'raise'.  schedule: 'lockstep' (all warps advance together,
        fastest), 'warp-asc' or 'warp-desc' (one warp at a time runs until it blocks).
        eager_wgmma: run wgmma at issue instead of at its wait. By the ISA registers of a pending wgmma must not be
        touched, but ptxas accepts copies of them (Triton emits these for f16 accumulators).
        max_issues: instruction budget; exceeding it raises Deadlock (a livelock guard).
        """
        grid = (tuple(grid) + (1, 1, 1))[:3] if not isinstance(grid, int) else (grid, 1, 1)
        block = (tuple(block) + (1, 1, 1))[:3] if not isinstance(block, int) else (block, 1, 1)
        prog, gen = self.program(kernel)
        rep = Report(kernel)
        rep.limit = max_issues or float("inf")
        t0 = time.time()
        temps = []
        params = self._marshal(prog, args, temps)
        nth = block[0] * block[1] * block[2]
        if nth > 1024 or nth < 1:
            raise PTXError(f"block of {nth} threads")
        need = prog.attrs.get("reqntid")
        if need and nth != int(np.prod(need)):
            raise PTXError(f"{kernel}: block of {nth} threads, but .reqntid {need}")
        most = prog.attrs.get("maxntid")
        if most and nth > int(np.prod(most)):
            raise PTXError(f"{kernel}: block of {nth} threads, but .maxntid {most}")
        T = (nth + 31) // 32 * 32
        dyn = smem_bytes
        shsize = (prog.shared_static_aligned if prog.extern_shared else prog.shared_static) + dyn
        rep.shared_bytes = shsize
        csz = 1
        if prog.attrs.get("reqnctapercluster"):
            for c in prog.attrs["reqnctapercluster"]:
                csz *= c
        if csz > 1:
            rep.warnings.append(f"cluster size {csz} not modelled (treated as 1)")
        n = grid[0] * grid[1] * grid[2]
        per = max(1, max_lanes // T)
        try:
            with np.errstate(all="ignore"):
                for c0 in range(0, n, per):
                    b = Batch(
                        self,
                        prog,
                        gen,
                        grid,
                        block,
                        np.arange(c0, min(n, c0 + per)),
                        params,
                        shsize,
                        dyn,
                        racecheck,
                        initcheck,
                        schedule,
                        rep,
                    )
                    b.eager = eager_wgmma
                    b.run()
                    rep.races += b.sh.races
                    rep.uninit += b.sh.uninit
        finally:
            self.mem.release(set(temps))
        rep.seconds = time.time() - t0
        return rep


class Group:
    __slots__ = ("pc", "ix", "parked", "rank", "age")

    def __init__(self, pc, ix, parked=False, rank=0):
        self.pc, self.ix, self.parked, self.rank, self.age = pc, ix, parked, rank, 0


class Batch(hopper.HopperMixin):
    """Registers, shared memory and scheduler state of the CTAs executed together (`S` in generated code)."""

    def __init__(
        self, mod, prog, gen, grid, block, ctas, params, shsize, dyn, race, init, schedule, rep
    ):
        self.mod, self.prog, self.gen, self.name = mod, prog, gen, prog.name
        self.mem = mod.mem
        self.grid, self.block, self.ctas = grid, block, ctas
        self.rep = rep
        nth = block[0] * block[1] * block[2]
        T = (nth + 31) // 32 * 32
        self.T, self.ncta = T, len(ctas)
        L = self.L = T * self.ncta
        self.lanes = np.arange(L)
        self.cta_of = self.lanes // T
        self.tid = self.lanes % T
        self.warp_of = self.tid // 32
        self.laneid = self.lanes % 32
        self.wbase = self.lanes - self.laneid
        self.live = self.tid < nth
        self.nlive = self.live.reshape(self.ncta, T).sum(1)
        self.params = params
        self.sh = M.Shared(self.ncta, shsize, T // 32, race, init)
        self.tracking = bool(race or init)
        self.shbase = self.cta_of.astype(i8) * self.sh.stride
        ls = (prog.local_size + 15) // 16 * 16
        self.lstride = ls
        self.local = np.full(max(1, L * ls // 4), POISON32, u4).view(u1)
        self.lviews = {
            nb: self.local[: self.local.nbytes // nb * nb].view(UINT[nb * 8]) for nb in (1, 2, 4, 8)
        }
        self.schedule = schedule
        self.groups, self.bars = [], {}
        self.cp_open, self.cp_cnt = [], np.zeros(L, i8)
        self.clock = 0
        self._whole = self._act_ix = self._conv_ix = None
        self.hopper_init()
        self.init_regs(dyn)

    # -- registers -------------------------------------------------------------------------
    def init_regs(self, dyn):
        L = self.L
        self.r = [None] * self.prog.nregs
        for i, b in enumerate(self.prog.regbits):
            self.r[i] = np.full(L, POISON[b], REGDT[b])
        bx, by, bz = self.block
        gx, gy, gz = self.grid
        lin = self.ctas[self.cta_of]
        t = self.tid
        vals = {
            "%tid.x": t % bx,
            "%tid.y": t // bx % by,
            "%tid.z": t // (bx * by),
            "%ntid.x": bx,
            "%ntid.y": by,
            "%ntid.z": bz,
            "%ctaid.x": lin % gx,
            "%ctaid.y": lin // gx % gy,
            "%ctaid.z": lin // (gx * gy),
            "%nctaid.x": gx,
            "%nctaid.y": gy,
            "%nctaid.z": gz,
            "%laneid": self.laneid,
            "%warpid": self.warp_of,
            "%nwarpid": self.T // 32,
            "%smid": lin % 108,
            "%nsmid": 108,
            "%gridid": 1,
            "%clock": 0,
            "%clock64": 0,
            "%globaltimer": 0,
            "%clock_hi": 0,
            "%lanemask_eq": 1 << self.laneid,
            "%lanemask_lt": (1 << self.laneid) - 1,
            "%lanemask_le": (2 << self.laneid) - 1,
            "%lanemask_gt": 0xFFFFFFFF & ~((2 << self.laneid) - 1),
            "%lanemask_ge": 0xFFFFFFFF & ~((1 << self.laneid) - 1),
            "%dynamic_smem_size": dyn,
            "%total_smem_size": self.sh.size,
            "%cluster_ctarank": 0,
            "%cluster_nctarank": 1,
            "%is_explicit_cluster": 0,
        }
        for ax in "xyz":
            vals[f"%cluster_ctaid.{ax}"] = 0
            vals[f"%cluster_nctaid.{ax}"] = 1
            vals[f"%clusterid.{ax}"] = vals[f"%ctaid.{ax}"]
            vals[f"%nclusterid.{ax}"] = vals[f"%nctaid.{ax}"]
        for nm, reg in self.prog.special.items():
            if nm not in vals:
                raise PTXError(f"special register {nm} is not modelled")
            self.r[reg.slot] = np.broadcast_to(np.asarray(vals[nm]), (L,)).astype(REGDT[reg.bits])

    # -- diagnostics -----------------------------------------------------------------------
    def text(self, pc):
        if pc < 0 or pc >= len(self.prog.ins):
            return "?"
        i = self.prog.ins[pc]
        return f"line {i.line}: {i.text}"

    def cta_name(self, c):
        lin = int(self.ctas[c])
        gx, gy, _ = self.grid
        return (lin % gx, lin // gx % gy, lin // (gx * gy))

    def thread_name(self, lane):
        t = int(self.tid[lane])
        bx, by, _ = self.block
        return f"block {self.cta_name(int(self.cta_of[lane]))} thread {(t % bx, t // bx % by, t // (bx * by))}"

    def lane_of(self, ix, j):
        return int(j) if ix is None else int(ix[j])

    def fault(self, exc, pc, ix, bad, a, what):
        j = int(np.flatnonzero(bad)[0])
        raise exc(
            f"kernel {self.name}: {what} at address {int(a[j]):#x} in {self.thread_name(self.lane_of(ix, j))} "
            f"({int(np.count_nonzero(bad))} threads of this batch); {self.text(pc)}"
        )

    def unsupported(self, pc, why):
        raise Unsupported(f"{self.name}: unsupported instruction ({why}); {self.text(pc)}")

    def extcall(self, pc, ix, name):
        if name in ("vprintf",):
            return
        j = self.lane_of(ix, 0)
        raise DeviceTrap(
            f"{self.name}: call of external {name} in {self.thread_name(j)}; {self.text(pc)}"
        )

    # -- scheduler -------------------------------------------------------------------------
    def add(self, pc, ix, parked=False):
        if pc == EXIT:
            self.exit(ix)
            return
        if pc == -2:
            raise DeviceTrap(f"{self.name}: trap in {self.thread_name(int(ix[0]))}")
        if self.schedule != "lockstep":
            w = self.warp_of[ix]
            u = np.unique(w)
            if len(u) > 1:
                for k in u:
                    self._add(pc, ix[w == k], parked, int(k))
                return
            self._add(pc, ix, parked, int(u[0]))
            return
        self._add(pc, ix, parked, 0)

    def _add(self, pc, ix, parked, rank):
        for g in self.groups:
            if g.pc == pc and g.rank == rank:
                g.ix = np.sort(np.concatenate([g.ix, ix]))
                g.parked = g.parked and parked
                return
        self.groups.append(Group(pc, ix, parked, rank))

    def exit(self, ix):
        if ix is None:
            ix = self.lanes
        self.live[ix] = False
        self.nlive -= np.bincount(self.cta_of[ix], minlength=self.ncta)
        for g in self.groups:  # an exit can complete a collective or a barrier
            g.parked = False
        for key in list(self.bars):
            self.bar_check(key)

    def pick(self):
        best = None
        desc = self.schedule == "warp-desc"
        for g in self.groups:
            if g.parked:
                continue
            k = (-g.rank if desc else g.rank, g.pc)
            if best is None or k < bk:
                best, bk = g, k
        return best

    def run(self):
        live = np.flatnonzero(self.live)
        self.add(0, live)
        L, r, gen, rep = self.L, self.r, self.gen, self.rep
        rep.lanes += int(live.size)
        streak = 0
        while self.groups or self.bars or self.mb_waiting():
            g = self.pick()
            if g is None:
                if self.merge_parked() or self.mb_poll():
                    continue
                self.deadlock()
            self.groups.remove(g)
            pc, ix = g.pc, g.ix
            full = ix.size == L
            if full:
                ix = None
            mode = "full" if full else "masked"
            try:
                while True:
                    fn = gen.segs.get((pc, mode)) or self.segment(pc, mode)
                    rep.segments += 1
                    rep.instructions += fn.count
                    if rep.instructions > rep.limit:
                        raise M.Deadlock(
                            f"{self.name}: no end after {rep.instructions} instructions (livelock?) at {self.text(pc)}"
                        )
                    nxt = fn(self, r, ix)
                    if type(nxt) is int:
                        if nxt < 0:
                            self.add(nxt, self.lanes if ix is None else ix)
                            break
                        streak = streak + 1 if nxt <= pc else 0
                        pc = nxt
                        if self.groups and (ix is None or self.must_yield(pc, g.rank, streak)):
                            if streak > 2000:
                                streak = 0
                                self.rotate(pc, ix, g.rank)
                                break
                            self.add(pc, self.lanes if ix is None else ix)
                            break
                        continue
                    if nxt is None:  # absorbed by a barrier
                        break
                    tpc, fpc, p = nxt
                    base = self.lanes if ix is None else ix
                    self.add(fpc, base[~p])
                    self.add(tpc, base[p])
                    break
            except Diverged as e:
                base = self.lanes if ix is None else ix
                good = np.setdiff1d(base, e.bad, assume_unique=True)
                if good.size:  # good runs now, bad waits
                    self.run_one(Group(e.pc, good, rank=g.rank), e.bad)
                else:
                    self.add(e.pc, e.bad, True)
            if self._fresh_mb:
                self.mb_poll()
        self.finish_async()
        if self.cp_open:
            rep.warnings.append("kernel ended with cp.async copies that were never waited for")

    def merge_parked(self):
        """Serial schedules keep warps apart; bring them together where a warpgroup collective needs that."""
        if self.schedule == "lockstep":
            return False
        by = {}
        for g in self.groups:
            by.setdefault(g.pc, []).append(g)
        out = False
        for pc, gs in by.items():
            if len(gs) > 1:
                gs[0].ix = np.sort(np.concatenate([g.ix for g in gs]))
                gs[0].parked = False
                for g in gs[1:]:
                    self.groups.remove(g)
                out = True
        return out

    def run_one(self, g, waiting):
        """Run the complete warps of a collective past it before the others are queued at the same pc."""
        fn = self.gen.segment(g.pc, "masked")
        try:
            nxt = fn(self, self.r, g.ix)
        except Diverged as e:
            self.add(e.pc, g.ix)
            self.add(g.pc, waiting, True)
            return
        if type(nxt) is int:
            self.add(nxt, g.ix)
        elif nxt is not None:
            tpc, fpc, p = nxt
            self.add(fpc, g.ix[~p])
            self.add(tpc, g.ix[p])
        self.add(g.pc, waiting, True)

    def segment(self, pc, mode):
        gen = self.gen
        gen.ns["W"] = W
        return gen.segment(pc, mode)

    def must_yield(self, pc, rank, streak):
        if streak > 2000:
            return True
        for g in self.groups:
            if not g.parked and (g.pc <= pc if g.rank == rank else False):
                return True
            if g.parked and g.pc == pc and g.rank == rank:
                return True
        return False

    def rotate(self, pc, ix, rank):
        """A group has looped for long while others wait (a spin lock?): let the others go first."""
        others = [g for g in self.groups if not g.parked]
        ix = self.lanes if ix is None else ix
        if not others:
            self.add(pc, ix)
            return
        g = others[0]
        self.groups.remove(g)
        fn = self.segment(g.pc, "masked")
        try:
            nxt = fn(self, self.r, g.ix)
        except Diverged as e:
            self.add(e.pc, g.ix, True)
            nxt = None
        if type(nxt) is int:
            self.add(nxt, g.ix)
        elif nxt is not None:
            tpc, fpc, p = nxt
            self.add(fpc, g.ix[~p])
            self.add(tpc, g.ix[p])
        self.add(pc, ix)

    def deadlock(self):
        out = []
        for g in self.groups:
            out.append(
                f"{g.ix.size} threads (first {self.thread_name(int(g.ix[0]))}) wait for the rest of their warp at {self.text(g.pc)}"
            )
        for (c, b), s in self.bars.items():
            out.append(
                f"block {self.cta_name(c)} barrier {b}: {s['count']} of {s['exp'] or int(self.nlive[c])} threads arrived at "
                f"{self.text(s['pc'])}"
            )
        out += self.mb_describe()
        raise M.Deadlock(f"{self.name}: deadlock: " + "; ".join(out[:6]))

    # -- barriers --------------------------------------------------------------------------
    def bar(self, pc, ix, bid, cnt, wait):
        if ix is None and cnt is None and np.ndim(bid) == 0 and not self.bars:
            self.sh.join(None)
            return pc + 1
        base = self.lanes if ix is None else ix
        b = np.broadcast_to(np.asarray(bid).astype(i8), base.shape)
        e = np.broadcast_to(np.asarray(0 if cnt is None else cnt).astype(i8), base.shape)
        if cnt is None and wait and not self.bars and np.ndim(bid) == 0:
            n = np.bincount(self.cta_of[base], minlength=self.ncta)
            if ((n == 0) | (n == self.nlive)).all():
                if self.sh.race:
                    for c in np.flatnonzero(n):
                        self.sh.join(int(c))
                return pc + 1
        c = self.cta_of[base]
        keys = c * 64 + b
        for k in np.unique(keys):
            sel = keys == k
            lanes = base[sel]
            key = (int(k) // 64, int(k) % 64)
            s = self.bars.setdefault(key, dict(count=0, exp=0, wait=[], warps=set(), pc=pc))
            s["count"] += lanes.size
            s["exp"] = int(e[sel][0])
            s["pc"] = pc
            s["warps"].update(self.warp_of[lanes].tolist())
            if wait:
                s["wait"].append((pc + 1, lanes))
            self.bar_check(key)
        return None if wait else pc + 1

    def bar_check(self, key):
        s = self.bars[key]
        exp = s["exp"] or int(self.nlive[key[0]])
        if s["count"] >= exp:
            del self.bars[key]
            self.sh.join(key[0], sorted(s["warps"]) if s["exp"] else None)
            for npc, lanes in s["wait"]:
                self.add(npc, lanes)

    def bar_red(self, pc, ix, bid, cnt, op, p, slot):
        if ix is not None or cnt is not None:
            self.unsupported(pc, "bar.red in divergent code")
        q = p.reshape(self.ncta, self.T)
        res = q.sum(1) if op == "popc" else q.all(1) if op == "and" else q.any(1)
        self.r[slot] = np.repeat(res, self.T).astype(self.r[slot].dtype)
        self.sh.join(None)
        return pc + 1

    # -- warp convergence ------------------------------------------------------------------
    def act(self, ix):
        if ix is None:
            return np.ones(self.L, bool)
        if self._act_ix is not ix:
            a = np.zeros(self.L, bool)
            a[ix] = True
            self._act_ix, self._act = ix, a
        return self._act

    def whole_warps(self, pc, ix):
        if ix is None or ix is self._whole:
            return
        if ix.size % 32 == 0:
            x = ix.reshape(-1, 32)
            if ((x[:, 31] - x[:, 0] == 31) & (x[:, 0] % 32 == 0)).all():
                self._whole = ix
                return
        n = np.bincount(ix // 32, minlength=self.L // 32)
        bad = ix[n[ix // 32] != 32]
        raise Diverged(pc, bad)

    def converge(self, pc, ix, mask=0xFFFFFFFF):
        if ix is None:
            return
        allm = np.ndim(mask) == 0 and int(mask) == 0xFFFFFFFF
        if allm and ix is self._conv_ix:
            return
        act = self.act(ix)
        need = (
            self.live
            if allm
            else self.live & (((np.asarray(mask).astype(i8) >> self.laneid) & 1) != 0)
        )
        if not allm and np.ndim(mask):
            # each active lane's own mask counts; inactive lanes' registers do not
            m = np.where(act, np.asarray(mask).astype(i8), 0).reshape(-1, 32)
            m = np.bitwise_or.reduce(m, 1)
            need = self.live & (((np.repeat(m, 32) >> self.laneid) & 1) != 0)
        miss = (need & ~act).reshape(-1, 32).any(1)
        if miss.any():
            bad = ix[miss[ix // 32]]
            if bad.size:
                raise Diverged(pc, bad)
        if allm:
            self._conv_ix = ix

    def shfl(self, pc, ix, mode, a, b, c, mask):
        self.converge(pc, ix, mask)
        lane = self.laneid
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
        src = self.wbase + j
        a = np.broadcast_to(a, (self.L,))
        v = a[src]
        if ix is not None:
            v = np.where(self.act(ix)[src], v, np.uint32(POISON32))
        return v, np.broadcast_to(ok, (self.L,)).copy()

    def ballot(self, ix, p):
        p = np.broadcast_to(p, (self.L,)) & self.act(ix)
        b = (p.reshape(-1, 32).astype(u8) << np.arange(32, dtype=u8)).sum(1)
        return np.repeat(b.astype(u4), 32)

    def vote(self, pc, ix, mode, p, mask):
        self.converge(pc, ix, mask)
        mb = np.asarray(mask).astype(u4)
        b = self.ballot(ix, p) & mb
        if mode == "ballot":
            return b
        if mode == "any":
            return b != 0
        act = self.ballot(ix, np.ones(self.L, bool)) & mb
        if mode == "all":
            return b == act
        return (b == act) | (b == 0)

    def activemask(self, ix):
        return self.ballot(ix, np.ones(self.L, bool))

    def redux(self, pc, ix, op, a, mask):
        self.converge(pc, ix, mask)
        act = self.act(ix) & (((np.asarray(mask).astype(i8) >> self.laneid) & 1) != 0)
        a = np.broadcast_to(a, (self.L,))
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

    def match(self, pc, ix, mode, a, mask):
        self.converge(pc, ix, mask)
        act = (self.act(ix) & (((np.asarray(mask).astype(i8) >> self.laneid) & 1) != 0)).reshape(
            -1, 32
        )
        x = np.broadcast_to(a, (self.L,)).reshape(-1, 32)
        eq = (x[:, :, None] == x[:, None, :]) & act[:, None, :]
        w = (eq.astype(u8) << np.arange(32, dtype=u8)).sum(2).astype(u4)
        if mode == "all":
            am = (act.astype(u8) << np.arange(32, dtype=u8)).sum(1).astype(u4)[:, None]
            ok = (np.where(act, w == am, True)).all(1, keepdims=True)
            return np.where(ok, am, 0).astype(u4).repeat(32, 1).reshape(-1), np.broadcast_to(
                ok, w.shape
            ).reshape(-1).copy()
        return w.reshape(-1), None

    def elect(self, pc, ix, mask):
        self.converge(pc, ix, mask)
        m = np.broadcast_to(np.asarray(mask).astype(i8), (self.L,)).reshape(-1, 32)
        act = self.act(ix).reshape(-1, 32) & (((m >> np.arange(32)) & 1) != 0)
        lead = act.argmax(1)
        t = np.repeat(lead, 32)
        return t.astype(u4), self.laneid == t

    # -- memory ----------------------------------------------------------------------------
    def addr(self, ix, a, off):
        if a is None:
            return np.full(self.L if ix is None else ix.size, off, i8)
        a = a.astype(i8)
        return a + i8(off) if off else a

    def isspace(self, a, sp):
        k = a.astype(i8) >> 40
        return {
            "shared": k == 1,
            "shared::cta": k == 1,
            "local": k == 2,
            "const": k == 9,
            "param": k == 3,
            "shared::cluster": k == 1,
            "global": k > 3,
        }[sp]

    def shaddr(self, ix, a, off, generic):
        a = self.addr(ix, a, off)
        if generic and a.size and int(a[0]) >= M.SHARED_WINDOW:
            a = a - i8(M.SHARED_WINDOW)
        return a

    def sh_index(self, pc, ix, a, nb, write, atomic=False, xs=None):
        """Bounds and alignment check; flat byte index of each lane's access."""
        if a.size == 0:
            return a
        if int(a.min()) < 0 or int(a.max()) + nb > self.sh.size:
            self.fault(
                M.OutOfBounds,
                pc,
                ix,
                (a < 0) | (a + nb > self.sh.size),
                a,
                f"out-of-bounds shared {'write' if write else 'read'} of {nb} bytes (shared memory has {self.sh.size} bytes)",
            )
        if (a & i8(nb - 1)).any():
            self.fault(
                M.Misaligned,
                pc,
                ix,
                (a & i8(nb - 1)) != 0,
                a,
                f"misaligned shared access of {nb} bytes",
            )
        gi = a + (self.shbase if ix is None else self.shbase[ix])
        if self.tracking:
            c = self.cta_of if ix is None else self.cta_of[ix]
            w = self.warp_of if ix is None else self.warp_of[ix]
            self.sh.track(self, pc, gi, nb, c, w, write, atomic, xs)
        return gi

    def glob_plan(self, pc, ix, a, nb, what):
        pl, bad = self.mem.plan(a, nb)
        if pl is None:
            j = int(np.flatnonzero(bad)[0])
            self.fault(
                M.OutOfBounds,
                pc,
                ix,
                bad,
                a,
                f"out-of-bounds global {what} of {nb} bytes [near {self.mem.nearest(int(a[j]))}]",
            )
        if (a & i8(nb - 1)).any():
            self.fault(
                M.Misaligned,
                pc,
                ix,
                (a & i8(nb - 1)) != 0,
                a,
                f"misaligned global {what} of {nb} bytes",
            )
        return pl

    def loc_index(self, pc, ix, a, nb):
        if int(a.min()) < 0 or int(a.max()) + nb > self.prog.local_size:
            self.fault(
                M.OutOfBounds,
                pc,
                ix,
                (a < 0) | (a + nb > self.prog.local_size),
                a,
                "out-of-bounds local access",
            )
        return a + (self.lanes if ix is None else ix) * self.lstride

    def generic(self, a):
        k = a >> i8(40)
        k0 = int(k[0])
        if (k == k0).all():
            return self.window(k0)
        return None

    @staticmethod
    def window(k):
        return {
            1: ("shared", M.SHARED_WINDOW),
            2: ("local", M.LOCAL_WINDOW),
            3: ("param", M.PARAM_WINDOW),
        }.get(k, ("global", 0))

    def ld(self, pc, ix, sp, a, off, nb, v):
        a = self.addr(ix, a, off)
        return self._ld(pc, ix, sp, a, nb, v)

    def _ld(self, pc, ix, sp, a, nb, v):
        if sp is None:
            g = self.generic(a)
            if g is None:
                out = [np.empty(a.size, UINT[nb * 8]) for _ in range(v)]
                base = self.lanes if ix is None else ix
                for k in np.unique(a >> i8(40)):
                    sel = np.flatnonzero((a >> i8(40)) == k)
                    s, b = self.window(int(k))
                    for o, x in zip(out, self._ld(pc, base[sel], s, a[sel] - i8(b), nb, v)):
                        o[sel] = x
                return out
            sp, b = g
            if b:
                a = a - i8(b)
        if sp == "global" or sp == "const":
            tot = nb * v
            pl = self.glob_plan(pc, ix, a, tot, "read")
            if len(pl) == 1:
                b, _, o = pl[0]
                w, o = b.view(nb), o // nb if nb > 1 else o
                return [w[o + j] if j else w[o] for j in range(v)]
            out = [np.empty(a.size, UINT[nb * 8]) for _ in range(v)]
            for b, sel, o in pl:
                w, o = b.view(nb), o // nb
                for j in range(v):
                    out[j][sel] = w[o + j]
            return out
        if sp == "shared":
            o = self.sh_index(pc, ix, a, nb * v, False) // nb
            w = self.sh.views[nb]
            return [w[o + j] if j else w[o] for j in range(v)]
        if sp == "local":
            o = self.loc_index(pc, ix, a, nb * v) // nb
            w = self.lviews[nb]
            return [w[o + j] for j in range(v)]
        if sp == "param":
            if int(a.min()) < 0 or int(a.max()) + nb * v > self.prog.param_size:
                self.fault(
                    M.OutOfBounds,
                    pc,
                    ix,
                    (a < 0) | (a + nb * v > self.prog.param_size),
                    a,
                    "out-of-bounds param read",
                )
            w = self.params[: self.params.size // nb * nb].view(UINT[nb * 8])
            return [w[a // nb + j] for j in range(v)]
        self.unsupported(pc, f"space {sp}")

    def st(self, pc, ix, sp, a, off, nb, xs):
        a = self.addr(ix, a, off)
        self._st(pc, ix, sp, a, nb, xs)

    def _st(self, pc, ix, sp, a, nb, xs):
        v = len(xs)
        if sp is None:
            g = self.generic(a)
            if g is None:
                base = self.lanes if ix is None else ix
                for k in np.unique(a >> i8(40)):
                    sel = np.flatnonzero((a >> i8(40)) == k)
                    s, b = self.window(int(k))
                    self._st(
                        pc,
                        base[sel],
                        s,
                        a[sel] - i8(b),
                        nb,
                        [np.broadcast_to(x, a.shape)[sel] for x in xs],
                    )
                return
            sp, b = g
            if b:
                a = a - i8(b)
        if sp == "global":
            pl = self.glob_plan(pc, ix, a, nb * v, "write")
            for b, sel, o in pl:
                w, o = b.view(nb), o // nb
                for j, x in enumerate(xs):
                    w[o + j] = x if sel is None else np.broadcast_to(x, a.shape)[sel]
            return
        if sp == "shared":
            o = self.sh_index(pc, ix, a, nb * v, True, xs=xs) // nb
            w = self.sh.views[nb]
        elif sp == "local":
            o = self.loc_index(pc, ix, a, nb * v) // nb
            w = self.lviews[nb]
        else:
            self.unsupported(pc, f"store to {sp}")
        for j, x in enumerate(xs):
            w[o + j] = x

    def atom(self, pc, ix, sp, a, off, op, ty, x, c, ret):
        a = self.addr(ix, a, off)
        nb = BITS[ty] // 8
        x = np.broadcast_to(np.asarray(x), a.shape)
        if sp is None:
            g = self.generic(a)
            if g is None:
                self.unsupported(pc, "generic atomic over mixed spaces")
            sp, b = g
            a = a - i8(b)
        if sp == "shared":
            o = self.sh_index(pc, ix, a, nb, True, True)
            return self.atom_apply(self.sh.views[nb], o // nb, op, ty, x, c, ret)
        old = np.empty(a.shape, UINT[nb * 8])
        for b, sel, o in self.glob_plan(pc, ix, a, nb, "atomic"):
            if sel is None:
                return self.atom_apply(b.view(nb), o // nb, op, ty, x, c, ret)
            cc = c if c is None or np.ndim(c) == 0 else c[sel]
            old[sel] = self.atom_apply(b.view(nb), o // nb, op, ty, x[sel], cc, ret)
        return old

    @staticmethod
    def atom_fn(op, ty):
        if ty in ("bf16", "bf16x2"):
            g = {"add": np.add, "min": np.fmin, "max": np.fmax}[op]
            return lambda o, x: N.f2bf(
                g(
                    N.bf2f(np.ascontiguousarray(o).view(np.uint16)),
                    N.bf2f(np.ascontiguousarray(x).view(np.uint16)),
                )
            ).view(o.dtype)
        t = NPTY[ty]
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

    def atom_apply(self, view, idx, op, ty, x, c, ret):
        x = np.ascontiguousarray(x)
        if (
            op != "cas"
            and not ret
            and op in ("add", "min", "max", "and", "or", "xor")
            and ty not in ("bf16", "bf16x2", "f16x2")
        ):
            g = {
                "add": np.add,
                "min": np.minimum,
                "max": np.maximum,
                "and": np.bitwise_and,
                "or": np.bitwise_or,
                "xor": np.bitwise_xor,
            }[op]
            g.at(view.view(NPTY[ty]), idx, x.view(NPTY[ty]))
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
        f = None if op == "cas" else self.atom_fn(op, ty)
        for k in range(int(rank.max()) + 1):
            j = np.flatnonzero(rank == k)
            o = view[idx[j]]
            old[j] = o
            # cas d, [a], b, c : compare with b, swap in c
            view[idx[j]] = np.where(o == x[j], cc[j], o) if op == "cas" else f(o, x[j])
        return old

    # -- cp.async (performed when waited for) --------------------------------------------------
    def cp_async(self, pc, ix, da, doff, sa, soff, nb, ssz):
        d = self.addr(ix, da, doff)
        if d.size and int(d[0]) >= M.SHARED_WINDOW:
            d = d - i8(M.SHARED_WINDOW)
        s = self.addr(ix, sa, soff)
        base = self.lanes if ix is None else ix
        n = (
            np.full(d.shape, nb, i8)
            if ssz is None
            else np.broadcast_to(np.asarray(ssz).astype(i8), d.shape)
        )
        n = np.minimum(n, nb)
        trk, self.tracking = self.tracking, False
        gi = self.sh_index(pc, ix, d, nb, True)
        self.tracking = trk
        pos = np.flatnonzero(n > 0)
        if pos.size:
            full = n[pos] == nb
            for part, size in ((pos[full], nb), (pos[~full], None)):
                if part.size:
                    if size:
                        self.glob_plan(pc, base[part], s[part], nb, "cp.async read")
                    else:
                        for j in part:
                            pl, bad = self.mem.plan(s[j : j + 1], int(n[j]))
                            if bad is not None:
                                self.fault(
                                    M.OutOfBounds,
                                    pc,
                                    base[j : j + 1],
                                    bad,
                                    s[j : j + 1],
                                    "out-of-bounds cp.async read",
                                )
        if self.sh.race:  # the destination may be overwritten from now on
            self.sh.track(self, pc, gi, nb, self.cta_of[base], self.warp_of[base], True)
        w = self.sh.views[nb if nb < 8 else 8]
        k = max(1, nb // 8)
        gk = gi // min(nb, 8)
        for j in range(k):  # poison until the copy is waited for
            w[gk + j] = {4: np.uint32(POISON32), 8: np.uint64(POISON32 << 32 | POISON32)}[
                min(nb, 8)
            ]
        if self.sh.init is not None:
            self.sh.init[gi[:, None] + np.arange(nb)] = False
        self.cp_open.append([pc, base, gi, s, n, nb, None])

    def cp_commit(self, ix):
        base = self.lanes if ix is None else ix
        for rec in self.cp_open:
            if rec[6] is None or (rec[6] < 0).any():
                if rec[6] is None:
                    rec[6] = np.full(rec[1].shape, -1, i8)
                sel = (rec[6] < 0) & (True if ix is None else self.act(ix)[rec[1]])
                rec[6] = np.where(sel, self.cp_cnt[rec[1]], rec[6])
        self.cp_cnt[base] += 1

    def cp_wait(self, ix, keep):
        left = []
        act = None if ix is None else self.act(ix)
        for rec in self.cp_open:
            pc, lanes, gi, s, n, nb, grp = rec
            if grp is None:
                left.append(rec)
                continue
            done = (grp >= 0) & (grp < self.cp_cnt[lanes] - keep)
            if act is not None:
                done &= act[lanes]
            if done.all():
                self.cp_do(pc, lanes, gi, s, n, nb)
            elif done.any():
                self.cp_do(pc, lanes[done], gi[done], s[done], n[done], nb)
                k = ~done
                left.append([pc, lanes[k], gi[k], s[k], n[k], nb, grp[k]])
            else:
                left.append(rec)
        self.cp_open = left

    def cp_do(self, pc, lanes, gi, s, n, nb):
        u = min(nb, 8)
        w, k = self.sh.views[u], nb // u
        if self.tracking:
            self.sh.track(self, pc, gi, nb, self.cta_of[lanes], self.warp_of[lanes], True)
        if (n == nb).all():
            for b, sel, o in self.mem.plan(s, nb)[0]:
                src, o = b.view(u), o // u
                d = (gi if sel is None else gi[sel]) // u
                for j in range(k):
                    w[d + j] = src[o + j]
            return
        for j in range(k):
            w[gi // u + j] = 0
        full = n == nb
        if full.any():
            for b, sel, o in self.mem.plan(s[full], nb)[0]:
                src, o = b.view(u), o // u
                d = (gi[full] if sel is None else gi[full][sel]) // u
                for j in range(k):
                    w[d + j] = src[o + j]
        for j in np.flatnonzero(~full & (n > 0)):
            b, _, o = self.mem.plan(s[j : j + 1], int(n[j]))[0][0]
            self.sh.flat[gi[j] : gi[j] + n[j]] = b.raw[int(o[0]) : int(o[0]) + int(n[j])]

    # -- wmma ------------------------------------------------------------------------------
    def wmma_addr(self, ix, a, off, ld, rows, cols, lay, nb):
        a = self.addr(ix, a, off)[::32]
        ld = np.broadcast_to(np.asarray(ld).astype(i8), (self.L if ix is None else ix.size,))[::32]
        i, j = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
        e = (i * ld[:, None, None] + j) if lay == "row" else (j * ld[:, None, None] + i)
        lanes = (self.lanes if ix is None else ix)[::32]
        return (a[:, None] + e.reshape(len(a), -1) * nb).reshape(-1), np.repeat(lanes, rows * cols)

    def wmma_load(self, pc, ix, sp, a, off, ld, rows, cols, lay, ty, nregs):
        nb = BITS[ty] // 8
        A, lanes = self.wmma_addr(ix, a, off, ld, rows, cols, lay, nb)
        v = self._ld(pc, lanes, sp, A, nb, 1)[0]
        return W.wmma_pack(v.reshape(-1, rows * cols), ty, nregs)

    def wmma_store(self, pc, ix, sp, a, off, ld, rows, cols, lay, ty, regs):
        nb = BITS[ty] // 8
        A, lanes = self.wmma_addr(ix, a, off, ld, rows, cols, lay, nb)
        self._st(pc, lanes, sp, A, nb, [W.wmma_unpack(regs, ty, rows * cols).reshape(-1)])

    def wmma_mma(self, a, b, c, m, n, k, at, bt, ct, dt, nd):
        A = W.decode(W.wmma_unpack(a, at, m * k), at).reshape(-1, m, k)
        B = W.decode(W.wmma_unpack(b, bt, k * n), bt).reshape(-1, k, n)
        C = W.decode(W.wmma_unpack(c, ct, m * n), ct).reshape(-1, m, n)
        D = (np.matmul(A, B) + C) if ct != "s32" else (np.matmul(A, B).astype(i4) + C)
        D = D.astype(NPTY[dt]).reshape(-1, m * n)
        return W.wmma_pack(D.view(UINT[BITS[dt]]), dt, nd)
