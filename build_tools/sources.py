"""The sources below csrc/, and the compiler flags that only some of them have."""

import platform
import sys
from collections.abc import Collection
from pathlib import Path

from build_tools.compilers import python_include
from build_tools.project import ROOT

# The binding is the only source that sees Python and pybind11. Under build isolation their headers
# move with every build; kept away from the kernels, they do not cause those to be recompiled.
BINDING = Path("csrc/module.cpp")

CUDA_FOLDER = Path("csrc/cuda")
CUDA_EXPORTS = CUDA_FOLDER / "exports.map"

# Sources named *_<suffix>.cpp are compiled for that instruction set, on x86-64 only; elsewhere they
# are left out, and whoever calls into them must be under `#if defined(__x86_64__)`. All other
# sources keep to the platform's baseline: code in them runs before anyone has looked at the CPU.
# From the weakest to the strongest; see sources().
AVX512 = [
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mfma",
    "-mf16c",
    "-mprefer-vector-width=512",
]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}


def isa_of(source: Path) -> str | None:
    """Give the instruction set that a source is named after, or None."""
    return next((isa for isa in ISA_FLAGS if source.stem.endswith(f"_{isa}")), None)


def relative_sources(pattern: str) -> list[Path]:
    """List files below the root, relative to it, in an order that no file system decides."""
    return sorted(path.relative_to(ROOT) for path in ROOT.glob(pattern))


def sources() -> list[Path]:
    """List the extension's sources for this machine, the weakest instruction set first.

    Inline functions and templates may be compiled in several files, and the linker keeps the copy
    of the first: in this order never one that the CPU might not be able to run.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
    isas: list[str | None] = [None, *ISA_FLAGS] if x86 else [None]
    every_source = relative_sources("csrc/**/*.cpp")
    return [source for isa in isas for source in every_source if isa_of(source) == isa]


def cuda_sources(without: Collection[str] = ()) -> list[Path]:
    """List the CUDA library's sources, without those in some folders of csrc/cuda."""
    every_source = relative_sources(f"{CUDA_FOLDER.as_posix()}/**/*.cu")
    return [source for source in every_source if cuda_folder_of(source) not in without]


def cuda_folder_of(source: Path) -> str:
    """Give the folder of csrc/cuda that a source is in."""
    return source.relative_to(CUDA_FOLDER).parts[0]


def flags_of(source: Path) -> list[str]:
    """Give the flags that not all sources of the extension have."""
    isa = isa_of(source)
    if isa:
        return ISA_FLAGS[isa]
    if source == BINDING:
        import pybind11  # here, as all that only the native build needs

        return ["-isystem", python_include(), "-isystem", pybind11.get_include()]
    if source.is_relative_to(CUDA_FOLDER):
        # The part of torch's stable interface that deals with streams; it needs no CUDA headers.
        return ["-DUSE_CUDA"]
    return []
