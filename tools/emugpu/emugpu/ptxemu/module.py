"""A PTX module and the launch of its kernels."""

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .batch import Batch
from .codegen import CONTROL, CodeGenerator
from .errors import PTXError
from .flatten import Flattener
from .memory import GlobalMemory
from .numerics import u1
from .parser import Parsed
from .syntax import Program, Variable
from .tensor_map import TensorMap

SHARED_ALIGNMENT = 1024


@dataclass
class Report:
    """What a launch did, and what its checks recorded."""

    kernel: str
    seconds: float = 0.0
    instructions: int = 0  # instruction issues (each over up to max_lanes lanes)
    segments: int = 0
    lanes: int = 0
    races: list[dict[str, Any]] = field(default_factory=list)
    uninit: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    shared_bytes: int = 0
    limit: float = field(default=0.0, repr=False)


def _triple(size: int | Sequence[int]) -> tuple[int, int, int]:
    return (size, 1, 1) if isinstance(size, int) else (*size, 1, 1)[:3]


class Module:
    """The kernels and variables of a PTX text. ``memory`` is where its variables live."""

    def __init__(self, parsed: Parsed, memory: GlobalMemory | None = None) -> None:
        self.parsed = parsed
        self.memory = memory or GlobalMemory()
        # name -> the variable's storage, and its address
        self.globals: dict[str, np.ndarray] = {}
        self.addresses: dict[str, int] = {}
        self.programs: dict[str, tuple[Program, CodeGenerator]] = {}
        for variable in parsed.variables.values():
            if variable.space in ("global", "const") and variable.size:
                storage = np.zeros(variable.size, u1)
                if variable.init:
                    storage[:] = np.frombuffer(variable.init, u1)[: variable.size]
                self.globals[variable.name] = storage
                self.addresses[variable.name] = self.memory.register(storage, variable.name)
        self.relocate()

    @classmethod
    def from_ptx(cls, text: str, memory: GlobalMemory | None = None) -> "Module":
        """Parse a PTX text. Raises PTXError where it cannot."""
        return cls(Parsed(text), memory)

    @property
    def kernels(self) -> list[str]:
        """The names of the entry functions."""
        return [function.name for function in self.parsed.functions.values() if function.is_entry]

    def relocate(self) -> None:
        """Write the addresses of variables into the variables that are initialised with them."""
        for variable in self.parsed.variables.values():
            self._relocate(variable)

    def _relocate(self, variable: Variable) -> None:
        for offset, symbol, size in variable.relocations or []:
            base, _, add = symbol.replace("generic(", "").rstrip(")").partition("+")
            if base in self.addresses:
                address = self.addresses[base] + (int(add) if add else 0)
                bits = np.frombuffer(address.to_bytes(8, "little")[:size], u1)
                self.globals[variable.name][offset : offset + size] = bits

    def program(self, kernel: str) -> tuple[Program, CodeGenerator]:
        """A kernel, flattened, and its code generator. Raises PTXError for an unknown name."""
        if kernel not in self.programs:
            if kernel not in self.parsed.functions:
                raise PTXError(f"no kernel {kernel}; have {self.kernels}")
            program = Flattener(self.parsed, kernel).program()
            rounded = -(-program.shared_static // SHARED_ALIGNMENT) * SHARED_ALIGNMENT
            program.shared_static_aligned = rounded
            program.globals = self.addresses
            self.programs[kernel] = (program, CodeGenerator(program))
        return self.programs[kernel]

    def unsupported(self, kernel: str) -> list[tuple[int, str, str]]:
        """[(line, text, reason)] for instructions of ``kernel`` that would raise if executed."""
        program, generator = self.program(kernel)
        out = []
        for pc, instruction in enumerate(program.instructions):
            if instruction.parts[0] in CONTROL:
                continue
            for mode in ("full", "masked"):
                try:
                    generator.emit(instruction, pc, mode)
                except Exception as error:
                    out.append((instruction.line, instruction.text, str(error)))
                    break
        return out

    def _bytes_of(self, value: Any, name: str, size: int, temporary: list[int]) -> bytes:
        if hasattr(value, "data_ptr") or (
            isinstance(value, np.ndarray) and value.ndim and size == 8
        ):
            before = self.memory.next
            address = self.memory.register(value, name)
            if address >= before:
                temporary.append(address)
            return struct.pack("<Q", address)
        if isinstance(value, TensorMap):
            return value.encode(self.memory, temporary)
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if isinstance(value, (np.generic, np.ndarray)):
            return value.tobytes()
        if isinstance(value, int):
            return (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")
        if isinstance(value, float):
            if size == 2:
                return np.float16(value).tobytes()
            return struct.pack("<f" if size == 4 else "<d", value)
        if value is None:
            return bytes(size)
        raise TypeError(f"argument {name}: {type(value)}")

    def _marshal(self, program: Program, args: Sequence[Any], temporary: list[int]) -> np.ndarray:
        if len(args) != len(program.params):
            raise TypeError(
                f"{program.name}: {len(args)} arguments for {len(program.params)} parameters"
            )
        buffer = bytearray(program.param_size)
        for value, (name, offset, size, _) in zip(args, program.params, strict=True):
            raw = self._bytes_of(value, name, size, temporary)
            if len(raw) != size:
                raise TypeError(
                    f"{program.name}: argument {name} has {len(raw)} bytes, parameter has {size}"
                )
            buffer[offset : offset + size] = raw
        # Wide loads may look past the last parameter.
        return np.frombuffer(bytes(buffer) + bytes(16), u1)

    def launch(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        smem_bytes: int = 0,
        *,
        racecheck: str | None = None,
        initcheck: str | None = None,
        schedule: str = "lockstep",
        max_lanes: int = 4096,
        max_issues: int | None = None,
        eager_wgmma: bool = False,
    ) -> Report:
        """Run ``kernel``. Arrays (NumPy or CPU torch) are used in place.

        racecheck, initcheck: None, "record" or "raise".
        schedule: "lockstep" (all warps advance together, fastest), "warp-asc" or "warp-desc" (one
            warp at a time runs until it blocks).
        eager_wgmma: run wgmma at issue instead of at its wait. By the ISA registers of a pending
            wgmma must not be touched, but ptxas accepts copies of them (Triton emits these for f16
            accumulators).
        max_issues: instruction budget; exceeding it raises DeadlockError (a livelock guard).

        Raises PTXError for a launch that does not fit the kernel, TypeError for arguments that do
        not, and an EmuError for what the kernel does wrong.
        """
        grid, block = _triple(grid), _triple(block)
        program, generator = self.program(kernel)
        report = Report(kernel)
        report.limit = max_issues or float("inf")
        began = time.time()
        temporary: list[int] = []
        params = self._marshal(program, args, temporary)
        nthreads = block[0] * block[1] * block[2]
        _check_block(program, nthreads)
        padded = (nthreads + 31) // 32 * 32
        static = program.shared_static
        if program.extern_shared:
            static = program.shared_static_aligned
        report.shared_bytes = static + smem_bytes
        cluster = int(np.prod(program.attributes.get("reqnctapercluster", [1])))
        if cluster > 1:
            report.warnings.append(f"cluster size {cluster} not modelled (treated as 1)")
        total = grid[0] * grid[1] * grid[2]
        together = max(1, max_lanes // padded)
        try:
            with np.errstate(all="ignore"):
                for first in range(0, total, together):
                    batch = Batch(
                        self.memory,
                        program,
                        generator,
                        grid=grid,
                        block=block,
                        ctas=np.arange(first, min(total, first + together)),
                        params=params,
                        shared_bytes=report.shared_bytes,
                        dynamic_bytes=smem_bytes,
                        race=racecheck,
                        init=initcheck,
                        schedule=schedule,
                        eager=eager_wgmma,
                        report=report,
                    )
                    batch.run()
                    report.races += batch.shared.races
                    report.uninit += batch.shared.uninit
        finally:
            self.memory.release(set(temporary))
        report.seconds = time.time() - began
        return report


def _check_block(program: Program, nthreads: int) -> None:
    if not 1 <= nthreads <= 1024:
        raise PTXError(f"block of {nthreads} threads")
    needed = program.attributes.get("reqntid")
    if needed and nthreads != int(np.prod(needed)):
        raise PTXError(f"{program.name}: block of {nthreads} threads, but .reqntid {needed}")
    most = program.attributes.get("maxntid")
    if most and nthreads > int(np.prod(most)):
        raise PTXError(f"{program.name}: block of {nthreads} threads, but .maxntid {most}")
