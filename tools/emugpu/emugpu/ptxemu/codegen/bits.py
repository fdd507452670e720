"""Logic, shifts and bit fields."""

import numpy as np

from ..errors import UnsupportedError
from ..numerics import NUMPY_TYPE
from ..syntax import BITS, Immediate, Pair, Register
from .base import NUMPY_NAME, Emitter


class Bits(Emitter):
    """Logic, shifts and bit fields."""

    def _logic(self, sign: str) -> list[str]:
        dtype = self.parts[-1]
        d, a, b = self.args
        return self.assign(d, f"{self.operand(a, dtype)} {sign} {self.operand(b, dtype)}", dtype)

    def op_and(self) -> list[str]:
        return self._logic("&")

    def op_or(self) -> list[str]:
        return self._logic("|")

    def op_xor(self) -> list[str]:
        return self._logic("^")

    def op_not(self) -> list[str]:
        dtype = self.parts[-1]
        d, a = self.args
        return self.assign(d, f"~{self.operand(a, dtype)}", dtype)

    def op_cnot(self) -> list[str]:
        dtype = self.parts[-1]
        d, a = self.args
        zero = f"({self.operand(a, dtype)} == 0)"
        return self.assign(d, f"{zero}.astype({NUMPY_NAME[dtype]})", dtype)

    def _shift(self, left: bool) -> list[str]:
        """A shift by the width or more leaves zeros, or the sign."""
        dtype = self.parts[-1]
        d, a, b = self.args
        bits = BITS[dtype]
        dtype = "u" + dtype[1:] if dtype[0] == "b" else dtype
        if isinstance(b, Immediate) and isinstance(a, Register):
            by = b.value & 0xFFFFFFFF
            if by >= bits:
                if left or dtype[0] != "s":
                    return self.assign(d, f"np.full({self.count}, T_u{bits // 8}(0))", dtype)
                by = bits - 1
            by = self.constant(np.array(by).astype(NUMPY_TYPE[dtype])[()])
            return self.assign(d, f"{self.operand(a, dtype)} {'<<' if left else '>>'} {by}", dtype)
        function = "shift_left" if left else "shift_right"
        a, b = self.operand(a, dtype), self.operand(b, "u32")
        return self.assign(d, f"numerics.{function}(np.asarray({a}), {b})", dtype)

    def op_shl(self) -> list[str]:
        return self._shift(True)

    def op_shr(self) -> list[str]:
        return self._shift(False)

    def op_shf(self) -> list[str]:
        d, *abc = self.args
        options = f"{self.parts[1] == 'l'}, {self.parts[2] == 'clamp'}"
        shifted = f"numerics.funnel_shift({self.operands(abc, 'u32')}, {options})"
        return self.assign(d, shifted, "u32")

    def op_lop3(self) -> list[str]:
        d, a, b, c, table = self.args[:5]
        if isinstance(d, Pair) or "BoolOp" in self.opcode:
            raise UnsupportedError(self.opcode)
        result = f"numerics.logic3({self.operands([a, b, c], 'b32')}, {table.value})"
        return self.assign(d, result, "b32")

    def op_prmt(self) -> list[str]:
        d, *abc = self.args[:4]
        operands = self.operands(abc, "b32")
        if len(self.parts) > 2:
            picked = f"numerics.permute_bytes_mode({operands}, {self.parts[2]!r})"
            return self.assign(d, picked, "b32")
        return self.assign(d, f"numerics.permute_bytes({operands})", "b32")

    def op_bfe(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, *field = self.args
        a = f"np.atleast_1d({self.operand(a, dtype)})"
        return self.assign(d, f"numerics.extract_bits({a}, {self.operands(field, 'u32')})", dtype)

    def op_bfi(self) -> list[str]:
        dtype = self.parts[-1]
        target, a, b, *field = self.args
        a, b = (f"np.asarray({self.operand(op, dtype)})" for op in (a, b))
        inserted = f"numerics.insert_bits({a}, {b}, {self.operands(field, 'u32')})"
        return self.assign(target, inserted, dtype)

    def op_popc(self) -> list[str]:
        d, a = self.args
        count = f"np.bitwise_count({self.operand(a, self.parts[-1])})"
        return self.assign(d, f"{count}.astype(T_u4)", "u32")

    def op_clz(self) -> list[str]:
        d, a = self.args
        return self.assign(d, f"numerics.leading_zeros({self.operand(a, self.parts[-1])})", "u32")

    def op_brev(self) -> list[str]:
        dtype = self.parts[-1]
        d, a = self.args
        return self.assign(d, f"numerics.reverse_bits({self.operand(a, dtype)})", dtype)

    def op_bfind(self) -> list[str]:
        d, a = self.args
        a = self.operand(a, self.parts[-1])
        return self.assign(d, f"numerics.leading_one({a}, {'shiftamt' in self.parts})", "u32")

    def op_bmsk(self) -> list[str]:
        d, *field = self.args
        wrap = "" if "clamp" in self.parts else " & 31"
        field = ", ".join(f"{self.operand(op, 'u32')}{wrap}" for op in field)
        ones, zeros = "T_u4(0xFFFFFFFF)", f"np.zeros({self.count}, T_u4)"
        self.vector = True
        return self.assign(d, f"numerics.insert_bits({ones}, {zeros}, {field})", "b32")

    def op_szext(self) -> list[str]:
        dtype = self.parts[-1]
        d, a, b = self.args
        a = f"np.atleast_1d({self.operand(a, dtype)})"
        b = self.operand(b, "u32")
        return self.assign(d, f"numerics.extract_bits({a}, T_u4(0), {b})", dtype)
