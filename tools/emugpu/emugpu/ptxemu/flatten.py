"""An entry function as one flat list of instructions.

Registers are renamed to integer slots, nested ``{ }`` scopes are flattened and calls to device
functions that have a body are inlined (so there is no call stack and no recursion).
"""

import re
from typing import Any

from .errors import PTXError
from .parser import Parsed
from .syntax import (
    BITS,
    SINK,
    Address,
    Function,
    Immediate,
    Instruction,
    Negated,
    Pair,
    Program,
    Register,
    Symbol,
    Variable,
    Vector,
    parse_immediate,
    parse_variable,
    split_commas,
)

_SPECIAL = re.compile(
    r"^%(tid|ntid|ctaid|nctaid|laneid|warpid|nwarpid|smid|nsmid|gridid|clock|clock64|clock_hi|"
    r"globaltimer\w*|lanemask_\w+|dynamic_smem_size|total_smem_size|cluster_\w+|clusterid|"
    r"nclusterid|is_explicit_cluster|envreg\d+|pm\d)(\.[xyzw])?$"
)
_SPECIAL_BITS = {"%clock64": 64, "%globaltimer": 64, "%is_explicit_cluster": 1}
_DIRECTIVES = (
    *(".loc ", ".loc\t", ".pragma", ".file", ".branchtargets", ".callprototype", ".calltargets"),
)
Label = tuple  # (instance, scope, name), or ("end", instance, function)


def _align(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


class _Body:
    """Scopes of one inlined function body: its names, register ranges and labels."""

    def __init__(
        self, flattener: "Flattener", function: Function, symbols: dict[str, Any], instance: int
    ) -> None:
        self.flattener, self.instance = flattener, instance
        self.scopes = [dict(symbols)]
        self.ranges: list[dict[str, tuple[int, int]]] = [{}]
        # PTX labels are local to their {} block.
        self.scope_ids: list[int] = []
        self.parents: dict[int, int] = {}
        count, stack = 0, [0]
        for _, text in function.body or []:
            if text == "{":
                count += 1
                self.parents.setdefault(count, stack[-1])
                stack.append(count)
            elif text == "}":
                stack.pop()
            self.scope_ids.append(stack[-1])
        self.labels = {
            (scope, text[:-1])
            for (_, text), scope in zip(function.body or [], self.scope_ids, strict=True)
            if text.endswith(":")
        }

    def find_label(self, scope: int, label: str) -> Label:
        """The label as seen from a scope."""
        while (scope, label) not in self.labels and scope != 0:
            scope = self.parents[scope]
        return (self.instance, scope, label)

    def declare_registers(self, text: str) -> None:
        """``.reg .b32 %r<10>, a;``."""
        match = re.match(r"\.reg\s*(?:\.v[24]\s+)?\.(\w+)\s+(.*)$", text, re.S)
        bits = BITS[match[1]]
        for name in split_commas(match[2]):
            several = re.match(r"^([\w$%]+)<(\d+)>$", name)
            if several:
                self.ranges[-1][several[1]] = (int(several[2]), bits)
            else:
                self.scopes[-1][name] = self.flattener.new_register(name, bits)

    def lookup(self, name: str) -> Any:
        """The register or symbol of a name; None if it is not declared."""
        for scope, ranges in zip(reversed(self.scopes), reversed(self.ranges), strict=True):
            if name in scope:
                return scope[name]
            match = re.match(r"^(.*?)(\d+)$", name)
            if not match:
                continue
            # the longest prefix that was declared as a range
            for end in range(len(match[1]), len(name)):
                prefix, number = name[:end], name[end:]
                plain = number == "0" or number[0] != "0"
                if prefix in ranges and plain and int(number) < ranges[prefix][0]:
                    scope[name] = self.flattener.new_register(name, ranges[prefix][1])
                    return scope[name]
        return self.flattener.special_register(name) if _SPECIAL.match(name) else None

    def operand(self, text: str) -> Any:
        """Any operand of an instruction. Raises PTXError if it cannot be parsed."""
        text = text.strip()
        if text == "_":
            return SINK
        if text.startswith("{"):
            return Vector([self.operand(item) for item in split_commas(text[1:-1])])
        if text.startswith("["):
            return self._address(text)
        if text.startswith("!"):
            return Negated(self.operand(text[1:]))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first), self.operand(second))
        immediate = parse_immediate(text)
        if immediate is not None:
            return immediate
        if text == "WARP_SZ":
            return Immediate(32)
        found = self.lookup(text)
        if found is not None:
            return found
        match = re.match(r"^([\w$%.]+)\s*\+\s*(\w+)$", text)
        if match:
            base = self.operand(match[1])
            return Symbol(base.name, base.offset + parse_immediate(match[2]).value)
        return Symbol(text)

    def _address(self, text: str) -> Address:
        parts = split_commas(text[1:-1].strip())
        coords = [self.operand(item) for item in parts[1:]] if len(parts) > 1 else None
        match = re.match(r"^([\w$%.]+)\s*(?:([+-])\s*(-?\s*\w+))?$", parts[0])
        if not match:
            raise PTXError(f"bad address {text}")
        offset = 0
        if match[3]:
            offset = parse_immediate(match[3].replace(" ", "")).value
            offset = -offset if match[2] == "-" else offset
        base = self.operand(match[1])
        if isinstance(base, Immediate):
            return Address(None, base.value + offset, coords)
        if isinstance(base, Symbol):
            return Address(Symbol(base.name, base.offset), offset, coords)
        return Address(base, offset, coords)


class Flattener:
    """Builds the Program of one entry. Raises PTXError for recursion and unknown labels."""

    def __init__(self, parsed: Parsed, name: str) -> None:
        self.parsed = parsed
        self.function = parsed.functions[name]
        self.register_bits: list[int] = []
        self.register_names: list[str] = []
        self.special: dict[str, Register] = {}
        self.local: dict[str, Variable] = {}
        self.shared: dict[str, Variable] = {}
        self.extern_shared: set[str] = set()
        self.local_size = 0
        self.out: list[Instruction] = []
        self.labels: dict[Label, int] = {}
        self.branches: list[tuple[Instruction, Label]] = []
        self.unique = 0
        self.params, self.param_size = [], 0
        for param in self.function.params:
            alignment = max(param.align, 1)
            offset = _align(self.param_size, alignment)
            self.params.append((param.name, offset, param.size, alignment))
            self.param_size = offset + param.size
        for variable in parsed.variables.values():
            if variable.space == "shared":
                if variable.size == 0 or variable.extern:
                    self.extern_shared.add(variable.name)
                else:
                    self.shared[variable.name] = variable
        self._emit_function(self.function, {}, [], None)
        self.shared_static = self._lay_out_shared()
        for instruction, label in self.branches:
            if label not in self.labels:
                raise PTXError(f"{name}: unknown label {label[-1]}")
            instruction.target = self.labels[label]

    def program(self) -> Program:
        """What was built."""
        return Program(
            name=self.function.name,
            instructions=self.out,
            register_count=len(self.register_bits),
            register_bits=self.register_bits,
            register_names=self.register_names,
            special=self.special,
            shared=self.shared,
            shared_static=self.shared_static,
            extern_shared=self.extern_shared,
            local=self.local,
            local_size=self.local_size,
            params=self.params,
            param_size=self.param_size,
            attributes=self.function.attributes,
        )

    def new_register(self, name: str, bits: int) -> Register:
        """A register in a slot of its own."""
        self.register_bits.append(bits)
        self.register_names.append(name)
        return Register(len(self.register_bits) - 1, bits, name)

    def special_register(self, name: str) -> Register:
        """The slot of %tid.x and the like."""
        if name not in self.special:
            self.special[name] = self.new_register(name, _SPECIAL_BITS.get(name, 32))
        return self.special[name]

    def _lay_out_shared(self) -> int:
        used: set[str] = set()

        def visit(operand: Any) -> None:
            if isinstance(operand, Symbol):
                used.add(operand.name)
            elif isinstance(operand, Vector):
                for item in operand.items:
                    visit(item)
            elif isinstance(operand, Address):
                visit(operand.base)

        for instruction in self.out:
            for operand in instruction.args:
                visit(operand)
        end = 0
        for variable in self.shared.values():
            if variable.name in used:
                variable.offset = _align(end, variable.align)
                end = variable.offset + variable.size
        return end

    def _add_local(self, variable: Variable) -> str:
        self.unique += 1
        key = f"{variable.name}@{self.unique}"
        offset = _align(self.local_size, 16)
        self.local[key] = Variable(key, "local", variable.align, variable.size, offset=offset)
        self.local_size = offset + max(variable.size, 1)
        return key

    def _add_shared(self, variable: Variable, inlined: bool) -> tuple[str, str]:
        """(name as written, key): a function inlined twice has its shared variables once."""
        self.unique += 1
        written = variable.name
        variable.name = f"{written}@{self.unique}"
        if inlined:
            for key in self.shared:
                if key.split("@")[0] == written:
                    variable = self.shared[key]
        self.shared[variable.name] = variable
        return written, variable.name

    def _emit_function(
        self, function: Function, symbols: dict[str, Any], chain: list[str], end: Label | None
    ) -> None:
        """Inline a body; ``symbols`` maps the names of its parameters to the caller's variables."""
        if function.name in chain:
            raise PTXError(f"recursive call of {function.name} is not supported")
        self.unique += 1
        body = _Body(self, function, symbols, self.unique)
        for (line, text), scope in zip(function.body or [], body.scope_ids, strict=True):
            if text == "{":
                body.scopes.append({})
                body.ranges.append({})
            elif text == "}":
                body.scopes.pop()
                body.ranges.pop()
            elif text.endswith(":"):
                self.labels[body.find_label(scope, text[:-1])] = len(self.out)
            elif text.startswith(".reg"):
                body.declare_registers(text)
            elif text.startswith((".local", ".param")):
                variable = parse_variable(text)
                body.scopes[-1][variable.name] = Symbol(self._add_local(variable))
            elif text.startswith(".shared"):
                written, key = self._add_shared(parse_variable(text), bool(chain))
                body.scopes[-1][written] = Symbol(key)
            elif text and not text.startswith(_DIRECTIVES):
                self._emit_instruction(function, body, scope, chain, end, line, text)
        if end is not None:
            self.labels[end] = len(self.out)
            self.out.append(Instruction("nop", ["nop"], [], text=f"<end of {function.name}>"))
        else:
            self.out.append(Instruction("exit", ["exit"], [], text="<end of kernel>"))

    def _emit_instruction(
        self,
        function: Function,
        body: _Body,
        scope: int,
        chain: list[str],
        end: Label | None,
        line: int,
        text: str,
    ) -> None:
        predicate, negated, rest = None, False, text
        match = re.match(r"^@\s*(!?)\s*([\w$%.]+)\s+(.*)$", text, re.S)
        if match:
            negated, predicate, rest = match[1] == "!", body.lookup(match[2]), match[3]
            if predicate is None:
                raise PTXError(f"line {line}: unknown predicate in {text}")
        match = re.match(r"^([\w.:]+)\s*(.*)$", rest, re.S)
        if not match:
            raise PTXError(f"line {line}: cannot parse {text}")
        opcode, rest = match[1], match[2].strip()
        instruction = Instruction(
            *(opcode, opcode.split("."), [], predicate, negated),
            text=re.sub(r"\s+", " ", text),
            line=line,
        )
        if opcode == "call" or opcode.startswith("call."):
            self._emit_call(function, body, chain, instruction, rest)
            return
        if opcode.startswith("bra"):
            self.branches.append((instruction, body.find_label(scope, rest)))
        elif opcode == "ret" and end is not None:
            instruction.op, instruction.parts = "bra", ["bra"]
            self.branches.append((instruction, end))
        else:
            instruction.args = [body.operand(item) for item in split_commas(rest)]
        self.out.append(instruction)

    def _emit_call(
        self, caller: Function, body: _Body, chain: list[str], call: Instruction, rest: str
    ) -> None:
        parts = split_commas(rest)
        results, args = [], []
        if parts[0].startswith("("):
            results = [body.operand(item) for item in split_commas(parts[0][1:-1])]
            parts = parts[1:]
        name = parts[0]
        if len(parts) > 1 and parts[1].startswith("("):
            args = [body.operand(item) for item in split_commas(parts[1][1:-1])]
        callee = self.parsed.functions.get(name)
        if callee is None or not callee.has_body:
            call.op, call.parts, call.args = "extcall", ["extcall", name], results + args
            self.out.append(call)
            return
        # Some declarations name more parameters than a call passes.
        formal = [*zip(callee.params, args, strict=False)]
        formal += zip(callee.results, results, strict=False)
        symbols = {parameter.name: actual for parameter, actual in formal}
        self.unique += 1
        end = ("end", self.unique, name)
        if call.predicate is not None:
            skip = Instruction(
                "bra", ["bra"], [], call.predicate, not call.negated, call.text, call.line
            )
            self.branches.append((skip, end))
            self.out.append(skip)
        self._emit_function(callee, symbols, [*chain, caller.name], end)
