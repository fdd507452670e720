"""The sources of csrc/cuda compiled by nvcc: each kernel's code, and what ptxas says of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.static.overlap import serialised_functions
from benchmarks.static.sass import Function, read_functions
from benchmarks.static.tools import disassemble
from build_tools.nvcc import ONLY_FOR, nvcc_command
from build_tools.outcome import NotBuiltError

__all__ = ["ARCHS", "SOURCES", "KernelCode", "compile_kernels", "generation_of", "list_jobs"]

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHS = ("sm_80", "sm_90", *ONLY_FOR.values())

_ENTRY = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)
_DIM = re.compile(r"Li(64|96|128)E")
_HALVES = {"BFloat16": "bf16", "Float16": "fp16", "Float32": "fp32"}


@dataclass(frozen=True)
class KernelCode:
    """A compiled kernel.

    Attributes:
        name: without namespaces and template arguments.
        dtype: "" for a kernel that has none.
        head_dim: None for a kernel that has none.
        flags: its template arguments that are true or false.
        registers: of a thread.
        spilled: bytes, stores and loads.
        serialised: ptxas's codes for products that do not overlap with anything.
        function: the instructions.
    """

    name: str
    dtype: str
    head_dim: int | None
    flags: tuple[bool, ...]
    registers: int
    spilled: int
    serialised: tuple[str, ...]
    function: Function


def list_jobs(archs: Sequence[str]) -> list[tuple[Path, str]]:
    """List the sources and for which of these architectures each is compiled."""
    sources = sorted(SOURCES.glob("**/*.cu"))
    return [(source, arch) for arch in archs for source in sources if _is_for(source, arch)]


def _is_for(source: Path, arch: str) -> bool:
    only = ONLY_FOR.get(generation_of(source))
    return arch == only if only else arch not in ONLY_FOR.values()


def generation_of(source: Path) -> str:
    """Return the folder of csrc/cuda that a source is in."""
    return source.relative_to(SOURCES).parts[0]


def compile_kernels(source: Path, arch: str) -> Iterator[KernelCode]:
    """Compile a source and yield its kernels.

    Raises:
        RuntimeError: it does not compile.
        FileNotFoundError: there is no nvcc, or no nvdisasm.
    """
    cubin, log = _compile(source, arch)
    functions = {function.name: function for function in read_functions(disassemble(cubin))}
    serialised = serialised_functions(log)
    for mangled, stores, loads, registers in _ENTRY.findall(log):
        parts, dim = _name_parts(mangled), _DIM.search(mangled)
        yield KernelCode(
            name=next((part for part in reversed(parts) if part[0].islower()), mangled),
            dtype=next((_HALVES[part] for part in parts if part in _HALVES), ""),
            head_dim=int(dim[1]) if dim else None,
            flags=tuple(flag == "1" for flag in re.findall(r"Lb([01])E", mangled)),
            registers=int(registers),
            spilled=int(stores) + int(loads),
            serialised=tuple(serialised.get(mangled, ())),
            function=functions[mangled],
        )


def _compile(source: Path, arch: str) -> tuple[bytes, str]:
    """Compile a source. Returns its cubin, and what ptxas said."""
    try:
        nvcc = nvcc_command()
    except NotBuiltError as error:
        raise FileNotFoundError(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "out.cubin")
        options = ["-std=c++17", "-O3", f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
        done = subprocess.run(
            [*nvcc, *options, "-o", str(cubin), str(source)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile: {done.stderr.strip()[-500:]}")
        return cubin.read_bytes(), done.stderr


def _name_parts(mangled: str) -> list[str]:
    """List the identifiers in a mangled name, each of which has its length before it."""
    parts, at = [], 0
    while match := re.compile(r"\d+").search(mangled, at):
        length, start = int(match[0]), match.end()
        word = mangled[start : start + length]
        is_word = len(word) == length and re.fullmatch(r"[A-Za-z_]\w*", word) is not None
        if is_word and not word.startswith(("_GLOBAL", "E")):
            parts.append(word)
        at = start + length if is_word else start
    return parts
