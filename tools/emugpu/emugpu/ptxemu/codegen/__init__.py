"""PTX instructions -> Python source over NumPy arrays.

Straight-line segments are compiled lazily into one Python function, in two variants:
  full   - every lane of the batch executes: registers are replaced whole, no gathers;
  masked - ``active`` holds the lanes that do: registers are gathered and scattered there.
A segment function ``segment(batch, r, active)`` returns the next pc, or (taken pc, fall-through pc,
mask of those who take it) when it diverges, or None when a barrier has absorbed its lanes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import numerics, warp
from ..errors import UnsupportedError
from ..syntax import Instruction, Program
from .accesses import Accesses
from .arithmetic import Arithmetic
from .bits import Bits
from .collectives import Collectives
from .comparisons import Comparisons
from .copies import Copies
from .matrices import Matrices
from .moves import Moves

EXIT = -1  # as a next pc: the lanes have finished
TRAP = -2
# Longer straight-line code is split: Python compiles slowly when a function is long.
MOST_INSTRUCTIONS = 1500
CONTROL = ("bra", "exit", "ret", "trap", "brkpt")
BARRIERS = ("bar", "barrier")


class CodeGenerator(
    *(Arithmetic, Bits, Comparisons, Moves, Accesses, Collectives, Matrices, Copies),
):
    """Compiles the segments of one program. Instructions are methods ``op_<opcode>``."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.namespace.update(np=np, numerics=numerics, warp=warp)
        self.leaders = {i.target for i in program.instructions if i.target >= 0}
        # Before the registers of a batch are made: an instruction may need one more.
        if any("cc" in i.parts or i.parts[0] in ("addc", "subc") for i in program.instructions):
            self.carry_register()
        self.segments: dict[tuple[int, str], Callable[..., Any]] = {}

    def segment(self, pc: int, mode: str) -> Callable[..., Any]:
        """The compiled segment that begins at ``pc``."""
        key = (pc, mode)
        if key not in self.segments:
            self.segments[key] = self._compile(pc, mode)
        return self.segments[key]

    def emit(self, instruction: Instruction, pc: int, mode: str) -> list[str]:
        """The lines of one instruction. Raises UnsupportedError for unknown ones."""
        function = getattr(self, "op_" + instruction.parts[0], None)
        if function is None:
            raise UnsupportedError(f"opcode {instruction.op}")
        self.instruction, self.pc, self.mode, self.vector = instruction, pc, mode, False
        if instruction.predicate is None:
            return function()
        if instruction.parts[0] in BARRIERS:
            raise UnsupportedError("predicated barrier")
        mask = self._predicate_mask()
        self.mode, self.vector = "masked", False
        masked = ["    " + line for line in function() or ["pass"]]
        if mode == "masked":
            narrow = f"outer = active; active = active[{mask}]"
            return [narrow, "if active.size:", *masked, "active = outer"]
        self.mode, self.vector = "full", False
        full = ["    " + line for line in function() or ["pass"]]
        count = [f"p = {mask}", "c = np.count_nonzero(p)", "if c == nlanes:"]
        return [*count, *full, "elif c:", "    active = np.flatnonzero(p)", *masked]

    def _compile(self, pc: int, mode: str) -> Callable[..., Any]:
        lines, i = ["nlanes = batch.nlanes"], pc
        count = 0
        while True:
            leader = i != pc and mode == "masked" and i in self.leaders
            if leader or count >= MOST_INSTRUCTIONS:
                lines.append(f"return {i}")
                break
            instruction = self.program.instructions[i]
            count += 1
            try:
                if instruction.parts[0] in CONTROL:
                    lines += self._control(instruction, i, mode)
                    break
                body = self.emit(instruction, i, mode)
            except UnsupportedError as error:
                lines += [f"batch.unsupported({i}, {str(error)!r})", f"return {i + 1}"]
                break
            except (KeyError, IndexError, AttributeError, TypeError) as error:
                # A form of the instruction that its method did not expect.
                why = f"codegen: {error!r}"
                lines += [f"batch.unsupported({i}, {why!r})", f"return {i + 1}"]
                break
            lines += body
            if self._ends_segment(instruction):
                if body and not body[-1].startswith("return"):
                    lines.append(f"return {i + 1}")
                break
            i += 1
        source = "def segment(batch, r, active):\n" + "".join(f"    {line}\n" for line in lines)
        code = compile(source, f"<{self.program.name}@{pc}:{mode}>", "exec")
        namespace = dict(self.namespace)
        exec(code, namespace)
        function = namespace["segment"]
        function.source = source
        function.count = count
        return function

    @staticmethod
    def _ends_segment(instruction: Instruction) -> bool:
        if instruction.parts[0] == "mbarrier":
            return instruction.parts[1] in ("try_wait", "test_wait")
        return instruction.parts[0] in BARRIERS

    def _predicate_mask(self) -> str:
        mask = self.raw(self.instruction.predicate)
        return f"~{mask}" if self.instruction.negated else mask

    def _control(self, instruction: Instruction, pc: int, mode: str) -> list[str]:
        self.instruction, self.pc, self.mode = instruction, pc, mode
        if instruction.parts[0] in ("trap", "brkpt"):
            target = TRAP
        else:
            target = instruction.target if instruction.parts[0] == "bra" else EXIT
        if instruction.predicate is None:
            return [f"return {target}"]
        return [
            f"p = {self._predicate_mask()}",
            "c = np.count_nonzero(p)",
            f"if c == 0: return {pc + 1}",
            f"if c == {self.count}: return {target}",
            f"return ({target}, {pc + 1}, p)",
        ]
