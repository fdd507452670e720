"""Comparisons and selection."""

from typing import Any

from ..syntax import BITS, Pair
from .base import INTEGERS, Emitter

SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_SIGNS = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
COMBINE = {"and": "&", "or": "|", "xor": "^"}
# 1.0 in 16 bits
ONE = {"f16": 0x3C00, "f16x2": 0x3C00, "bf16": 0x3F80, "bf16x2": 0x3F80}


class Comparisons(Emitter):
    """Comparisons and selection."""

    def _compare(self, op: str, dtype: str, a: Any, b: Any) -> str:
        if dtype in INTEGERS:
            if op in UNSIGNED_SIGNS:
                dtype = "u" + dtype[1:]
            sign = (SIGNS | UNSIGNED_SIGNS)[op]
            return f"({self.operand(a, dtype)} {sign} {self.operand(b, dtype)})"
        a, b = self.value(a, dtype), self.value(b, dtype)
        if op in ("eq", "lt", "le", "gt", "ge"):
            return f"({a} {SIGNS[op]} {b})"
        return f"numerics.compare_floats({op!r}, {a}, {b})"

    def op_setp(self) -> list[str]:
        op, *middle, dtype = (part for part in self.parts[1:] if part != "ftz")
        d, a, b = self.args[:3]
        result = self._compare(op, dtype, a, b)
        if dtype in ("f16x2", "bf16x2"):
            low, high = (d.a, d.b) if isinstance(d, Pair) else (d, None)
            lines = [f"t = {result}", *self.assign(low, "t[0::2].copy()", "pred")]
            return lines + (self.assign(high, "t[1::2].copy()", "pred") if high else [])
        combined = ""
        if middle:
            combined = f" {COMBINE[middle[0]]} {self.operand(self.args[3], 'pred')}"
        if not isinstance(d, Pair):
            return self.assign(d, result + combined, "pred")
        # Both destinations need the values from before.
        lines = [f"t = {result}"]
        if middle:
            lines.append(f"u = {self.operand(self.args[3], 'pred')}")
            combined = f" {COMBINE[middle[0]]} u"
        lines += self.assign(d.a, f"t{combined}", "pred")
        return lines + self.assign(d.b, f"(~t){combined}", "pred")

    def op_set(self) -> list[str]:
        op, *middle, dtype, source = (part for part in self.parts[1:] if part != "ftz")
        d, a, b = self.args[:3]
        result = self._compare(op, source, a, b)
        if middle:
            result = f"({result} {COMBINE[middle[0]]} {self.operand(self.args[3], 'pred')})"
        if dtype in ("f16x2", "bf16x2"):
            ones = f"{result}.astype(T_u2) * T_u2({ONE[dtype]})"
            return self.assign(d, f"({ones}).view(T_u4)", "b32")
        if dtype == "f32":
            return self.assign(d, f"{result}.astype(T_f4)", "f32")
        if dtype in ("f16", "bf16"):
            return self.assign(d, f"{result}.astype(T_u2) * T_u2({ONE[dtype]})", "b16")
        return self.assign(d, f"(-({result}.astype(T_i4)))", "s32")

    def op_selp(self) -> list[str]:
        dtype = f"b{BITS[self.parts[-1]]}"
        d, a, b, p = self.args
        picked = f"np.where({self.operand(p, 'pred')}, {self.operands([a, b], dtype)})"
        return self.assign(d, picked, dtype)

    def op_slct(self) -> list[str]:
        dtype = f"b{BITS[self.parts[-2]]}"
        d, a, b, c = self.args
        sign = self.operand(c, self.parts[-1])
        return self.assign(d, f"np.where({sign} >= 0, {self.operands([a, b], dtype)})", dtype)
