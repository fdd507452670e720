"""Matrix instructions: mma, ldmatrix, wmma, wgmma."""

import re
from typing import Any

from ..errors import UnsupportedError
from ..syntax import Address, Immediate, Register, Vector
from .base import Emitter

ELEMENTS = {
    *("f16", "bf16", "tf32", "f32", "f64", "s32"),
    *("s8", "u8", "e4m3", "e5m2", "s4", "u4"),
}


def _register_type(dtype: str) -> str:
    return "b64" if dtype == "f64" else "b32"


class Matrices(Emitter):
    """Matrix instructions: mma, ldmatrix, wmma, wgmma."""

    def _registers(self, op: Any, dtype: str) -> str:
        """A list of register arrays, for the functions of warp.py."""
        out = []
        for item in self.items(op):
            value = self.operand(item, dtype)
            out.append(value if isinstance(item, Register) else f"np.full({self.count}, {value})")
        self.vector = True
        return f"[{', '.join(out)}]"

    def _shape(self) -> tuple[int, int, int]:
        found = (re.fullmatch(r"m(\d+)n(\d+)k(\d+)", part) for part in self.parts)
        m, n, k = next(match for match in found if match).groups()
        return int(m), int(n), int(k)

    def _types(self) -> list[str]:
        return [part for part in self.parts if part in ELEMENTS]

    def _assign_items(self, d: Any, dtype: str) -> list[str]:
        """The arrays of the list t to the items of a destination."""
        lines = []
        for i, item in enumerate(self.items(d)):
            lines += self.assign(item, f"t[{i}]", dtype)
        return lines

    def op_mma(self) -> list[str]:
        unknown = {"sp", "block_scale", "xor", "and"} & set(self.parts)
        d_type, a_type, b_type, c_type = self._types()
        shape = self._shape()
        if unknown or (shape == (8, 8, 4) and a_type == "f16"):
            raise UnsupportedError(self.opcode)
        d, a, b, c = self.args
        a, b = (self._registers(op, _register_type(a_type)) for op in (a, b))
        c = self._registers(c, _register_type(c_type))
        types = f"{a_type!r}, {b_type!r}, {c_type!r}, {d_type!r}"
        return [
            self.batch_call("whole_warps"),
            f"t = warp.mma({a}, {b}, {c}, {shape[0]}, {types}, {'satfinite' in self.parts})",
            *self._assign_items(d, _register_type(d_type)),
        ]

    def _matrix_address(self, op: Address) -> str:
        """The shared address of each lane's row; the opcode may leave the space open."""
        _, a, offset = self.address(op, "shared")
        generic = not any(part.startswith("shared") for part in self.parts)
        return f"batch.shared_address({self.lanes}, {a}, {offset}, {generic})"

    def op_ldmatrix(self) -> list[str]:
        if self.parts[-1] != "b16":
            raise UnsupportedError(self.opcode)
        number = next(part for part in self.parts if part in ("x1", "x2", "x4"))[1]
        d, source = self.args
        rows = self._matrix_address(source)
        call = f"warp.ldmatrix_words(batch, {self.pc}, {self.lanes}, {rows}, {number}"
        self.vector = True
        return [
            self.batch_call("whole_warps"),
            f"t = {call}, {'trans' in self.parts})",
            *self._assign_items(d, "b32"),
        ]

    def op_stmatrix(self) -> list[str]:
        if self.parts[-1] != "b16":
            raise UnsupportedError(self.opcode)
        target, source = self.args
        rows, values = self._matrix_address(target), self._registers(source, "b32")
        call = f"warp.stmatrix_words(batch, {self.pc}, {self.lanes}, {rows}, {values}"
        return [self.batch_call("whole_warps"), f"{call}, {'trans' in self.parts})"]

    def op_movmatrix(self) -> list[str]:
        a = self.operand(self.args[1], "b32")
        return [
            self.batch_call("whole_warps"),
            f"t = np.ascontiguousarray({a}.reshape(-1, 8, 4)).view(T_u2)",
            "t = t.transpose(0, 2, 1).copy().view(T_u4).reshape(-1)",
            *self.assign(self.args[0], "t", "b32"),
        ]

    def op_wmma(self) -> list[str]:
        if self.parts[1] in ("load", "store"):
            return [self.batch_call("whole_warps"), *self._wmma_move()]
        m, n, k = self._shape()
        types = self._types()
        if len(types) == 2:  # wmma.mma ... .dtype.ctype  (f16 multiplicands)
            types = [types[0], "f16", "f16", types[1]]
        d_type, *abc_types = types
        d, *abc = self.args
        operands = ", ".join(
            self._registers(op, _register_type(dtype))
            for op, dtype in zip(abc, abc_types, strict=True)
        )
        named = ", ".join(map(repr, [*abc_types, d_type]))
        return [
            self.batch_call("whole_warps"),
            f"t = batch.wmma_mma({operands}, {m}, {n}, {k}, {named}, {len(d.items)})",
            *self._assign_items(d, _register_type(d_type)),
        ]

    def _wmma_move(self) -> list[str]:
        load = self.parts[1] == "load"
        m, n, k = self._shape()
        rows, columns = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}[self.parts[2]]
        dtype = self.parts[-1]
        layout = next(part for part in self.parts if part in ("row", "col"))
        space = next((part for part in self.parts if part in ("global", "shared")), None)
        if "shared::cta" in self.parts:
            space = "shared"
        first, second = self.args[:2]
        registers, memory = (first, second) if load else (second, first)
        space, a, offset = self.address(memory, space)
        stride = str(columns if layout == "row" else rows)
        if len(self.args) > 2:
            stride = self.operand(self.args[2], "u32")
        where = (repr(space), a, offset, stride, rows, columns, repr(layout), repr(dtype))
        self.vector = True
        if load:
            call = self.batch_call("wmma_load", *where, len(registers.items))
            return [f"t = {call}", *self._assign_items(registers, _register_type(dtype))]
        values = self._registers(registers, _register_type(dtype))
        return [self.batch_call("wmma_store", *where, values)]

    def op_wgmma(self) -> list[str]:
        if self.parts[1] == "fence":
            return []
        whole = self.batch_call("whole_groups")
        if self.parts[1] == "commit_group":
            return [whole, f"batch.wgmma_commit({self.lanes})"]
        if self.parts[1] == "wait_group":
            return [whole, f"batch.wgmma_wait({self.lanes}, {self.args[0].value})"]
        if "sp" in self.parts:
            raise UnsupportedError(self.opcode)
        _, n, k = self._shape()
        d_type, a_type, b_type = self._types()
        d, a, b, scale_d, *immediates = self.args
        a_sign = b_sign = 1
        a_transposed = b_transposed = 0
        if a_type not in ("s8", "u8"):
            a_sign, b_sign, *transposed = (op.value for op in immediates)
            if transposed and isinstance(a, Vector):
                b_transposed = transposed[0]
            elif transposed:
                a_transposed, b_transposed = transposed
        # Registers may change before the operation is carried out.
        copy = ".copy()" if self.mode == "full" else ""
        in_registers = isinstance(a, Vector)
        if isinstance(scale_d, Immediate):
            accumulate = f"np.bool_({bool(scale_d.value)})"
        else:
            accumulate = self.operand(scale_d, "pred") + copy
        spec = {
            "N": n,
            "K": k,
            "a_type": repr(a_type),
            "b_type": repr(b_type),
            "d_type": repr(d_type),
            "d_registers": [item.slot for item in d.items],
            "a_registers": [item.slot for item in a.items] if in_registers else None,
            "a_descriptor": None if in_registers else self.operand(a, "b64") + copy,
            "b_descriptor": self.operand(b, "b64") + copy,
            "accumulate": accumulate,
            "a_sign": a_sign,
            "b_sign": b_sign,
            "a_transposed": a_transposed,
            "b_transposed": b_transposed,
        }
        fields = ", ".join(f"{name}={value}" for name, value in spec.items())
        return [whole, self.batch_call("wgmma", f"dict({fields})")]
