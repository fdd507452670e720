"""Moves and conversions."""

import numpy as np

from ..memory import LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW
from ..syntax import BITS, Address, Register, Vector
from .base import FP8_NAME, NUMPY_NAME, SPACES, Emitter


def _is_float(dtype: str) -> bool:
    return dtype[0] == "f" or dtype in ("bf16", "tf32")


class Moves(Emitter):
    """Moves and conversions."""

    def op_nop(self) -> list[str]:
        return []

    def op_mov(self) -> list[str]:
        dtype = self.parts[-1]
        d, a = self.args
        if dtype == "pred":
            return self.assign(d, self.operand(a, "pred"), "pred", alias=True)
        w = BITS[dtype]
        bt = f"b{w}"
        if isinstance(a, Vector) and isinstance(d, Vector):
            out = []
            for x, y in zip(d.items, a.items, strict=False):
                self.vector = False
                out += self.assign(x, self.operand(y, f"b{x.bits}"), f"b{x.bits}", alias=True)
            return out
        if isinstance(a, Vector):
            k = len(a.items)
            e = ", ".join(self.operand(x, f"b{w // k}") for x in a.items)
            self.vector = True
            return self.assign(
                d, f"numerics.pack({self.count}, [{e}], T_u{w // 8 // k}, T_u{w // 8})", bt
            )
        if isinstance(d, Vector):
            k = len(d.items)
            e = self.operand(a, bt)
            if not self.vector:
                e = f"np.full({self.count}, {e})"
            self.vector = True
            out = [f"t = np.ascontiguousarray({e}).view(T_u{w // 8 // k}).reshape(-1, {k})"]
            for i, x in enumerate(d.items):
                out += self.assign(x, f"t[:, {i}].copy()", f"b{w // k}")
            return out
        if isinstance(a, Register) and a.bits != w and isinstance(d, Register):
            bt = f"b{max(a.bits, w)}" if a.bits == 64 else bt
        return self.assign(d, self.operand(a, bt), bt, alias=True)

    def op_cvta(self) -> list[str]:
        d, a = self.args
        space = [p for p in self.parts[1:] if p in SPACES]
        space = space[0] if space else "global"
        base = {
            "shared": SHARED_WINDOW,
            "shared::cta": SHARED_WINDOW,
            "local": LOCAL_WINDOW,
            "param": PARAM_WINDOW,
            "param::entry": PARAM_WINDOW,
        }.get(space, 0)
        dtype = self.parts[-1]
        e = self.operand(a, dtype)
        if base == 0:
            return self.assign(d, e, dtype, alias=True)
        return self.assign(
            d, f"{e} {'-' if 'to' in self.parts else '+'} {self.constant(np.uint64(base))}", dtype
        )

    def op_isspacep(self) -> list[str]:
        d, a = self.args
        return self.assign(
            d, f"batch.is_space({self.operand(a, 'u64')}, {self.parts[1]!r})", "pred"
        )

    def op_cvt(self) -> list[str]:
        tys = [p for p in self.parts[1:] if p in BITS or p in FP8_NAME]
        dt, st = tys[0], tys[1]
        mods = set(self.parts[1:])
        d = self.args[0]
        rounding = next(
            (
                p
                for p in self.parts[1:]
                if p in ("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi")
            ),
            None,
        )
        relu = "relu" in mods
        if dt in ("f16x2", "bf16x2") and st == "f32":
            a, b = (self.operand(x, "f32") for x in self.args[1:3])
            if relu:
                a, b = f"np.fmax({a}, T_f4(0))", f"np.fmax({b}, T_f4(0))"
            if dt == "bf16x2":
                lo, hi = (
                    f"numerics.float_to_bfloat16({b}, {rounding!r})",
                    f"numerics.float_to_bfloat16({a}, {rounding!r})",
                )
            else:
                lo, hi = (
                    f"numerics.float_to_half({b}, {rounding!r}).view(T_u2)",
                    f"numerics.float_to_half({a}, {rounding!r}).view(T_u2)",
                )
            self.vector = True
            return self.assign(d, f"numerics.pack({self.count}, [{lo}, {hi}], T_u2, T_u4)", "b32")
        if dt in FP8_NAME:
            if st == "f32":
                a, b = (f"np.asarray({self.operand(x, 'f32')})" for x in self.args[1:3])
                self.vector = True
                pair = ", ".join(f"numerics.float_to_fp8({x}, {FP8_NAME[dt]!r})" for x in (b, a))
                return self.assign(d, f"numerics.pack({self.count}, [{pair}], T_u1, T_u2)", "b16")
            x = self.value(self.args[1], st)
            return self.assign(d, f"numerics.float_to_fp8({x}, {FP8_NAME[dt]!r}).view(T_u2)", "b16")
        if st in FP8_NAME:
            x = self.operand(self.args[1], "b16")
            e = f"numerics.FP8[{FP8_NAME[st]!r}][({x}).view(T_u1)]"
            return self.assign_float(d, e, dt)
        a = self.args[1]

        if _is_float(st):
            x = self.value(a, st)
            x = f"np.asarray({x})"
            if dt == "tf32":
                return self.assign(d, f"numerics.float_to_tf32({x}, {rounding!r})", "f32")
            if not _is_float(dt):
                return self.assign(
                    d, f"numerics.float_to_int({x}, {rounding or 'rzi'!r}, {NUMPY_NAME[dt]})", dt
                )
            if rounding in ("rni", "rzi", "rmi", "rpi"):
                x = f"numerics.round_int({x}, {rounding!r})"
                return self.assign_float(d, x, dt, sat="sat" in mods)
            if dt == "bf16":
                if st == "f64":
                    x = f"{x}.astype(T_f4)"
                return self.assign_float(d, x, dt, rounding=rounding or "rn", relu=relu)
            if dt == "f16":
                x = f"numerics.float_to_half({x}, {rounding!r})"
                return self.assign_float(d, x, dt, sat="sat" in mods, relu=relu)
            if dt == "f32" and st == "f64" and rounding in ("rz", "rm", "rp"):
                return self.assign_float(d, f"numerics.round_directed({x}, {rounding!r})", dt)
            e = f"{x}.astype({NUMPY_NAME[dt]})"
            return self.assign_float(d, e, dt, sat="sat" in mods)
        x = f"np.asarray({self.operand(a, st)})"
        if _is_float(dt):
            if dt == "bf16":
                return self.assign_float(d, f"numerics.int_to_float({x}, T_f4)", dt)
            return self.assign_float(
                d, f"numerics.int_to_float({x}, {NUMPY_NAME[dt]}, {rounding!r})", dt
            )
        if "sat" in mods:
            return self.assign(d, f"numerics.saturate_int({x}, {NUMPY_NAME[dt]})", dt)
        return self.assign(d, f"{x}.astype({NUMPY_NAME[dt]})", dt)

    def op_mapa(self) -> list[str]:
        d, a = self.args[:2]
        dtype = self.parts[-1]
        return self.assign(
            d, self.operand(a.base if isinstance(a, Address) else a, dtype), dtype, alias=True
        )

    def op_getctarank(self) -> list[str]:
        return self.assign(self.args[0], "T_u4(0)", "u32")
