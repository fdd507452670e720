"""Compiles one variant of a Triton kernel without a GPU, and reads what came of it."""

from __future__ import annotations

import contextlib
import io
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.static.architectures import ARCHITECTURES, Architecture
from benchmarks.static.sass import (
    TENSOR,
    Function,
    classify,
    opcode_of,
    read_functions,
    tensor_loops,
)
from benchmarks.static.tools import disassemble, resource_usage
from benchmarks.static.variant import Variant

__all__ = ["Compiled", "compile_variant", "describe", "is_pipelined"]

_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_COPIES = ("LDGSTS", "UTMALDG", "UBLKCP")  # from global to shared memory, in the background


@dataclass(frozen=True)
class Compiled:
    """What a variant was compiled to.

    Attributes:
        variant: its `name`.
        arch, dtype, head_dim, tile, num_warps, num_stages, main_loop, how: as the variant's.
        constants: the values it was compiled for, in words.
        failure: why it did not compile; the rest then says nothing.
        registers: of a thread.
        spilled: bytes a thread writes to and reads from memory for lack of registers; on AMD, the
            vector registers that went there.
        shared: bytes of shared memory of a CTA.
        tensor: class of its matrix instructions, "" if it has none.
        pipelined: the main loop copies ahead of its products; None if there's no way to tell.
        triton: version of the compiler.
        seconds: that compiling took.
        listing: the machine code in words.
    """

    variant: str
    arch: str
    dtype: str
    head_dim: int
    tile: tuple[int, int, int] | None
    num_warps: int
    num_stages: int
    main_loop: bool
    how: str
    constants: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    tensor: str = ""
    pipelined: bool | None = None
    triton: str = ""
    seconds: float = 0.0
    listing: str = ""

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.arch]

    @property
    def title(self) -> str:
        """Name and what tells it from its like."""
        tile = "x".join(map(str, self.tile[:2])) if self.tile else "no tile"
        options = f"{self.num_warps} warps, {self.num_stages} stages"
        return f"{self.variant} {self.dtype} D{self.head_dim} {self.arch} ({tile}, {options})"


def describe(variant: Variant) -> dict[str, Any]:
    """Return the fields of `Compiled` that are known before compiling."""
    return {
        "variant": variant.name,
        "arch": variant.arch,
        "dtype": variant.dtype,
        "head_dim": variant.head_dim,
        "tile": variant.tile,
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "main_loop": variant.main_loop,
        "how": variant.how,
        "constants": {name: _word(value) for name, value in variant.constexprs.items()},
    }


def _word(value: Any) -> str:
    return str(getattr(value, "name", None) or value)


def compile_variant(variant: Variant) -> Compiled:
    """Compile a variant, in a process that imported triton without TRITON_INTERPRET.

    Raises:
        ImportError: triton is not installed.
    """
    import triton

    start = time.monotonic()
    known = describe(variant) | {"triton": triton.__version__}
    try:
        binary, log = _compile(variant)
    except Exception as error:  # the compiler raises whatever it likes
        return Compiled(**known, failure=_words(error), seconds=time.monotonic() - start)
    read = _read_nvidia if ARCHITECTURES[variant.arch].is_nvidia else _read_amd
    results = read(binary, log) | {"shared": binary.metadata.shared}
    return Compiled(**known, **results, seconds=time.monotonic() - start)


def _words(error: BaseException) -> str:
    """Return an error's first cause in one line: where in the source, and what is wrong there."""
    where = next((line for line in str(error).splitlines() if line.startswith("at ")), "")
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__} {where} {lines[-1] if lines else ''}"[:300]


def _compile(variant: Variant) -> tuple[Any, str]:
    """Return Triton's binary, and what ptxas said."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible_by_16}
    source = ASTSource(
        variant.kernel,
        {name: variant.signature[name] for name in names},
        constexprs=dict(variant.constexprs),
        attrs=aligned,
    )
    if ARCHITECTURES[variant.arch].is_nvidia:
        target = GPUTarget("cuda", int(variant.arch.removeprefix("sm_")), 32)
    else:
        target = GPUTarget("hip", variant.arch, 64)
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        **variant.extra_options,
    }
    with _ptxas_log() as log, warnings.catch_warnings():
        # How floating-point fusion will be chosen one day is of no interest here.
        warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")
        binary = triton.compile(source, target=target, options=options)
    return binary, log.getvalue()


@contextlib.contextmanager
def _ptxas_log() -> Iterator[io.StringIO]:
    """Collect what ptxas says in the block, without Triton's cache, which would say nothing."""
    from triton import knobs

    with knobs.nvidia.scope(), knobs.compilation.scope():
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        with contextlib.redirect_stdout(io.StringIO()) as log:
            yield log


def _read_nvidia(binary: Any, log: str) -> dict[str, Any]:
    cubin = binary.asm["cubin"]
    listing = disassemble(cubin)
    spilled = [sum(map(int, pair)) for pair in _SPILLS.findall(log)]
    if not spilled:
        raise RuntimeError("ptxas did not say how much it spills")
    function = max(read_functions(listing), key=lambda function: len(function.instructions))
    classes = {classify(opcode_of(line)) for line in function.instructions}
    return {
        "registers": max(usage.registers for usage in resource_usage(cubin).values()),
        "spilled": sum(spilled),
        "tensor": next((name for name in reversed(TENSOR) if name in classes), ""),
        "pipelined": is_pipelined(function),
        "listing": listing,
    }


def is_pipelined(function: Function) -> bool:
    """Say whether tiles are copied to shared memory ahead of the products that take them.

    In a loop that is, copies are issued both before it, for the first passes, and in it; or
    other warps issue them, in a loop without products.
    """
    loops = tensor_loops(function)
    copies = [i for i, line in enumerate(function.instructions) if _is_copy(line)]
    inside = [i for i in copies if any(loop.first <= i <= loop.last for loop in loops)]
    return len(copies) > len(inside) and (bool(inside) or not loops)


def _is_copy(line: str) -> bool:
    return opcode_of(line).startswith(_COPIES)


def _read_amd(binary: Any, log: str) -> dict[str, Any]:
    listing = binary.asm["amdgcn"]

    def number(name: str) -> int:
        numbers = re.findall(rf"\.{name}:\s+(\d+)", listing)
        return max(map(int, numbers), default=0)

    return {
        "registers": number("vgpr_count"),
        "spilled": number("vgpr_spill_count"),
        "tensor": "MFMA" if re.search(r"^\s+v_mfma_", listing, re.M) else "",
        "listing": listing,
    }
