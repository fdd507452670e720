"""PTX syntax: statements, declarations, literals, and the operands of flattened programs."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .errors import PTXError

# Bits of a type.
BITS = {"pred": 1, "b128": 128, "f16x2": 32, "bf16x2": 32, "f16": 16, "bf16": 16, "tf32": 32}
BITS.update({f"{kind}{bits}": bits for kind in "bsu" for bits in (8, 16, 32, 64)})
BITS.update(f32=32, f64=64)


@dataclass
class Register:
    """A register by its slot."""

    slot: int
    bits: int
    name: str


@dataclass
class Immediate:
    """A literal: an int, or (type, bits, value) of a floating one."""

    value: Any  # int, or (type, bits, value)
    is_float: bool = False


@dataclass
class Symbol:
    """The address of a variable."""

    name: str
    offset: int = 0


@dataclass
class Vector:
    """{a, b, ...}."""

    items: list


@dataclass
class Address:
    """[base + offset]; ``coords`` of a tensor copy."""

    base: Any  # Register | Symbol | None
    offset: int = 0
    coords: list | None = None  # tensor coordinates for cp.async.bulk.tensor


@dataclass
class Negated:
    """!%p."""

    reg: Any


@dataclass
class Pair:
    """d|p: a second destination."""

    a: Any
    b: Any


@dataclass
class Instruction:
    """One instruction: the opcode, its dotted parts, and operands."""

    op: str
    parts: list
    args: list
    predicate: Any = None
    negated: bool = False
    text: str = ""
    line: int = 0
    target: int = -1  # resolved branch target


@dataclass
class Variable:
    """A declared variable; ``offset`` within its space once it is laid out."""

    name: str
    space: str
    align: int
    size: int
    init: bytes | None = None
    offset: int = 0
    relocations: list | None = None
    extern: bool = False


@dataclass
class Function:
    """A function as declared, its body as raw statements."""

    name: str
    is_entry: bool
    params: list
    results: list
    body: list | None = None  # raw statements
    attributes: dict = field(default_factory=dict)
    has_body: bool = False


@dataclass
class Program:
    """An entry function, flattened and ready for code generation."""

    name: str
    instructions: list
    register_count: int
    register_bits: list
    register_names: list
    special: dict  # special register name -> slot
    shared: dict  # name -> Variable (static; offset assigned)
    shared_static: int
    extern_shared: set
    local: dict  # name -> Variable, per-thread arrays
    local_size: int
    params: list  # [(name, offset, size, align)]
    param_size: int
    attributes: dict


SINK = None  # the operand _


def strip_comments(t: str) -> str:
    """The text without comments; lines keep their numbers."""
    t = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), t, flags=re.S)
    return re.sub(r"//[^\n]*", "", t)


def split_statements(t: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for each `;` statement, `{`, `}` and `label:`."""
    i, n, line = 0, len(t), 1
    cur, start, depth = [], 1, 0
    while i < n:
        ch = t[i]
        if ch == "\n":
            line += 1
        if ch == '"':
            j = t.index('"', i + 1)
            cur.append(t[i : j + 1])
            i = j + 1
            continue
        if not cur and ch.isspace():
            i += 1
            continue
        if not cur:
            start = line
            m = re.compile(r"([A-Za-z_$%][\w$]*)\s*:(?!:)").match(t, i)
            if m:
                yield line, m.group(1) + ":"
                line += m.group(0).count("\n")
                i = m.end()
                continue
            if t.startswith(
                (".loc ", ".loc\t", ".file", ".version", ".target", ".address_size", ".section"), i
            ):
                if t.startswith(".section", i):
                    j = t.find("}", i)
                    j = n if j < 0 else j + 1
                else:
                    j = t.find("\n", i)
                    j = n if j < 0 else j
                line += t.count("\n", i, j)
                yield start, t[i:j].strip()
                i = j
                continue
            if ch in "{}":
                yield line, ch
                i += 1
                continue
        if ch == "{":
            text = "".join(cur).strip()
            # function header followed by its body
            if depth == 0 and re.search(r"\.(entry|func)\b", text):
                yield start, text
                yield line, "{"
                cur = []
                i += 1
                continue
            depth += 1
        elif ch == "}":
            depth -= 1
        if ch == ";" and depth == 0:
            yield start, "".join(cur).strip()
            cur = []
        else:
            cur.append(ch)
        i += 1


_NUMBER = re.compile(r"^-?(0[xX][0-9a-fA-F]+|\d+)U?$")


def parse_immediate(s: str) -> Immediate | None:
    """A literal operand, or None if it is none."""
    s = s.strip()
    negated = s.startswith("-")
    b = s[1:].strip() if negated else s
    if re.match(r"^0[fF][0-9a-fA-F]{8}$", b):
        v = struct.unpack(">f", bytes.fromhex(b[2:]))[0]
        bits = int(b[2:], 16) ^ (0x80000000 if negated else 0)
        return Immediate(("f32", bits, v), True)
    if re.match(r"^0[dD][0-9a-fA-F]{16}$", b):
        bits = int(b[2:], 16) ^ ((1 << 63) if negated else 0)
        return Immediate(("f64", bits, 0.0), True)
    if _NUMBER.match(s):
        b = b.rstrip("U")
        if re.match(r"^0\d+$", b):
            v = int(b, 8)
        else:
            v = int(b, 0)
        return Immediate(-v if negated else v)
    if re.match(r"^\d+\.\d*([eE][-+]?\d+)?$", b):
        v = -float(b) if negated else float(b)
        return Immediate(("f64", struct.unpack("<Q", struct.pack("<d", v))[0], v), True)
    return None


def split_commas(s: str) -> list[str]:
    """Split at commas outside of brackets."""
    out, cur, depth = [], [], 0
    for ch in s:
        if ch in "{[(":
            depth += 1
        elif ch in "}])":
            depth -= 1
        if ch == "," and depth == 0:
            out.append("".join(cur).strip())
            cur = []
        else:
            cur.append(ch)
    last = "".join(cur).strip()
    if last:
        out.append(last)
    return out


_DECLARATION = re.compile(
    r"(?P<attributes>(?:\.[\w:]+(?:\s+\d+)?\s+)*?)\.(?P<ty>[busf]\d+|b128|pred|f16x2|bf16x2|bf16)\s+"
    r"(?P<name>[\w$%]+)\s*(?P<dims>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<init>.*))?$",
    re.S,
)


def parse_variable(text: str) -> Variable:
    """`.visible .shared .align 16 .b8 name[128] = {...}` -> Variable.

    Raises PTXError for anything else.
    """
    m = _DECLARATION.search(text)
    if not m:
        raise PTXError(f"cannot parse declaration: {text}")
    head = text[: m.start("ty")]
    space = re.search(r"\.(global|shared|local|const|param)\b", head)
    align = re.search(r"\.align\s+(\d+)", head)
    element = BITS[m["ty"]] // 8
    dims = re.findall(r"\[\s*(\d*)\s*\]", m["dims"])
    count = 1
    for depth in dims:
        count *= int(depth) if depth else 0
    v = Variable(
        m["name"],
        space[1] if space else "reg",
        int(align[1]) if align else element,
        element * count,
    )
    if m["init"]:
        vals = re.findall(r"[^\s,{}]+(?:\([^)]*\))?", m["init"])
        data = bytearray()
        v.relocations = []
        for x in vals:
            immediate = parse_immediate(x)
            if immediate is None:
                v.relocations.append((len(data), x, element))
                data += bytes(element)
            elif immediate.is_float:
                data += (immediate.value[1]).to_bytes(
                    4 if immediate.value[0] == "f32" else 8, "little"
                )
            else:
                data += (immediate.value & ((1 << (8 * element)) - 1)).to_bytes(element, "little")
        if v.size == 0:
            v.size = len(data)
        v.init = bytes(data[: v.size]) + bytes(max(0, v.size - len(data)))
    return v
