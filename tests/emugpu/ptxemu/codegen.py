"""PTX instructions -> Python source over NumPy arrays.

Straight-line segments are compiled lazily into one Python function, in two variants:
  full   - every lane of the batch executes: registers are replaced whole, no gathers;
  masked - `ix` holds the active lanes: registers are gathered and scattered at `ix`.
A segment function returns the next pc, or (taken_pc, fallthrough_pc, taken_mask) when it diverges.
"""

import numpy as np

from . import numerics as N
from .numerics import NPTY, UINT
from .parser import BITS, Addr, Imm, Neg, Pair, Reg, Sym, Vec, PTXError

INT = {"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "b8", "b16", "b32", "b64"}
NPN = {k: f"T_{np.dtype(v).str[1:]}" for k, v in NPTY.items()}
SPACES = {
    "global",
    "shared",
    "shared::cta",
    "shared::cluster",
    "local",
    "param",
    "param::entry",
    "param::func",
    "const",
}
FP8N = {"e4m3x2": "e4m3", "e5m2x2": "e5m2"}
EXIT = -1


class Unsupported(PTXError):
    pass


class Gen:
    def __init__(self, prog):
        self.prog = prog
        self.ns = {
            f"T_{np.dtype(t).str[1:]}": t
            for t in (N.u1, N.u2, N.u4, N.u8, N.i1, N.i2, N.i4, N.i8, N.f2, N.f4, N.f8)
        }
        self.ns.update(np=np, N=N, nz=np.flatnonzero, cnz=np.count_nonzero, full_=np.full)
        self.nk = 0
        self.kcache = {}
        self.leaders = {i.target for i in prog.ins if i.target >= 0}
        self.segs = {}

    # -- constants and operands -----------------------------------------------------------
    def const(self, v):
        key = (type(v), getattr(v, "dtype", None), v.tobytes() if hasattr(v, "tobytes") else v)
        if key not in self.kcache:
            nm = f"k{self.nk}"
            self.nk += 1
            self.ns[nm] = v
            self.kcache[key] = nm
        return self.kcache[key]

    def immbits(self, op, bits):
        if op.isfloat:
            kind, b, v = op.value
            if kind == "f64" and bits == 32:
                return int(np.float32(np.uint64(b).view(np.float64)).view(np.uint32))
            if kind == "f64" and bits == 16:
                return int(np.float16(np.uint64(b).view(np.float64)).view(np.uint16))
            return b
        return op.value & ((1 << bits) - 1)

    def raw(self, reg, m):
        return f"r[{reg.slot}]" if m == "full" else f"r[{reg.slot}][ix]"

    def src(self, op, ty, m):
        """Expression of operand `op` seen as `ty` (bf16 stays bits; packed types double the length)."""
        if isinstance(op, Reg):
            self.vec = True
            e = self.raw(op, m)
            if ty == "pred":
                return e
            want = BITS[ty]
            if op.bits != want:
                if op.bits == 1:
                    raise Unsupported(f"predicate used as {ty}")
                if op.bits > want:
                    e = f"{e}.astype(T_u{want // 8})"
                else:
                    e = f"{e}.astype(T_u{want // 8})"
            dt = np.dtype(NPTY[ty])
            if dt.str[1:] != f"u{want // 8}":
                e = f"{e}.view(T_{dt.str[1:]})"
            return e
        if isinstance(op, Neg):
            return f"~{self.src(op.reg, ty, m)}"
        if isinstance(op, Sym):
            return self.const(
                np.array(self.symaddr(op) & ((1 << BITS[ty]) - 1), UINT[BITS[ty]]).view(NPTY[ty])[
                    ()
                ]
            )
        if isinstance(op, Imm):
            if ty == "pred":
                return self.const(np.bool_(op.value))
            w = BITS[ty]
            b = np.array(self.immbits(op, w), UINT[w])
            if ty in ("f16x2", "bf16x2"):
                self.vec = True
                return f"full_({self.n(m)}, {self.const(b[()])}).view({NPN[ty]})"
            return self.const(b.view(NPTY[ty])[()])
        raise Unsupported(f"operand {op}")

    def n(self, m):
        return "L" if m == "full" else "ix.size"

    def ixname(self, m):
        return "None" if m == "full" else "ix"

    def symaddr(self, s):
        """Address constant for a symbol as `mov` sees it (shared offset, generic global address, ...)."""
        P = self.prog
        if s.name in P.shared:
            return P.shared[s.name].offset + s.off
        if s.name in P.extern_shared:
            return P.shared_static_aligned + s.off
        if s.name in P.local:
            return P.local[s.name].offset + s.off
        for nm, off, size, al in P.params:
            if nm == s.name:
                return off + s.off
        if s.name in P.globals:
            return P.globals[s.name] + s.off
        raise Unsupported(f"symbol {s.name}")

    def symspace(self, name):
        P = self.prog
        if name in P.shared or name in P.extern_shared:
            return "shared"
        if name in P.local:
            return "local"
        if any(p[0] == name for p in P.params):
            return "param"
        return "global"

    def dst(self, op, expr, ty, m, alias=False):
        """Assignment of `expr` (NumPy dtype of `ty`) to register `op`."""
        if op is None:
            return []
        if not isinstance(op, Reg):
            raise Unsupported(f"destination {op}")
        if ty == "pred":
            if not self.vec:
                expr = f"full_({self.n(m)}, {expr})"
            elif alias and m == "full":
                expr = f"{expr}.copy()"
            return [f"r[{op.slot}] = {expr}"] if m == "full" else [f"r[{op.slot}][ix] = {expr}"]
        w = BITS[ty]
        if not self.vec:
            expr = f"full_({self.n(m)}, {expr})"
            alias = False
        dt = np.dtype(NPTY[ty]).str[1:]
        if op.bits != w:
            if dt[0] == "i":
                expr = f"({expr}).astype(T_i{op.bits // 8})"
                dt = f"i{op.bits // 8}"
            else:
                if dt[0] == "f":
                    expr = f"({expr}).view(T_u{w // 8})"
                expr = f"({expr}).astype(T_u{op.bits // 8})"
                dt = f"u{op.bits // 8}"
        elif alias and m == "full":
            expr = f"({expr}).copy()"
        if dt != f"u{op.bits // 8}":
            expr = f"({expr}).view(T_u{op.bits // 8})"
        return [f"r[{op.slot}] = {expr}"] if m == "full" else [f"r[{op.slot}][ix] = {expr}"]

    # -- segments --------------------------------------------------------------------------
    def segment(self, pc, m):
        key = (pc, m)
        f = self.segs.get(key)
        if f is None:
            f = self.segs[key] = self.compile(pc, m)
        return f

    def compile(self, pc, m):
        lines, i, ins = [], pc, self.prog.ins
        lines.append("L = S.L")
        count = 0
        while True:
            if i != pc and m == "masked" and i in self.leaders:
                lines.append(f"return {i}")
                break
            if count >= 1500:
                lines.append(f"return {i}")
                break
            I = ins[i]
            self.pc = i
            count += 1
            base = I.parts[0]
            try:
                if base in ("bra", "exit", "ret", "trap", "brkpt"):
                    lines += self.control(I, i, m)
                    break
                body = self.instr(I, i, m)
            except Unsupported as e:
                lines.append(f"S.unsupported({i}, {str(e)!r})")
                lines.append(f"return {i + 1}")
                break
            except (KeyError, IndexError, AttributeError, TypeError) as e:
                lines.append(f"S.unsupported({i}, {('codegen: ' + repr(e))!r})")
                lines.append(f"return {i + 1}")
                break
            lines += body
            if base in self.TERM or (
                base == "mbarrier" and I.parts[1] in ("try_wait", "test_wait")
            ):
                if body and not body[-1].startswith("return"):
                    lines.append(f"return {i + 1}")
                break
            i += 1
        src = f"def seg(S, r, ix):\n" + "".join(f"    {x}\n" for x in lines)
        code = compile(src, f"<{self.prog.name}@{pc}:{m}>", "exec")
        ns = dict(self.ns)
        exec(code, ns)
        fn = ns["seg"]
        fn.src = src
        fn.count = count
        return fn

    TERM = {"bar", "barrier"}

    def predmask(self, I, m):
        e = f"r[{I.pred.slot}]" + ("" if m == "full" else "[ix]")
        return f"~{e}" if I.neg else e

    def control(self, I, pc, m):
        base = I.parts[0]
        if base in ("trap", "brkpt"):
            tgt = -2
        else:
            tgt = I.target if base == "bra" else EXIT
        if I.pred is None:
            return [f"return {tgt}"]
        return [
            f"p = {self.predmask(I, m)}",
            "c = cnz(p)",
            f"if c == 0: return {pc + 1}",
            f"if c == {self.n(m)}: return {tgt}",
            f"return ({tgt}, {pc + 1}, p)",
        ]

    def instr(self, I, pc, m):
        base = I.parts[0]
        fn = getattr(self, "op_" + base, None)
        if fn is None:
            raise Unsupported(f"opcode {I.op}")
        if I.pred is None:
            self.vec = False
            return fn(I, pc, m)
        p = self.predmask(I, m)
        if base in self.TERM:
            raise Unsupported("predicated barrier")
        self.vec = False
        masked = fn(I, pc, "masked")
        if m == "full":
            self.vec = False
            full = fn(I, pc, "full")
            return (
                [f"p = {p}", "c = cnz(p)", "if c == L:"]
                + ["    " + x for x in full or ["pass"]]
                + ["elif c:", "    ix = nz(p)"]
                + ["    " + x for x in masked or ["pass"]]
            )
        return (
            [f"ox = ix; ix = ix[{p}]", "if ix.size:"]
            + ["    " + x for x in masked or ["pass"]]
            + ["ix = ox"]
        )

    # -- arithmetic ------------------------------------------------------------------------
    def fl(self, op, ty, m):
        """Operand in its computation type."""
        e = self.src(op, ty, m)
        return f"N.bf2f({e})" if ty in ("bf16", "bf16x2") else e

    def fst(self, op, e, ty, m, rnd="rn", sat=False, relu=False):
        if sat:
            e = f"N.sat01({e})"
        if relu:
            e = f"np.fmax({e}, 0)"
        if ty in ("bf16", "bf16x2"):
            e = f"N.f2bf({e}, {rnd!r})"
        elif ty in ("f16", "f16x2"):
            e = f"({e}).astype(T_f2, copy=False)"
        elif ty == "f32":
            e = f"({e}).astype(T_f4, copy=False)"
        return self.dstp(op, e, ty, m)

    def dstp(self, op, e, ty, m):
        if ty in ("f16x2", "bf16x2"):
            e = f"({e}).view(T_u4)"
            return self.dst(op, e, "b32", m)
        return self.dst(op, e, ty, m)

    def rnd(self, I):
        for p in I.parts[1:]:
            if p in ("rz", "rm", "rp"):
                return p
        return "rn"

    def binary(self, I, m, sym):
        ty = I.parts[-1]
        d, a, b = I.args
        if ty in INT:
            if sym in "+-" and ("cc" in I.parts):
                return self.carry(I, m, sym, False)
            if "sat" in I.parts:
                e = f"np.clip({self.src(a, ty, m)}.astype(T_i8) {sym} {self.src(b, ty, m)}, -2**31, 2**31-1).astype(T_i4)"
                return self.dst(d, e, ty, m)
            return self.dst(d, f"{self.src(a, ty, m)} {sym} {self.src(b, ty, m)}", ty, m)
        r = self.rnd(I)
        A, B = self.fl(a, ty, m), self.fl(b, ty, m)
        e = f"{A} {sym} {B}"
        if r != "rn":
            e = f"N.arith_dir({sym!r}, {A}, {B}, {r!r})"
        return self.fst(d, e, ty, m, sat="sat" in I.parts)

    def carry(self, I, m, sym, cin):
        ty = I.parts[-1]
        d, a, b = I.args
        U = "u" + ty[1:]
        w = BITS[ty]
        A, B = self.src(a, U, m), self.src(b, U, m)
        cc = self.ccreg()
        c = self.raw(cc, m) if cin else "False"
        e = [
            f"x = np.asarray({A}).astype(T_u8); y = np.asarray({B}).astype(T_u8); z = np.asarray({c}).astype(T_u8)"
        ]
        if w == 32:
            e += ["t = x + y + z" if sym == "+" else "t = x - y - z"]
            e += ["co = (t >> 32) != 0"]
        elif sym == "+":
            e += ["t = x + y", "co = t < x", "t = t + z", "co |= t < z"]
        else:
            e += ["t = x - y", "co = x < y", "co |= t < z", "t = t - z"]
        out = e + self.dst(d, f"t.astype(T_u{w // 8})", U, m)
        if "cc" in I.parts:
            out += self.dst(cc, "co", "pred", m)
        return out

    def ccreg(self):
        if not hasattr(self.prog, "cc"):
            self.prog.regbits.append(1)
            self.prog.regnames.append("CC")
            self.prog.nregs += 1
            self.prog.cc = Reg(self.prog.nregs - 1, 1, "CC")
        return self.prog.cc

    def op_add(self, I, pc, m):
        return self.binary(I, m, "+")

    def op_sub(self, I, pc, m):
        return self.binary(I, m, "-")

    def op_addc(self, I, pc, m):
        return self.carry(I, m, "+", True)

    def op_subc(self, I, pc, m):
        return self.carry(I, m, "-", True)

    def op_mul(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b = I.args
        if "wide" in I.parts:
            W = ty[0] + str(BITS[ty] * 2)
            t = NPN[W]
            return self.dst(
                d, f"np.multiply({self.src(a, ty, m)}, {self.src(b, ty, m)}, dtype={t})", W, m
            )
        if "hi" in I.parts:
            return self.dst(d, f"N.mulhi({self.src(a, ty, m)}, {self.src(b, ty, m)})", ty, m)
        return self.binary(I, m, "*")

    op_mul24 = op_mul

    def op_mad(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b, c = I.args
        if ty not in INT:
            return self.op_fma(I, pc, m)
        if "cc" in I.parts:
            raise Unsupported(I.op)
        if "wide" in I.parts:
            W = ty[0] + str(BITS[ty] * 2)
            return self.dst(
                d,
                f"np.multiply({self.src(a, ty, m)}, {self.src(b, ty, m)}, dtype={NPN[W]}) + {self.src(c, W, m)}",
                W,
                m,
            )
        if "hi" in I.parts:
            return self.dst(
                d,
                f"N.mulhi({self.src(a, ty, m)}, {self.src(b, ty, m)}) + {self.src(c, ty, m)}",
                ty,
                m,
            )
        return self.dst(
            d, f"{self.src(a, ty, m)} * {self.src(b, ty, m)} + {self.src(c, ty, m)}", ty, m
        )

    def op_fma(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b, c = I.args
        e = f"N.fma(np.asarray({self.fl(a, ty, m)}), {self.fl(b, ty, m)}, {self.fl(c, ty, m)}, {self.rnd(I)!r})"
        return self.fst(d, e, ty, m, sat="sat" in I.parts, relu="relu" in I.parts)

    def op_div(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b = I.args
        if ty in INT:
            return self.dst(d, f"N.idiv({self.src(a, ty, m)}, {self.src(b, ty, m)})", ty, m)
        r = self.rnd(I)
        if r != "rn":
            return self.fst(
                d, f"N.arith_dir('/', {self.fl(a, ty, m)}, {self.fl(b, ty, m)}, {r!r})", ty, m
            )
        return self.fst(d, f"{self.fl(a, ty, m)} / {self.fl(b, ty, m)}", ty, m)

    def op_rem(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b = I.args
        return self.dst(d, f"N.irem({self.src(a, ty, m)}, {self.src(b, ty, m)})", ty, m)

    def minmax(self, I, m, name):
        ty = I.parts[-1]
        d, xs = I.args[0], I.args[1:]
        if ty in INT:
            f = "np.minimum" if name == "min" else "np.maximum"
            e = f"{f}({self.src(xs[0], ty, m)}, {self.src(xs[1], ty, m)})"
            if "relu" in I.parts:
                e = f"np.maximum({e}, 0)"
            return self.dst(d, e, ty, m)
        if "xorsign" in I.parts:
            raise Unsupported(I.op)
        f = (
            f"np.f{name}"
            if "NaN" not in I.parts
            else ("np.minimum" if name == "min" else "np.maximum")
        )
        g = (lambda x: f"np.abs({x})") if "abs" in I.parts else (lambda x: x)
        e = g(self.fl(xs[0], ty, m))
        for x in xs[1:]:
            e = f"{f}({e}, {g(self.fl(x, ty, m))})"
        return self.fst(d, e, ty, m)

    def op_min(self, I, pc, m):
        return self.minmax(I, m, "min")

    def op_max(self, I, pc, m):
        return self.minmax(I, m, "max")

    def unary(self, I, m, fmt):
        ty = I.parts[-1]
        d, a = I.args
        if ty in INT:
            return self.dst(d, fmt.format(self.src(a, ty, m)), ty, m)
        return self.fst(d, fmt.format(self.fl(a, ty, m)), ty, m, sat="sat" in I.parts)

    def op_neg(self, I, pc, m):
        return self.unary(I, m, "-{}")

    def op_abs(self, I, pc, m):
        return self.unary(I, m, "np.abs({})")

    def op_sqrt(self, I, pc, m):
        return self.unary(I, m, "np.sqrt({})")

    def op_rsqrt(self, I, pc, m):
        return self.unary(I, m, "(1 / np.sqrt({}))")

    def op_rcp(self, I, pc, m):
        return self.unary(I, m, "(1 / {})")

    def op_ex2(self, I, pc, m):
        return self.unary(I, m, "np.exp2({})")

    def op_lg2(self, I, pc, m):
        return self.unary(I, m, "np.log2({})")

    def op_sin(self, I, pc, m):
        return self.unary(I, m, "np.sin({})")

    def op_cos(self, I, pc, m):
        return self.unary(I, m, "np.cos({})")

    def op_tanh(self, I, pc, m):
        return self.unary(I, m, "np.tanh({})")

    def op_copysign(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b = I.args
        return self.fst(d, f"np.copysign({self.fl(b, ty, m)}, {self.fl(a, ty, m)})", ty, m)

    def op_testp(self, I, pc, m):
        ty = I.parts[-1]
        d, a = I.args
        f = dict(
            finite="np.isfinite({})",
            infinite="np.isinf({})",
            number="~np.isnan({})",
            notanumber="np.isnan({})",
            normal="(np.abs({0}) >= np.finfo({0}.dtype).tiny) & np.isfinite({0})",
            subnormal="(np.abs({0}) < np.finfo({0}.dtype).tiny) & ({0} != 0)",
        )[I.parts[1]]
        return self.dst(d, f.format(self.src(a, ty, m)), "pred", m)

    def op_sad(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b, c = I.args
        A, B = self.src(a, ty, m), self.src(b, ty, m)
        return self.dst(
            d, f"(np.maximum({A}, {B}) - np.minimum({A}, {B})) + {self.src(c, ty, m)}", ty, m
        )

    def op_dp4a(self, I, pc, m):
        d, a, b, c = I.args
        at, bt = I.parts[1], I.parts[2]
        return self.dst(
            d,
            f"N.dp4a({self.src(a, at, m)}, np.asarray({self.src(b, bt, m)}), {self.src(c, 's32', m)})",
            "s32",
            m,
        )

    # -- logic -----------------------------------------------------------------------------
    def logic(self, I, m, sym):
        ty = I.parts[-1]
        d, a, b = I.args
        return self.dst(d, f"{self.src(a, ty, m)} {sym} {self.src(b, ty, m)}", ty, m)

    def op_and(self, I, pc, m):
        return self.logic(I, m, "&")

    def op_or(self, I, pc, m):
        return self.logic(I, m, "|")

    def op_xor(self, I, pc, m):
        return self.logic(I, m, "^")

    def op_not(self, I, pc, m):
        return (
            self.unary(I, m, "~{}")
            if I.parts[-1] != "pred"
            else self.dst(I.args[0], f"~{self.src(I.args[1], 'pred', m)}", "pred", m)
        )

    def op_cnot(self, I, pc, m):
        ty = I.parts[-1]
        return self.dst(I.args[0], f"({self.src(I.args[1], ty, m)} == 0).astype({NPN[ty]})", ty, m)

    def shift(self, I, m, left):
        ty = I.parts[-1]
        d, a, b = I.args
        w = BITS[ty]
        ty = "u" + ty[1:] if ty[0] == "b" else ty
        if isinstance(b, Imm) and isinstance(a, Reg):
            s = b.value & 0xFFFFFFFF
            if s >= w:
                if not left and ty[0] == "s":
                    s = w - 1
                else:
                    return self.dst(d, f"full_({self.n(m)}, T_u{w // 8}(0))", ty, m)
            k = self.const(np.array(s).astype(NPTY[ty])[()])
            return self.dst(d, f"{self.src(a, ty, m)} {'<<' if left else '>>'} {k}", ty, m)
        return self.dst(
            d,
            f"N.{'shl' if left else 'shr'}(np.asarray({self.src(a, ty, m)}), {self.src(b, 'u32', m)})",
            ty,
            m,
        )

    def op_shl(self, I, pc, m):
        return self.shift(I, m, True)

    def op_shr(self, I, pc, m):
        return self.shift(I, m, False)

    def op_shf(self, I, pc, m):
        d, a, b, c = (self.src(x, "u32", m) if i else x for i, x in enumerate(I.args))
        return self.dst(
            d, f"N.shf({a}, {b}, {c}, {I.parts[1] == 'l'}, {I.parts[2] == 'clamp'})", "u32", m
        )

    def op_lop3(self, I, pc, m):
        a = I.args
        if isinstance(a[0], Pair) or "BoolOp" in I.op:
            raise Unsupported(I.op)
        e = ", ".join(self.src(x, "b32", m) for x in a[1:4])
        return self.dst(a[0], f"N.lop3({e}, {a[4].value})", "b32", m)

    def op_prmt(self, I, pc, m):
        a = I.args
        e = ", ".join(self.src(x, "b32", m) for x in a[1:4])
        if len(I.parts) > 2:
            return self.dst(a[0], f"N.prmt_mode({e}, {I.parts[2]!r})", "b32", m)
        return self.dst(a[0], f"N.prmt({e})", "b32", m)

    def op_bfe(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b, c = I.args
        return self.dst(
            d,
            f"N.bfe(np.atleast_1d({self.src(a, ty, m)}), {self.src(b, 'u32', m)}, {self.src(c, 'u32', m)})",
            ty,
            m,
        )

    def op_bfi(self, I, pc, m):
        ty = I.parts[-1]
        f, a, b, c, d = I.args
        return self.dst(
            f,
            f"N.bfi(np.asarray({self.src(a, ty, m)}), np.asarray({self.src(b, ty, m)}), {self.src(c, 'u32', m)}, {self.src(d, 'u32', m)})",
            ty,
            m,
        )

    def op_popc(self, I, pc, m):
        return self.dst(
            I.args[0],
            f"np.bitwise_count({self.src(I.args[1], I.parts[-1], m)}).astype(T_u4)",
            "u32",
            m,
        )

    def op_clz(self, I, pc, m):
        return self.dst(I.args[0], f"N.clz({self.src(I.args[1], I.parts[-1], m)})", "u32", m)

    def op_brev(self, I, pc, m):
        return self.dst(I.args[0], f"N.brev({self.src(I.args[1], I.parts[-1], m)})", I.parts[-1], m)

    def op_bfind(self, I, pc, m):
        return self.dst(
            I.args[0],
            f"N.bfind({self.src(I.args[1], I.parts[-1], m)}, {'shiftamt' in I.parts})",
            "u32",
            m,
        )

    def op_bmsk(self, I, pc, m):
        d, a, b = I.args
        w = "" if "clamp" in I.parts else " & 31"
        e = f"N.bfi(T_u4(0xFFFFFFFF), np.zeros({self.n(m)}, T_u4), {self.src(a, 'u32', m)}{w}, {self.src(b, 'u32', m)}{w})"
        self.vec = True
        return self.dst(d, e, "b32", m)

    def op_szext(self, I, pc, m):
        ty = I.parts[-1]
        d, a, b = I.args
        return self.dst(
            d,
            f"N.bfe(np.atleast_1d({self.src(a, ty, m)}), T_u4(0), {self.src(b, 'u32', m)})",
            ty,
            m,
        )

    # -- comparison and selection ----------------------------------------------------------
    CMP = dict(eq="==", ne="!=", lt="<", le="<=", gt=">", ge=">=", lo="<", ls="<=", hi=">", hs=">=")

    def compare(self, I, op, ty, a, b, m):
        if ty in INT:
            if op in ("lo", "ls", "hi", "hs"):
                ty = "u" + ty[1:]
            return f"({self.src(a, ty, m)} {self.CMP[op]} {self.src(b, ty, m)})"
        A, B = self.fl(a, ty, m), self.fl(b, ty, m)
        if op in ("eq", "lt", "le", "gt", "ge"):
            return f"({A} {self.CMP[op]} {B})"
        return f"N.fcmp({op!r}, {A}, {B})"

    def op_setp(self, I, pc, m):
        ps = [p for p in I.parts[1:] if p != "ftz"]
        ty = ps[-1]
        op = ps[0]
        boolop = ps[1] if len(ps) > 2 else None
        d, a, b = I.args[:3]
        e = self.compare(I, op, ty, a, b, m)
        if ty in ("f16x2", "bf16x2"):
            out = [f"t = {e}"]
            p, q = (d.a, d.b) if isinstance(d, Pair) else (d, None)
            out += self.dst(p, "t[0::2].copy()", "pred", m)
            return out + (self.dst(q, "t[1::2].copy()", "pred", m) if q else [])
        c = self.src(I.args[3], "pred", m) if boolop else None
        bo = {"and": "&", "or": "|", "xor": "^", None: ""}[boolop]
        if isinstance(d, Pair):
            if boolop:
                return (
                    [f"t = {e}; u = {c}"]
                    + self.dst(d.a, f"t {bo} u", "pred", m)
                    + self.dst(d.b, f"(~t) {bo} u", "pred", m)
                )
            return [f"t = {e}"] + self.dst(d.a, "t", "pred", m) + self.dst(d.b, "~t", "pred", m)
        return self.dst(d, f"{e} {bo} {c}" if boolop else e, "pred", m)

    def op_set(self, I, pc, m):
        ps = [p for p in I.parts[1:] if p != "ftz"]
        sty, dty, op = ps[-1], ps[-2], ps[0]
        d, a, b = I.args[:3]
        e = self.compare(I, op, sty, a, b, m)
        if len(ps) > 3:
            e = f"({e} {dict(zip(['and', 'or', 'xor'], '&|^'))[ps[1]]} {self.src(I.args[3], 'pred', m)})"
        if dty in ("f16x2", "bf16x2"):
            one = 0x3C00 if dty == "f16x2" else 0x3F80
            return self.dst(d, f"({e}.astype(T_u2) * T_u2({one})).view(T_u4)", "b32", m)
        if dty == "f32":
            return self.dst(d, f"{e}.astype(T_f4)", "f32", m)
        if dty in ("f16", "bf16"):
            return self.dst(
                d, f"{e}.astype(T_u2) * T_u2({0x3C00 if dty == 'f16' else 0x3F80})", "b16", m
            )
        return self.dst(d, f"(-({e}.astype(T_i4)))", "s32", m)

    def op_selp(self, I, pc, m):
        ty = "b" + str(BITS[I.parts[-1]])
        d, a, b, p = I.args
        A, B, P = self.src(a, ty, m), self.src(b, ty, m), self.src(p, "pred", m)
        return self.dst(d, f"np.where({P}, {A}, {B})", ty, m)

    def op_slct(self, I, pc, m):
        ty = "b" + str(BITS[I.parts[-2]])
        d, a, b, c = I.args
        return self.dst(
            d,
            f"np.where({self.src(c, I.parts[-1], m)} >= 0, {self.src(a, ty, m)}, {self.src(b, ty, m)})",
            ty,
            m,
        )

    # -- data movement ---------------------------------------------------------------------
    def op_nop(self, I, pc, m):
        return []

    def op_mov(self, I, pc, m):
        ty = I.parts[-1]
        d, a = I.args
        if ty == "pred":
            return self.dst(d, self.src(a, "pred", m), "pred", m, alias=True)
        w = BITS[ty]
        bt = f"b{w}"
        if isinstance(a, Vec) and isinstance(d, Vec):
            out = []
            for i, (x, y) in enumerate(zip(d.items, a.items)):
                self.vec = False
                out += self.dst(x, self.src(y, f"b{x.bits}", m), f"b{x.bits}", m, alias=True)
            return out
        if isinstance(a, Vec):
            k = len(a.items)
            e = ", ".join(self.src(x, f"b{w // k}", m) for x in a.items)
            self.vec = True
            return self.dst(d, f"N.pack({self.n(m)}, [{e}], T_u{w // 8 // k}, T_u{w // 8})", bt, m)
        if isinstance(d, Vec):
            k = len(d.items)
            e = self.src(a, bt, m)
            if not self.vec:
                e = f"full_({self.n(m)}, {e})"
            self.vec = True
            out = [f"t = np.ascontiguousarray({e}).view(T_u{w // 8 // k}).reshape(-1, {k})"]
            for i, x in enumerate(d.items):
                out += self.dst(x, f"t[:, {i}].copy()", f"b{w // k}", m)
            return out
        if isinstance(a, Reg) and a.bits != w and isinstance(d, Reg):
            bt = f"b{max(a.bits, w)}" if a.bits == 64 else bt
        return self.dst(d, self.src(a, bt, m), bt, m, alias=True)

    def op_cvta(self, I, pc, m):
        d, a = I.args
        sp = [p for p in I.parts[1:] if p in SPACES]
        sp = sp[0] if sp else "global"
        from . import memory as M

        base = {
            "shared": M.SHARED_WINDOW,
            "shared::cta": M.SHARED_WINDOW,
            "local": M.LOCAL_WINDOW,
            "param": M.PARAM_WINDOW,
            "param::entry": M.PARAM_WINDOW,
        }.get(sp, 0)
        ty = I.parts[-1]
        e = self.src(a, ty, m)
        if base == 0:
            return self.dst(d, e, ty, m, alias=True)
        return self.dst(
            d, f"{e} {'-' if 'to' in I.parts else '+'} {self.const(np.uint64(base))}", ty, m
        )

    def op_isspacep(self, I, pc, m):
        d, a = I.args
        return self.dst(d, f"S.isspace({self.src(a, 'u64', m)}, {I.parts[1]!r})", "pred", m)

    def op_cvt(self, I, pc, m):
        tys = [p for p in I.parts[1:] if p in BITS or p in FP8N]
        dt, st = tys[0], tys[1]
        mods = set(I.parts[1:])
        d = I.args[0]
        rnd = next(
            (
                p
                for p in I.parts[1:]
                if p in ("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi")
            ),
            None,
        )
        sat = "sat" in mods or "satfinite" in mods
        relu = "relu" in mods
        if dt in ("f16x2", "bf16x2") and st == "f32":
            a, b = (self.src(x, "f32", m) for x in I.args[1:3])
            if relu:
                a, b = f"np.fmax({a}, T_f4(0))", f"np.fmax({b}, T_f4(0))"
            if dt == "bf16x2":
                lo, hi = f"N.f2bf({b}, {rnd!r})", f"N.f2bf({a}, {rnd!r})"
            else:
                lo, hi = f"N.f2h({b}, {rnd!r}).view(T_u2)", f"N.f2h({a}, {rnd!r}).view(T_u2)"
            self.vec = True
            return self.dst(d, f"N.pack({self.n(m)}, [{lo}, {hi}], T_u2, T_u4)", "b32", m)
        if dt in FP8N:
            if st == "f32":
                a, b = (f"np.asarray({self.src(x, 'f32', m)})" for x in I.args[1:3])
                self.vec = True
                return self.dst(
                    d,
                    f"N.pack({self.n(m)}, [N.f2fp8({b}, {FP8N[dt]!r}), N.f2fp8({a}, {FP8N[dt]!r})], T_u1, T_u2)",
                    "b16",
                    m,
                )
            x = self.fl(I.args[1], st, m)
            return self.dst(d, f"N.f2fp8({x}, {FP8N[dt]!r}).view(T_u2)", "b16", m)
        if st in FP8N:
            x = self.src(I.args[1], "b16", m)
            e = f"N.FP8[{FP8N[st]!r}][({x}).view(T_u1)]"
            return self.fst(d, e, dt, m)
        a = I.args[1]
        isf = lambda t: t[0] == "f" or t in ("bf16", "tf32")
        if isf(st):
            x = self.fl(a, st, m)
            x = f"np.asarray({x})"
            if dt == "tf32":
                return self.dst(d, f"N.f2tf32({x}, {rnd!r})", "f32", m)
            if not isf(dt):
                return self.dst(d, f"N.f2i({x}, {rnd or 'rzi'!r}, {NPN[dt]})", dt, m)
            if rnd in ("rni", "rzi", "rmi", "rpi"):
                x = f"N.round_int({x}, {rnd!r})"
                return self.fst(d, x, dt, m, sat="sat" in mods)
            if dt == "bf16":
                if st == "f64":
                    x = f"{x}.astype(T_f4)"
                return self.fst(d, x, dt, m, rnd=rnd or "rn", relu=relu)
            if dt == "f16":
                x = f"N.f2h({x}, {rnd!r})"
                return self.fst(d, x, dt, m, sat="sat" in mods, relu=relu)
            if dt == "f32" and st == "f64" and rnd in ("rz", "rm", "rp"):
                return self.fst(d, f"N.dir_round({x}, {rnd!r})", dt, m)
            e = f"{x}.astype({NPN[dt]})"
            return self.fst(d, e, dt, m, sat="sat" in mods)
        x = f"np.asarray({self.src(a, st, m)})"
        if isf(dt):
            if dt == "bf16":
                return self.fst(d, f"N.i2f({x}, T_f4)", dt, m)
            return self.fst(d, f"N.i2f({x}, {NPN[dt]}, {rnd!r})", dt, m)
        if "sat" in mods:
            return self.dst(d, f"N.isat({x}, {NPN[dt]})", dt, m)
        return self.dst(d, f"{x}.astype({NPN[dt]})", dt, m)

    # -- memory ----------------------------------------------------------------------------
    def address(self, A, sp, m):
        """(space, address expression, constant offset)"""
        if isinstance(A.base, Sym):
            s = self.symspace(A.base.name)
            if sp in ("global", "const", None) or s != sp.split("::")[0]:
                sp = s if sp is None or sp in ("param", "param::func", "param::entry") else sp
            return sp, None, self.symaddr(A.base) + A.off
        if A.base is None:
            return sp, None, A.off
        return sp, self.src(A.base, f"b{A.base.bits}", m), A.off

    def memop(self, I):
        sp = next((p for p in I.parts[1:] if p in SPACES), None)
        sp = {
            "shared::cta": "shared",
            "shared::cluster": "shared",
            "param::entry": "param",
            "param::func": "param",
        }.get(sp, sp)
        v = next((int(p[1]) for p in I.parts[1:] if p in ("v2", "v4", "v8")), 1)
        return sp, v, I.parts[-1]

    def op_ld(self, I, pc, m):
        sp, v, ty = self.memop(I)
        d, A = I.args[0], I.args[1]
        sp, a, off = self.address(A, sp, m)
        nb = BITS[ty] // 8
        out = [f"v = S.ld({pc}, {self.ixname(m)}, {sp!r}, {a}, {off}, {nb}, {v})"]
        self.vec = True
        ds = d.items if isinstance(d, Vec) else [d]
        for i, x in enumerate(ds):
            e = f"v[{i}]"
            t = ty
            if ty in ("f16", "bf16", "f32", "f64", "tf32"):
                t = f"b{BITS[ty]}"
            if t[0] == "s":
                e = f"v[{i}].view({NPN[t]})"
            out += self.dst(x, e, t, m)
        return out

    op_ldu = op_ld

    def op_st(self, I, pc, m):
        sp, v, ty = self.memop(I)
        A, s = I.args[0], I.args[1]
        sp, a, off = self.address(A, sp, m)
        w = BITS[ty]
        ss = s.items if isinstance(s, Vec) else [s]
        e = ", ".join(self.src(x, f"b{w}", m) for x in ss)
        return [f"S.st({pc}, {self.ixname(m)}, {sp!r}, {a}, {off}, {w // 8}, [{e}])"]

    def op_prefetch(self, I, pc, m):
        return []

    op_prefetchu = op_applypriority = op_discard = op_prefetch

    def op_createpolicy(self, I, pc, m):
        return self.dst(I.args[0], "T_u8(0)", "b64", m)

    def atomic(self, I, pc, m, ret):
        sp = next((p for p in I.parts[1:] if p in SPACES), None)
        sp = "shared" if sp and sp.startswith("shared") else sp
        op = next(
            p
            for p in I.parts[1:]
            if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
        )
        ty = I.parts[-1]
        v = next((int(p[1]) for p in I.parts[1:] if p in ("v2", "v4", "v8")), 1)
        args = I.args if ret else [None] + I.args
        d, A, b = args[0], args[1], args[2]
        sp, a, off = self.address(A, sp, m)
        bt = f"b{BITS[ty]}"
        vals = b.items if isinstance(b, Vec) else [b]
        ds = d.items if isinstance(d, Vec) else [d]
        out = []
        for i, (x, y) in enumerate(zip(ds, vals)):
            o = off + i * BITS[ty] // 8
            c = self.src(args[3], bt, m) if op == "cas" else "None"
            call = f"S.atom({pc}, {self.ixname(m)}, {sp!r}, {a}, {o}, {op!r}, {ty!r}, {self.src(y, bt, m)}, {c}, {ret and x is not None})"
            if ret and x is not None:
                self.vec = True
                out += [f"t = {call}"] + self.dst(x, "t", bt, m)
            else:
                out += [call]
        return out

    def op_atom(self, I, pc, m):
        return self.atomic(I, pc, m, True)

    def op_red(self, I, pc, m):
        if "async" in I.parts:
            raise Unsupported(I.op)
        return self.atomic(I, pc, m, False)

    # -- synchronisation -------------------------------------------------------------------
    def op_bar(self, I, pc, m):
        parts = [p for p in I.parts if p not in ("cta", "aligned")]
        if parts[1] == "warp":
            mk = self.fullsrc(I.args[0], "u32")
            return [f"S.converge({pc}, {self.ixname(m)}, {mk})", f"return {pc + 1}"]
        if parts[0] == "barrier" and parts[1] == "cluster":
            return [
                f"return S.bar({pc}, {self.ixname(m)}, 15, None, {'wait' in parts})"
                if "wait" in parts
                else f"return {pc + 1}"
            ]
        kind = parts[1]
        if kind == "red":
            op, ty = parts[2], parts[3]
            d = I.args[0]
            a = I.args[1:]
            cnt = self.src(a[1], "u32", m) if len(a) == 3 else "None"
            p = self.src(a[-1], "pred", m)
            return [
                f"return S.bar_red({pc}, {self.ixname(m)}, {self.src(a[0], 'u32', m)}, {cnt}, {op!r}, {p}, {d.slot})"
            ]
        bid = self.src(I.args[0], "u32", m) if I.args else "0"
        cnt = self.src(I.args[1], "u32", m) if len(I.args) > 1 else "None"
        return [f"return S.bar({pc}, {self.ixname(m)}, {bid}, {cnt}, {kind != 'arrive'})"]

    op_barrier = op_bar

    def op_membar(self, I, pc, m):
        return []

    def op_fence(self, I, pc, m):
        if "proxy" in I.parts and any(p.startswith("async") for p in I.parts):
            return [f"S.proxy_fence({self.ixname(m)})"]
        return []

    op_griddepcontrol = op_membar
    op_nanosleep = op_membar
    op_setmaxnreg = op_membar
    op_pmevent = op_membar

    def op_extcall(self, I, pc, m):
        return [f"S.extcall({pc}, {self.ixname(m)}, {I.parts[1]!r})"]

    # -- warp collectives (operate over the full lane domain) ----------------------------------
    def fullsrc(self, op, ty):
        return self.src(op, ty, "full")

    def fulldst(self, op, e, ty, m):
        if op is None:
            return []
        self.vec = True
        return self.dst(op, e if m == "full" else f"({e})[ix]", ty, m)

    def op_shfl(self, I, pc, m):
        mode = I.parts[2]
        d, a, b, c = I.args[:4]
        mk = self.fullsrc(I.args[4], "u32") if len(I.args) > 4 else "0xffffffff"
        out = [
            f"t, u = S.shfl({pc}, {self.ixname(m)}, {mode!r}, {self.fullsrc(a, 'b32')}, {self.fullsrc(b, 'u32')}, {self.fullsrc(c, 'u32')}, {mk})"
        ]
        if isinstance(d, Pair):
            return out + self.fulldst(d.a, "t", "b32", m) + self.fulldst(d.b, "u", "pred", m)
        return out + self.fulldst(d, "t", "b32", m)

    def op_vote(self, I, pc, m):
        mode = I.parts[2] if I.parts[1] == "sync" else I.parts[1]
        d, a = I.args[:2]
        mk = self.fullsrc(I.args[2], "u32") if len(I.args) > 2 else "0xffffffff"
        return [
            f"t = S.vote({pc}, {self.ixname(m)}, {mode!r}, {self.fullsrc(a, 'pred')}, {mk})"
        ] + self.fulldst(d, "t", "b32" if mode == "ballot" else "pred", m)

    def op_activemask(self, I, pc, m):
        return [f"t = S.activemask({self.ixname(m)})"] + self.fulldst(I.args[0], "t", "b32", m)

    def op_redux(self, I, pc, m):
        op, ty = I.parts[2], I.parts[-1]
        return [
            f"t = S.redux({pc}, {self.ixname(m)}, {op!r}, {self.fullsrc(I.args[1], ty)}, {self.fullsrc(I.args[2], 'u32')})"
        ] + self.fulldst(I.args[0], "t", ty, m)

    def op_match(self, I, pc, m):
        ty = I.parts[-1]
        d = I.args[0]
        out = [
            f"t, u = S.match({pc}, {self.ixname(m)}, {I.parts[1]!r}, {self.fullsrc(I.args[1], ty)}, {self.fullsrc(I.args[2], 'u32')})"
        ]
        if isinstance(d, Pair):
            return out + self.fulldst(d.a, "t", "b32", m) + self.fulldst(d.b, "u", "pred", m)
        return out + self.fulldst(d, "t", "b32", m)

    def op_elect(self, I, pc, m):
        d = I.args[0]
        out = [f"t, u = S.elect({pc}, {self.ixname(m)}, {self.fullsrc(I.args[1], 'u32')})"]
        p, q = (d.a, d.b) if isinstance(d, Pair) else (None, d)
        return (
            out
            + (self.fulldst(p, "t", "b32", m) if p is not None else [])
            + self.fulldst(q, "u", "pred", m)
        )

    # -- matrix ----------------------------------------------------------------------------
    def regs(self, op, ty, m):
        xs = op.items if isinstance(op, Vec) else [op]
        out = []
        for x in xs:
            e = self.src(x, ty, m)
            out.append(e if isinstance(x, Reg) else f"full_({self.n(m)}, {e})")
        self.vec = True
        return "[" + ", ".join(out) + "]"

    def op_mma(self, I, pc, m):
        shape = next(p for p in I.parts if p[0] == "m" and p[1:2].isdigit())
        tys = [
            p
            for p in I.parts
            if p
            in ("f16", "bf16", "tf32", "f32", "f64", "s32", "s8", "u8", "e4m3", "e5m2", "s4", "u4")
        ]
        if "sp" in I.parts or "block_scale" in I.parts or "xor" in I.parts or "and" in I.parts:
            raise Unsupported(I.op)
        dt, at, bt, ct = tys
        M = int(shape[1:].split("n")[0])
        if shape == "m8n8k4" and at == "f16":
            raise Unsupported(I.op)
        d, a, b, c = I.args
        w = "b64" if at == "f64" else "b32"
        cw = "b64" if ct == "f64" else "b32"
        out = [
            f"S.whole_warps({pc}, {self.ixname(m)})",
            f"t = W.mma({self.regs(a, w, m)}, {self.regs(b, w, m)}, {self.regs(c, cw, m)}, {M}, {at!r}, {bt!r}, {ct!r}, {dt!r}, {'satfinite' in I.parts})",
        ]
        for i, x in enumerate(d.items if isinstance(d, Vec) else [d]):
            out += self.dst(x, f"t[{i}]", f"b{64 if dt == 'f64' else 32}", m)
        return out

    def op_ldmatrix(self, I, pc, m):
        num = int(next(p for p in I.parts if p in ("x1", "x2", "x4"))[1])
        if I.parts[-1] != "b16":
            raise Unsupported(I.op)
        d, A = I.args
        sp, a, off = self.address(A, "shared", m)
        gen = not any(p.startswith("shared") for p in I.parts)
        out = [
            f"S.whole_warps({pc}, {self.ixname(m)})",
            f"t = W.ldmatrix_words(S, {pc}, {self.ixname(m)}, S.shaddr({self.ixname(m)}, {a}, {off}, {gen}), {num}, {'trans' in I.parts})",
        ]
        self.vec = True
        for i, x in enumerate(d.items if isinstance(d, Vec) else [d]):
            out += self.dst(x, f"t[{i}]", "b32", m)
        return out

    def op_stmatrix(self, I, pc, m):
        if I.parts[-1] != "b16":
            raise Unsupported(I.op)
        A, s = I.args
        sp, a, off = self.address(A, "shared", m)
        gen = not any(p.startswith("shared") for p in I.parts)
        return [
            f"S.whole_warps({pc}, {self.ixname(m)})",
            f"W.stmatrix_words(S, {pc}, {self.ixname(m)}, S.shaddr({self.ixname(m)}, {a}, {off}, {gen}), {self.regs(s, 'b32', m)}, {'trans' in I.parts})",
        ]

    def op_movmatrix(self, I, pc, m):
        e = self.src(I.args[1], "b32", m)
        return [
            f"S.whole_warps({pc}, {self.ixname(m)})",
            f"t = np.ascontiguousarray({e}.reshape(-1, 8, 4)).view(T_u2).transpose(0, 2, 1).copy().view(T_u4).reshape(-1)",
        ] + self.dst(I.args[0], "t", "b32", m)

    def op_wmma(self, I, pc, m):
        parts = I.parts
        kind = parts[1]
        shape = next(p for p in parts if p[0] == "m" and p[1:2].isdigit())
        M, rest = shape[1:].split("n")
        Nn, K = rest.split("k")
        M, Nn, K = int(M), int(Nn), int(K)
        lay = [p for p in parts if p in ("row", "col")]
        sp = next((p for p in parts if p in ("global", "shared", "shared::cta")), None)
        sp = "shared" if sp == "shared::cta" else sp
        ix = self.ixname(m)
        head = [f"S.whole_warps({pc}, {ix})"]
        if kind in ("load", "store"):
            which = parts[2]
            ty = parts[-1]
            rows, cols = {"a": (M, K), "b": (K, Nn), "c": (M, Nn), "d": (M, Nn)}[which]
            A = I.args[1] if kind == "load" else I.args[0]
            regs = I.args[0] if kind == "load" else I.args[1]
            sp, a, off = self.address(A, sp, m)
            ld = (
                self.src(I.args[2], "u32", m)
                if len(I.args) > 2
                else str(cols if lay[0] == "row" else rows)
            )
            self.vec = True
            w = "b64" if ty == "f64" else "b32"
            if kind == "load":
                out = head + [
                    f"t = S.wmma_load({pc}, {ix}, {sp!r}, {a}, {off}, {ld}, {rows}, {cols}, {lay[0]!r}, {ty!r}, {len(regs.items)})"
                ]
                for i, x in enumerate(regs.items):
                    out += self.dst(x, f"t[{i}]", w, m)
                return out
            return head + [
                f"S.wmma_store({pc}, {ix}, {sp!r}, {a}, {off}, {ld}, {rows}, {cols}, {lay[0]!r}, {ty!r}, {self.regs(regs, w, m)})"
            ]
        tys = [p for p in parts if p in ("f16", "bf16", "tf32", "f32", "f64", "s32", "s8", "u8")]
        if len(tys) == 2:  # wmma.mma ... .dtype.ctype  (f16 multiplicands)
            dt, at, bt, ct = tys[0], "f16", "f16", tys[1]
        else:
            dt, at, bt, ct = tys
        d, a, b, c = I.args
        w = lambda t: "b64" if t == "f64" else "b32"
        out = head + [
            f"t = S.wmma_mma({self.regs(a, w(at), m)}, {self.regs(b, w(bt), m)}, {self.regs(c, w(ct), m)}, {M}, {Nn}, {K}, {at!r}, {bt!r}, {ct!r}, {dt!r}, {len(d.items)})"
        ]
        for i, x in enumerate(d.items):
            out += self.dst(x, f"t[{i}]", w(dt), m)
        return out

    # -- asynchronous copies ---------------------------------------------------------------
    def op_cp(self, I, pc, m):
        ix = self.ixname(m)
        p = I.parts
        if p[1] == "async" and p[2] == "bulk":
            return self.op_cp_bulk(I, pc, m)
        if p[1] == "reduce":
            return self.op_cp_bulk(I, pc, m)
        if p[2] == "commit_group":
            return [f"S.cp_commit({ix})"]
        if p[2] == "wait_group":
            return [f"S.cp_wait({ix}, {I.args[0].value})"]
        if p[2] == "wait_all":
            return [f"S.cp_commit({ix})", f"S.cp_wait({ix}, 0)"]
        if p[2] == "mbarrier":
            a = self.src(I.args[0].base, f"b{I.args[0].base.bits}", m)
            return [f"S.cp_mbar_arrive({pc}, {ix}, {a}, {I.args[0].off}, {'noinc' in p})"]
        D, Sx = I.args[0], I.args[1]
        nb = I.args[2].value
        rest = [x for x in I.args[3:]]
        ssz = "None"
        if "L2::cache_hint" in I.op:
            rest = rest[:-1]
        if rest and not (isinstance(rest[0], Reg) and rest[0].bits == 64):
            if isinstance(rest[0], Reg) and rest[0].bits == 1:  # ignore-src predicate
                ssz = f"np.where({self.src(rest[0], 'pred', m)}, 0, {nb})"
            else:
                ssz = self.src(rest[0], "u32", m)
        _, da, doff = self.address(D, "shared", m)
        _, sa, soff = self.address(Sx, "global", m)
        return [f"S.cp_async({pc}, {ix}, {da}, {doff}, {sa}, {soff}, {nb}, {ssz})"]

    def op_cp_bulk(self, I, pc, m):
        ix, p, a = self.ixname(m), I.parts, I.args
        if "commit_group" in p:
            return [f"S.bulk_commit({ix})"]
        if "wait_group" in p:
            return [f"S.bulk_wait({ix}, {a[0].value})"]
        if "prefetch" in p:
            return []

        def ea(x, sp):
            if isinstance(x, Addr):
                s, e, off = self.address(x, sp, m)
                if sp == "param" or (isinstance(x.base, Sym) and s == "param"):
                    from . import memory as M

                    off += M.PARAM_WINDOW
                return f"{e}, {off}"
            return f"{self.src(x, f'b{x.bits}', m)}, 0"

        reduce = p[0] == "cp" and "reduce" in p
        op = next((x for x in p if x in ("add", "min", "max")), None) if reduce else None
        i = p.index("bulk")
        if p[i + 1] == "tensor":
            if any(x.startswith(("im2col", "tile::gather", "tile::scatter")) for x in p):
                raise Unsupported(I.op)
            if "bulk_group" in p:
                c = ", ".join(self.src(x, "s32", m) for x in a[0].coords[0].items)
                return [
                    f"S.tma_store({pc}, {ix}, {ea(a[0], 'global')}, [{c}], {ea(a[1], 'shared')}, {op!r})"
                ]
            c = ", ".join(self.src(x, "s32", m) for x in a[1].coords[0].items)
            return [
                f"S.tma_load({pc}, {ix}, {ea(a[0], 'shared')}, {ea(a[1], 'global')}, [{c}], {ea(a[2], 'shared')})"
            ]
        if reduce:
            raise Unsupported(I.op)
        if "bulk_group" in p:
            return [
                f"S.bulk_store({pc}, {ix}, {ea(a[0], 'global')}, {ea(a[1], 'shared')}, {self.src(a[2], 'u32', m)})"
            ]
        return [
            f"S.bulk_load({pc}, {ix}, {ea(a[0], 'shared')}, {ea(a[1], 'global')}, {self.src(a[2], 'u32', m)}, {ea(a[3], 'shared')})"
        ]

    def op_mbarrier(self, I, pc, m):
        ix, p, a = self.ixname(m), I.parts, I.args
        kind = p[1]

        def ea(x):
            s, e, off = self.address(x, "shared", m)
            return f"{e}, {off}"

        if kind == "init":
            return [f"S.mb_init({pc}, {ix}, {ea(a[0])}, {self.src(a[1], 'u32', m)})"]
        if kind == "inval":
            return [f"S.mb_inval({pc}, {ix}, {ea(a[0])})"]
        if kind in ("expect_tx", "complete_tx"):
            t = self.src(a[1], "u32", m)
            t = (
                f"np.asarray({t}).astype(T_i8)"
                if kind == "expect_tx"
                else f"-np.asarray({t}).astype(T_i8)"
            )
            return [f"S.mb_arrive({pc}, {ix}, {ea(a[0])}, 0, {t}, False)"]
        if kind in ("arrive", "arrive_drop"):
            if isinstance(a[0], Addr):
                d, rest = None, a
            else:
                d, rest = a[0], a[1:]
            tx, cnt = "0", "1"
            if "expect_tx" in p:
                tx = self.src(rest[1], "u32", m)
            elif len(rest) > 1:
                cnt = self.src(rest[1], "u32", m)
            call = f"S.mb_arrive({pc}, {ix}, {ea(rest[0])}, {cnt}, {tx})"
            self.vec = True
            return [f"t = {call}"] + self.dst(d, "t", "b64", m)
        if kind in ("try_wait", "test_wait"):
            par = "parity" in p
            t = self.src(a[2], "u32" if par else "b64", m)
            return [f"return S.mb_wait({pc}, {ix}, {ea(a[1])}, {t}, {par}, {a[0].slot})"]
        raise Unsupported(I.op)

    def op_mapa(self, I, pc, m):
        d, a = I.args[:2]
        ty = I.parts[-1]
        return self.dst(d, self.src(a.base if isinstance(a, Addr) else a, ty, m), ty, m, alias=True)

    def op_getctarank(self, I, pc, m):
        return self.dst(I.args[0], "T_u4(0)", "u32", m)

    def op_tensormap(self, I, pc, m):
        ix, p, a = self.ixname(m), I.parts, I.args
        if p[1] == "cp_fenceproxy":
            ds, de, do = self.address(a[0], "global", m)
            ss, se, so = self.address(a[1], "shared", m)
            return [f"S.tmap_copy({pc}, {ix}, {de}, {do}, {se}, {so})"]
        sp, e, off = self.address(
            a[0], "shared" if any(x.startswith("shared") for x in p) else "global", m
        )
        ordn = a[1].value if len(a) == 3 else 0
        ty = p[-1]
        return [
            f"S.tmap_replace({pc}, {ix}, {e}, {off}, {p[3 if p[2] == 'tile' else 2]!r}, {ordn}, {self.src(a[-1], ty, m)}, {sp == 'shared'})"
        ]

    def op_wgmma(self, I, pc, m):
        ix, p, a = self.ixname(m), I.parts, I.args
        if p[1] == "fence":
            return []
        if p[1] == "commit_group":
            return [f"S.whole_groups({pc}, {ix})", f"S.wg_commit({ix})"]
        if p[1] == "wait_group":
            return [f"S.whole_groups({pc}, {ix})", f"S.wg_wait({ix}, {a[0].value})"]
        if "sp" in p:
            raise Unsupported(I.op)
        shape = next(x for x in p if x.startswith("m64n"))
        n, k = shape[4:].split("k")
        tys = [
            x for x in p if x in ("f16", "bf16", "tf32", "f32", "s32", "s8", "u8", "e4m3", "e5m2")
        ]
        dt, at, bt = tys
        d, A, B, sd = a[:4]
        imm = [x.value for x in a[4:]]
        sa = sb = 1
        ta = tb = 0
        if at not in ("s8", "u8"):
            sa, sb = imm[:2]
            rest = imm[2:]
            if rest:
                ta, tb = (0, rest[0]) if isinstance(A, Vec) else rest
        if isinstance(sd, Imm):
            sde = f"np.bool_({bool(sd.value)})"
        else:
            sde = self.src(sd, "pred", m) + (".copy()" if m == "full" else "")
        cp = ".copy()" if m == "full" else ""
        aregs = [x.slot for x in A.items] if isinstance(A, Vec) else None
        ad = "None" if aregs else self.src(A, "b64", m) + cp
        return [
            f"S.whole_groups({pc}, {ix})",
            f"S.wgmma({pc}, {ix}, dict(N={int(n)}, K={int(k)}, aty={at!r}, bty={bt!r}, dty={dt!r}, dregs={[x.slot for x in d.items]}, "
            f"aregs={aregs}, adesc={ad}, bdesc={self.src(B, 'b64', m)}{cp}, scaled={sde}, sa={sa}, sb={sb}, ta={ta}, tb={tb}))",
        ]
