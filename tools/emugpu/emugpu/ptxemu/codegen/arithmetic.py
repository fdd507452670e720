"""Arithmetic on floats and integers."""

from ..errors import UnsupportedError
from ..syntax import BITS, Register
from .base import INTEGERS, NUMPY_NAME, Emitter


class Arithmetic(Emitter):
    """Arithmetic on floats and integers."""

    def binary(self, sym: str) -> list[str]:
        """Addition, subtraction or multiplication."""
        dtype = self.parts[-1]
        d, a, b = self.args
        if dtype in INTEGERS:
            if sym in "+-" and ("cc" in self.parts):
                return self.carry(sym, False)
            if "sat" in self.parts:
                wide = f"{self.operand(a, dtype)}.astype(T_i8) {sym} {self.operand(b, dtype)}"
                clipped = f"np.clip({wide}, -2**31, 2**31-1).astype(T_i4)"
                return self.assign(d, clipped, dtype)
            return self.assign(d, f"{self.operand(a, dtype)} {sym} {self.operand(b, dtype)}", dtype)
        r = self.rounding()
        A, B = self.value(a, dtype), self.value(b, dtype)
        e = f"{A} {sym} {B}"
        if r != "rn":
            e = f"numerics.arithmetic_directed({sym!r}, {A}, {B}, {r!r})"
        return self.assign_float(d, e, dtype, sat="sat" in self.parts)

    def carry(self, sym: str, cin: bool) -> list[str]:
        """Addition or subtraction with carry out (``.cc``) and, if ``cin``, carry in."""
        dtype = self.parts[-1]
        d, a, b = self.args
        U = "u" + dtype[1:]
        w = BITS[dtype]
        A, B = self.operand(a, U), self.operand(b, U)
        cc = self.carry_register()
        c = self.raw(cc) if cin else "False"
        named = (("x", A), ("y", B), ("z", c))
        e = [f"{name} = np.asarray({value}).astype(T_u8)" for name, value in named]
        if w == 32:
            e += ["t = x + y + z" if sym == "+" else "t = x - y - z"]
            e += ["co = (t >> 32) != 0"]
        elif sym == "+":
            e += ["t = x + y", "co = t < x", "t = t + z", "co |= t < z"]
        else:
            e += ["t = x - y", "co = x < y", "co |= t < z", "t = t - z"]
        out = e + self.assign(d, f"t.astype(T_u{w // 8})", U)
        if "cc" in self.parts:
            out += self.assign(cc, "co", "pred")
        return out

    def carry_register(self) -> Register:
        """The register CC.CF, one for each lane."""
        if not hasattr(self.program, "cc"):
            self.program.register_bits.append(1)
            self.program.register_names.append("CC")
            self.program.register_count += 1
            self.program.cc = Register(self.program.register_count - 1, 1, "CC")
        return self.program.cc

    def op_add(self) -> list[str]:
        return self.binary("+")

    def op_sub(self) -> list[str]:
        return self.binary("-")

    def op_addc(self) -> list[str]:
        return self.carry("+", True)

    def op_subc(self) -> list[str]:
        return self.carry("-", True)

    def op_mul(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b = self.args
        if "wide" in self.parts:
            W = dtype[0] + str(BITS[dtype] * 2)
            t = NUMPY_NAME[W]
            return self.assign(
                d, f"np.multiply({self.operand(a, dtype)}, {self.operand(b, dtype)}, dtype={t})", W
            )
        if "hi" in self.parts:
            return self.assign(
                d,
                f"numerics.multiply_high({self.operand(a, dtype)}, {self.operand(b, dtype)})",
                dtype,
            )
        return self.binary("*")

    op_mul24 = op_mul

    def op_mad(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b, c = self.args
        if dtype not in INTEGERS:
            return self.op_fma()
        if "cc" in self.parts:
            raise UnsupportedError(self.opcode)
        if "wide" in self.parts:
            W = dtype[0] + str(BITS[dtype] * 2)
            factors = self.operands([a, b], dtype)
            product = f"np.multiply({factors}, dtype={NUMPY_NAME[W]})"
            return self.assign(d, f"{product} + {self.operand(c, W)}", W)
        if "hi" in self.parts:
            product = f"numerics.multiply_high({self.operands([a, b], dtype)})"
            return self.assign(d, f"{product} + {self.operand(c, dtype)}", dtype)
        return self.assign(
            d,
            f"{self.operand(a, dtype)} * {self.operand(b, dtype)} + {self.operand(c, dtype)}",
            dtype,
        )

    def op_fma(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b, c = self.args
        a, b, c = (self.value(op, dtype) for op in (a, b, c))
        e = f"numerics.fma(np.asarray({a}), {b}, {c}, {self.rounding()!r})"
        return self.assign_float(d, e, dtype, sat="sat" in self.parts, relu="relu" in self.parts)

    def op_div(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b = self.args
        if dtype in INTEGERS:
            return self.assign(
                d, f"numerics.divide_int({self.operand(a, dtype)}, {self.operand(b, dtype)})", dtype
            )
        r = self.rounding()
        a, b = self.value(a, dtype), self.value(b, dtype)
        if r != "rn":
            e = f"numerics.arithmetic_directed('/', {a}, {b}, {r!r})"
            return self.assign_float(d, e, dtype)
        return self.assign_float(d, f"{a} / {b}", dtype)

    def op_rem(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b = self.args
        return self.assign(
            d, f"numerics.remainder_int({self.operand(a, dtype)}, {self.operand(b, dtype)})", dtype
        )

    def extremum(self, name: str) -> list[str]:
        """min or max, of two operands or three."""
        dtype = self.parts[-1]
        d, xs = self.args[0], self.args[1:]
        if dtype in INTEGERS:
            f = "np.minimum" if name == "min" else "np.maximum"
            e = f"{f}({self.operand(xs[0], dtype)}, {self.operand(xs[1], dtype)})"
            if "relu" in self.parts:
                e = f"np.maximum({e}, 0)"
            return self.assign(d, e, dtype)
        if "xorsign" in self.parts:
            raise UnsupportedError(self.opcode)
        f = f"np.{name}imum" if "NaN" in self.parts else f"np.f{name}"
        outer = "np.abs({})" if "abs" in self.parts else "{}"
        e, *rest = (outer.format(self.value(x, dtype)) for x in xs)
        for x in rest:
            e = f"{f}({e}, {x})"
        return self.assign_float(d, e, dtype)

    def op_min(self) -> list[str]:
        return self.extremum("min")

    def op_max(self) -> list[str]:
        return self.extremum("max")

    def unary(self, fmt: str) -> list[str]:
        """A function of one operand; ``fmt`` has a place for it."""
        dtype = self.parts[-1]
        d, a = self.args
        if dtype in INTEGERS:
            return self.assign(d, fmt.format(self.operand(a, dtype)), dtype)
        return self.assign_float(
            d, fmt.format(self.value(a, dtype)), dtype, sat="sat" in self.parts
        )

    def op_neg(self) -> list[str]:
        return self.unary("-{}")

    def op_abs(self) -> list[str]:
        return self.unary("np.abs({})")

    def op_sqrt(self) -> list[str]:
        return self.unary("np.sqrt({})")

    def op_rsqrt(self) -> list[str]:
        return self.unary("(1 / np.sqrt({}))")

    def op_rcp(self) -> list[str]:
        return self.unary("(1 / {})")

    def op_ex2(self) -> list[str]:
        return self.unary("np.exp2({})")

    def op_lg2(self) -> list[str]:
        return self.unary("np.log2({})")

    def op_sin(self) -> list[str]:
        return self.unary("np.sin({})")

    def op_cos(self) -> list[str]:
        return self.unary("np.cos({})")

    def op_tanh(self) -> list[str]:
        return self.unary("np.tanh({})")

    def op_copysign(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b = self.args
        return self.assign_float(
            d, f"np.copysign({self.value(b, dtype)}, {self.value(a, dtype)})", dtype
        )

    def op_testp(self) -> list[str]:
        dtype = self.parts[-1]
        d, a = self.args
        f = dict(
            finite="np.isfinite({})",
            infinite="np.isinf({})",
            number="~np.isnan({})",
            notanumber="np.isnan({})",
            normal="(np.abs({0}) >= np.finfo({0}.dtype).tiny) & np.isfinite({0})",
            subnormal="(np.abs({0}) < np.finfo({0}.dtype).tiny) & ({0} != 0)",
        )[self.parts[1]]
        return self.assign(d, f.format(self.operand(a, dtype)), "pred")

    def op_sad(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b, c = self.args
        A, B = self.operand(a, dtype), self.operand(b, dtype)
        return self.assign(
            d, f"(np.maximum({A}, {B}) - np.minimum({A}, {B})) + {self.operand(c, dtype)}", dtype
        )

    def op_dp4a(self) -> list[str]:
        d, a, b, c = self.args
        at, bt = self.parts[1], self.parts[2]
        a, b, c = self.operand(a, at), self.operand(b, bt), self.operand(c, "s32")
        return self.assign(d, f"numerics.dot4({a}, np.asarray({b}), {c})", "s32")
