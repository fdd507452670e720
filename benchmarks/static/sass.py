"""Reads disassembled GPU code: functions, loops of tensor-core instructions, what each line does.

Takes what `nvdisasm -c` and `cuobjdump -sass` print.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

__all__ = [
    "ASYNC_COPIES",
    "CLASSES",
    "HALF_OPCODES",
    "TENSOR",
    "Function",
    "Loop",
    "base_opcode",
    "classify",
    "count_classes",
    "opcode_of",
    "operands_of",
    "read_functions",
    "tensor_loops",
    "usual_body",
]

HALF_OPCODES = frozenset({"HFMA2", "HADD2", "HMUL2", "HSETP2", "HMNMX2"})
TENSOR = ("HMMA", "HGMMA", "UTCMMA")
ASYNC_COPIES = ("LDGSTS", "UTMALDG")

# Class of an instruction -> the opcodes in it, without what follows their first dot.
_OPCODES = {
    "HMMA": "HMMA",
    "HGMMA": "HGMMA QGMMA IGMMA",
    "UTCMMA": "UTCHMMA UTCQMMA UTCIMMA UTCOMMA",
    "LDSM": "LDSM",
    "LDS": "LDS",
    "STS": "STS",
    "STSM": "STSM",
    "LDGSTS": "LDGSTS",
    "UTMALDG": "UBLKCP",
    "LDG": "LDG",
    "STG": "STG",
    "RED": "RED ATOM ATOMG ATOMS REDG",
    "FP32": "FFMA FMUL FADD FFMA32I FMUL32I FADD32I " + " ".join(sorted(HALF_OPCODES)),
    "MUFU": "MUFU",
    "FMNMX": "FMNMX FMNMX3",
    "CVT": "F2FP F2F I2F F2I I2FP FRND",
    "IMAD": "IMAD IMUL IDP",
    "IALU": "IADD3 IADD IADD32I VIADD ISCADD LOP3 LOP PLOP3 SHF SHL SHR LEA ISETP FSETP FSET "
    "SEL FSEL IMNMX VIMNMX VIMNMX3 PRMT MOV MOV32I CS2R BMSK SGXT FLO P2R R2P IABS VABSDIFF I2IP",
    "SHFL": "SHFL",
    "BAR": "BAR WARPSYNC DEPBAR LDGDEPBAR WARPGROUP MEMBAR ARRIVES NANOSLEEP FENCE",
    "SYNCS": "SYNCS",
    "UNIF": "",
    "SPILL": "LDL STL",
    "CTRL": "BRA EXIT BSSY BSYNC NOP YIELD CALL RET BREAK ELECT VOTE BRX BMOV",
    "OTHER": "",
}
CLASSES = tuple(_OPCODES)
_CLASS_OF = {opcode: name for name, opcodes in _OPCODES.items() for opcode in opcodes.split()}
_UNIFORM = re.compile(r"U[A-Z0-9]+|R2UR|S2UR|VOTEU|REDUX")

_HEADER = re.compile(r"^\s*//-+ \.text\.(\S+)\s+-+\s*$", re.M)
_LABEL = re.compile(r"\s*(\.L_x?_?\w+):")
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_BRANCH_TO_LABEL = re.compile(r"\bBRA\b.*`\((\.L\w+)\)")
_BRANCH_TO_ADDRESS = re.compile(r"\bBRA\b.*?\b0x([0-9a-f]+)\s*$")
_REGISTER = re.compile(r"\bR(\d+)\b")


@dataclass(frozen=True)
class Loop:
    """Instructions of a loop, both ends included; places count from the function's start."""

    first: int
    last: int

    def contains(self, other: Loop) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last


@dataclass
class Function:
    """A function in machine code.

    Attributes:
        name: mangled.
        instructions: without addresses and encodings, predicates included.
        labels: place of the instruction behind each label.
        addresses: place of the instruction at each address.
    """

    name: str
    instructions: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    addresses: dict[int, int] = field(default_factory=dict)

    @property
    def registers(self) -> int:
        """Count the registers that the instructions name: a thread has at least that many."""
        numbers = [int(n) for line in self.instructions for n in _REGISTER.findall(line)]
        return 1 + max(numbers, default=0)

    def body(self, loop: Loop) -> list[str]:
        return self.instructions[loop.first : loop.last + 1]


def read_functions(text: str) -> list[Function]:
    """Yield the functions of a disassembly; text without headers is one function, "kernel"."""
    parts = _HEADER.split(text)
    if len(parts) < 3:
        return [_read("kernel", text)]
    return [_read(name, body) for name, body in zip(parts[1::2], parts[2::2], strict=True)]


def _read(name: str, text: str) -> Function:
    function = Function(name)
    for line in text.splitlines():
        if label := _LABEL.match(line):
            function.labels[label[1]] = len(function.instructions)
        elif instruction := _INSTRUCTION.match(line):
            function.addresses[int(instruction[1], 16)] = len(function.instructions)
            function.instructions.append(instruction[2].strip())
    return function


def tensor_loops(function: Function) -> list[Loop]:
    """Find the innermost loops that hold tensor-core instructions, in the order of the code."""
    last_of: dict[int, int] = {}
    for place, line in enumerate(function.instructions):
        target = _branch_target(function, line)
        if target is not None and target <= place:
            last_of[target] = max(last_of.get(target, 0), place)
    loops = [Loop(first, last) for first, last in last_of.items()]
    tensor = [loop for loop in loops if _has_tensor(function.body(loop))]
    innermost = [loop for loop in tensor if not any(loop.contains(other) for other in tensor)]
    return sorted(innermost, key=lambda loop: loop.first)


_ARITHMETIC = frozenset({"FP32", "MUFU", "FMNMX", "CVT", "IMAD", "IALU", "SHFL", "UNIF"})


def usual_body(function: Function, loop: Loop) -> list[str]:
    """Return a loop's instructions without work for rare values.

    Such work stands behind a branch that may skip it, inside the loop, and is arithmetic alone.
    What copies, waits or multiplies is counted, skipped or not.
    """
    usual, place = [], loop.first
    while place <= loop.last:
        line = function.instructions[place]
        usual.append(line)
        place += 1
        target = _branch_target(function, line)
        if target is None or not line.startswith("@") or not place < target <= loop.last:
            continue
        skipped = function.instructions[place:target]
        if all(classify(opcode_of(line)) in _ARITHMETIC for line in skipped):
            place = target
    return usual


def _branch_target(function: Function, line: str) -> int | None:
    if match := _BRANCH_TO_LABEL.search(line):
        return function.labels.get(match[1])
    if match := _BRANCH_TO_ADDRESS.search(line):
        return function.addresses.get(int(match[1], 16))
    return None


def _has_tensor(lines: list[str]) -> bool:
    return any(classify(opcode_of(line)) in TENSOR for line in lines)


def opcode_of(line: str) -> str:
    """Return the opcode with its modifiers: "HMMA.16816.F32.BF16"."""
    return _PREDICATE.sub("", line).split()[0]


def operands_of(line: str) -> str:
    """Return what follows the opcode."""
    return _PREDICATE.sub("", line).partition(" ")[2].lstrip()


def base_opcode(opcode: str) -> str:
    """Return the opcode without modifiers."""
    return opcode.partition(".")[0]


def classify(opcode: str) -> str:
    """Return which of CLASSES an opcode belongs to."""
    base = base_opcode(opcode)
    if base in _CLASS_OF:
        return _CLASS_OF[base]
    if base.startswith("UTMA"):
        return "UTMALDG"
    return "UNIF" if _UNIFORM.fullmatch(base) else "OTHER"


def count_classes(lines: list[str]) -> Counter[str]:
    """Count the instructions of each class."""
    return Counter(classify(opcode_of(line)) for line in lines)
