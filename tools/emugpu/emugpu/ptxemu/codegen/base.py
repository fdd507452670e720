"""What every part of the code generator shares: constants, operands and assignments."""

from typing import Any

import numpy as np

from .. import numerics
from ..errors import UnsupportedError
from ..numerics import NUMPY_TYPE, UNSIGNED
from ..syntax import (
    BITS,
    Address,
    Immediate,
    Instruction,
    Negated,
    Program,
    Register,
    Symbol,
    Vector,
)

INTEGERS = {kind + str(bits) for kind in "us" for bits in (8, 16, 32, 64)}
INTEGERS |= {f"b{bits}" for bits in (8, 16, 32, 64)}
# Generated code knows NumPy's types as T_u4, T_f2, ...
NUMPY_NAME = {name: f"T_{np.dtype(value).str[1:]}" for name, value in NUMPY_TYPE.items()}
SPACES = {
    *("global", "shared", "shared::cta", "shared::cluster", "local", "const"),
    *("param", "param::entry", "param::func"),
}
FP8_NAME = {"e4m3x2": "e4m3", "e5m2x2": "e5m2"}


class Emitter:
    """The instruction being compiled, and the expressions of its operands.

    Operands are called d, a, b, c as in the PTX manual. ``mode`` is "full" (every lane executes) or
    "masked" (``active`` holds those that do). ``vector`` tells whether an operand read since the
    instruction began was an array of lanes; results of constants alone must be made one.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        types = (*(numerics.u1, numerics.u2, numerics.u4, numerics.u8),)
        types += (numerics.i1, numerics.i2, numerics.i4, numerics.i8)
        types += (numerics.f2, numerics.f4, numerics.f8)
        self.namespace: dict[str, Any] = {f"T_{np.dtype(kind).str[1:]}": kind for kind in types}
        self.constants: dict[Any, str] = {}
        self.instruction: Instruction
        self.pc = 0
        self.mode = "full"
        self.vector = False

    @property
    def parts(self) -> list[str]:
        """The opcode split at its dots."""
        return self.instruction.parts

    @property
    def args(self) -> list[Any]:
        """The operands."""
        return self.instruction.args

    @property
    def opcode(self) -> str:
        """The opcode with its modifiers."""
        return self.instruction.op

    @property
    def count(self) -> str:
        """The number of lanes that execute."""
        return "nlanes" if self.mode == "full" else "active.size"

    @property
    def lanes(self) -> str:
        """The lanes that execute, None for all."""
        return "None" if self.mode == "full" else "active"

    @staticmethod
    def items(op: Any) -> list[Any]:
        """The items of a vector operand, or the operand alone."""
        return op.items if isinstance(op, Vector) else [op]

    def batch_call(self, name: str, *arguments: object) -> str:
        """A call of a method of Batch, which all take the pc and the lanes first."""
        return f"batch.{name}({', '.join([str(self.pc), self.lanes, *map(str, arguments)])})"

    def operands(self, ops: list[Any], dtype: str) -> str:
        """Several operands, with commas between."""
        return ", ".join(self.operand(op, dtype) for op in ops)

    def address(self, op: Address, space: str | None) -> tuple[str | None, str | None, int]:
        """(space, address expression, constant offset) of a memory operand."""
        if isinstance(op.base, Symbol):
            own = self.symbol_space(op.base.name)
            if space in ("global", "const", None) or own != space.split("::")[0]:
                if space in (None, "param", "param::func", "param::entry"):
                    space = own
            return space, None, self.symbol_address(op.base) + op.offset
        if op.base is None:
            return space, None, op.offset
        return space, self.operand(op.base, f"b{op.base.bits}"), op.offset

    def constant(self, value: Any) -> str:
        """The name of a constant in the generated code's namespace."""
        bits = value.tobytes() if hasattr(value, "tobytes") else value
        key = (type(value), getattr(value, "dtype", None), bits)
        if key not in self.constants:
            self.constants[key] = f"k{len(self.constants)}"
            self.namespace[self.constants[key]] = value
        return self.constants[key]

    def immediate_bits(self, op: Immediate, bits: int) -> int:
        """A literal as an integer of that many bits."""
        if op.is_float:
            kind, value, _ = op.value
            if kind == "f64" and bits == 32:
                return int(np.float32(np.uint64(value).view(np.float64)).view(np.uint32))
            if kind == "f64" and bits == 16:
                return int(np.float16(np.uint64(value).view(np.float64)).view(np.uint16))
            return value
        return op.value & ((1 << bits) - 1)

    def raw(self, register: Register) -> str:
        """A register's bits in the lanes that execute."""
        return f"r[{register.slot}]" if self.mode == "full" else f"r[{register.slot}][active]"

    def operand(self, op: Any, dtype: str) -> str:
        """The expression of ``op`` seen as ``dtype``.

        bf16 stays bits; packed types double the length. Raises UnsupportedError for other operands.
        """
        if isinstance(op, Register):
            self.vector = True
            expression = self.raw(op)
            if dtype == "pred":
                return expression
            bits = BITS[dtype]
            if op.bits != bits:
                if op.bits == 1:
                    raise UnsupportedError(f"predicate used as {dtype}")
                expression = f"{expression}.astype(T_u{bits // 8})"
            numpy_type = np.dtype(NUMPY_TYPE[dtype]).str[1:]
            if numpy_type != f"u{bits // 8}":
                expression = f"{expression}.view(T_{numpy_type})"
            return expression
        if isinstance(op, Negated):
            return f"~{self.operand(op.reg, dtype)}"
        if isinstance(op, Symbol):
            bits = self.symbol_address(op) & ((1 << BITS[dtype]) - 1)
            value = np.array(bits, UNSIGNED[BITS[dtype]]).view(NUMPY_TYPE[dtype])
            return self.constant(value[()])
        if isinstance(op, Immediate):
            if dtype == "pred":
                return self.constant(np.bool_(op.value))
            bits = BITS[dtype]
            value = np.array(self.immediate_bits(op, bits), UNSIGNED[bits])
            if dtype in ("f16x2", "bf16x2"):
                self.vector = True
                filled = f"np.full({self.count}, {self.constant(value[()])})"
                return f"{filled}.view({NUMPY_NAME[dtype]})"
            return self.constant(value.view(NUMPY_TYPE[dtype])[()])
        raise UnsupportedError(f"operand {op}")

    def full_operand(self, op: Any, dtype: str) -> str:
        """An operand in all lanes: collectives look at the registers of every lane."""
        mode, self.mode = self.mode, "full"
        try:
            return self.operand(op, dtype)
        finally:
            self.mode = mode

    def value(self, op: Any, dtype: str) -> str:
        """An operand in the type it is computed in: bfloat16 as float32."""
        expression = self.operand(op, dtype)
        if dtype in ("bf16", "bf16x2"):
            return f"numerics.bfloat16_to_float({expression})"
        return expression

    def symbol_address(self, symbol: Symbol) -> int:
        """An address as `mov` sees it: shared or local offset, generic global address.

        Raises UnsupportedError for a name that is no variable.
        """
        program = self.program
        if symbol.name in program.shared:
            return program.shared[symbol.name].offset + symbol.offset
        if symbol.name in program.extern_shared:
            return program.shared_static_aligned + symbol.offset
        if symbol.name in program.local:
            return program.local[symbol.name].offset + symbol.offset
        for name, offset, _, _ in program.params:
            if name == symbol.name:
                return offset + symbol.offset
        if symbol.name in program.globals:
            return program.globals[symbol.name] + symbol.offset
        raise UnsupportedError(f"symbol {symbol.name}")

    def symbol_space(self, name: str) -> str:
        """The address space of a variable."""
        program = self.program
        if name in program.shared or name in program.extern_shared:
            return "shared"
        if name in program.local:
            return "local"
        if any(param[0] == name for param in program.params):
            return "param"
        return "global"

    def assign(self, op: Any, expression: str, dtype: str, alias: bool = False) -> list[str]:
        """Assignment of an expression of ``dtype`` to a register; none to the sink.

        alias: the expression may be another register itself and has to be copied. Raises
        UnsupportedError if ``op`` is no register.
        """
        if op is None:
            return []
        if not isinstance(op, Register):
            raise UnsupportedError(f"destination {op}")
        target = f"r[{op.slot}]" if self.mode == "full" else f"r[{op.slot}][active]"
        if not self.vector:
            expression = f"np.full({self.count}, {expression})"
            alias = False
        if dtype == "pred":
            if alias and self.mode == "full":
                expression = f"{expression}.copy()"
            return [f"{target} = {expression}"]
        bits = BITS[dtype]
        numpy_type = np.dtype(NUMPY_TYPE[dtype]).str[1:]
        if op.bits != bits:
            if numpy_type[0] == "i":
                expression = f"({expression}).astype(T_i{op.bits // 8})"
                numpy_type = f"i{op.bits // 8}"
            else:
                if numpy_type[0] == "f":
                    expression = f"({expression}).view(T_u{bits // 8})"
                expression = f"({expression}).astype(T_u{op.bits // 8})"
                numpy_type = f"u{op.bits // 8}"
        elif alias and self.mode == "full":
            expression = f"({expression}).copy()"
        if numpy_type != f"u{op.bits // 8}":
            expression = f"({expression}).view(T_u{op.bits // 8})"
        return [f"{target} = {expression}"]

    def assign_full(self, op: Any, expression: str, dtype: str) -> list[str]:
        """Assignment of an expression over all lanes."""
        if op is None:
            return []
        self.vector = True
        picked = expression if self.mode == "full" else f"({expression})[active]"
        return self.assign(op, picked, dtype)

    def assign_float(
        self,
        op: Any,
        expression: str,
        dtype: str,
        rounding: str = "rn",
        sat: bool = False,
        relu: bool = False,
    ) -> list[str]:
        """Assignment of a floating result, rounded to ``dtype``."""
        if sat:
            expression = f"numerics.saturate({expression})"
        if relu:
            expression = f"np.fmax({expression}, 0)"
        if dtype in ("bf16", "bf16x2"):
            expression = f"numerics.float_to_bfloat16({expression}, {rounding!r})"
        elif dtype in ("f16", "f16x2"):
            expression = f"({expression}).astype(T_f2, copy=False)"
        elif dtype == "f32":
            expression = f"({expression}).astype(T_f4, copy=False)"
        if dtype in ("f16x2", "bf16x2"):
            return self.assign(op, f"({expression}).view(T_u4)", "b32")
        return self.assign(op, expression, dtype)

    def rounding(self) -> str:
        """The rounding mode of the instruction."""
        return next((part for part in self.parts[1:] if part in ("rz", "rm", "rp")), "rn")
