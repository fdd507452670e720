"""Ninja: the file that says how the native parts are compiled and linked, and the run of it.

Ninja compiles rather than torch's BuildExtension, because every instruction set has its own source
file with its own flags. It recompiles what includes a header that changed, as the compilers list
their headers (-MMD).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from build_tools.compilers import standard_flag
from build_tools.nvcc import (
    ONLY_FOR,
    Nvcc,
    folders_left_out,
    gpu_code_flags,
    nvcc_jobs,
    only_code_flags,
)
from build_tools.outcome import NotBuiltError
from build_tools.project import ROOT
from build_tools.sources import CUDA_EXPORTS, cuda_folder_of, cuda_sources, flags_of, sources
from build_tools.torch import MIN_TORCH, Torch

if TYPE_CHECKING:
    from ninja.ninja_syntax import Writer

# Neither errno nor floating-point traps are read anywhere. -ffast-math stays out: NaN and Inf must
# propagate as documented, and it would let the compiler assume that there are none.
COMMON_FLAGS = [
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]

# The oldest libtorch the binary may run with: headers hide everything newer.
DEFINES = [f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000", "-DNDEBUG"]

CUDA_FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler", "-fPIC,-Wall,-Wno-psabi"]

# What a compiler's message has. nvcc's own have a space before the colon.
ERROR = re.compile(r"(error|fatal) *: ")


def quoted(words: list[str]) -> str:
    """Quote the words of a command for the shell that ninja runs."""
    return shlex.join(words).replace("$", "$$")


def environment_flags(name: str) -> str:
    """Read an environment variable's flags for the shell that ninja runs."""
    return os.environ.get(name, "").replace("$", "$$")


def write_extension(
    ninja: Writer, build: Path, library: Path, torch: Torch, compiler: list[str]
) -> None:
    """Write the rules for the extension."""
    # -isystem: warnings of torch's headers are not ours.
    includes = ["-Icsrc", "-isystem", str(torch.folder / "include")]
    common = [standard_flag(compiler), *COMMON_FLAGS, *DEFINES, *includes]
    link = ["-shared", "-Wl,--as-needed"]
    if sys.platform == "darwin":
        link = ["-bundle", "-undefined", "dynamic_lookup"]
    # No rpath: torch is always imported first, and its folder may be another one by then.
    libraries = [f"-L{torch.folder / 'lib'}", "-ltorch_cpu", "-ldl"]

    ninja.variable("cxx", quoted(compiler))
    ninja.variable("common", quoted(common))
    ninja.variable("extra", environment_flags("CXXFLAGS"))
    ninja.rule(
        "compile",
        # $flags first: torch brings a pybind11 of its own, which 2.11 guards with #error.
        command="$cxx $flags $common $extra -MMD -MF $out.d -c $in -o $out",
        depfile="$out.d",
        deps="gcc",
        description="compile $in",
    )
    ninja.rule(
        "link",
        command=f"$cxx {quoted(link)} $in -o $out {quoted(libraries)} $extra",
        description="link $out",
    )
    objects: list[str] = []
    for source in sources():
        objects.append((build / source.with_suffix(".o")).as_posix())
        flags = {"flags": quoted(flags_of(source))}
        ninja.build([objects[-1]], "compile", [source.as_posix()], variables=flags)
    extra = {"extra": environment_flags("LDFLAGS")}
    ninja.build([library.as_posix()], "link", objects, variables=extra)


def write_cuda(ninja: Writer, build: Path, library: Path, nvcc: Nvcc) -> None:
    """Write the rules for the CUDA library."""
    code = gpu_code_flags(nvcc)
    left_out = folders_left_out(code)
    defines = [f"-DGENHOI_HAS_{name.upper()}" for name in sorted(ONLY_FOR.keys() - left_out)]
    ninja.variable("nvcc", quoted(nvcc.command))
    ninja.variable("cuda_flags", quoted([*CUDA_FLAGS, *defines, "-Icsrc"]))
    ninja.variable("code", quoted(code))
    ninja.pool("nvcc", nvcc_jobs())
    ninja.rule(
        "compile_cuda",
        command="$nvcc $cuda_flags $code -MMD -MF $out.d -c $in -o $out",
        depfile="$out.d",
        deps="gcc",
        description="compile $in",
        pool="nvcc",
    )
    exports = CUDA_EXPORTS.as_posix()
    # The shared runtime is the one that torch has loaded: no rpath here either.
    link = ["-shared", "-cudart", "shared", "--no-device-link", "-Xlinker", "--no-undefined"]
    link += ["-Xlinker", f"--version-script={exports}"]
    ninja.rule("link_cuda", command=f"$nvcc {quoted(link)} $in -o $out", description="link $out")
    objects: list[str] = []
    for source in cuda_sources(without=left_out):
        objects.append((build / source.with_suffix(".cu.o")).as_posix())
        folder = cuda_folder_of(source)
        variables = {"code": quoted(only_code_flags(folder))} if folder in ONLY_FOR else None
        ninja.build([objects[-1]], "compile_cuda", [source.as_posix()], variables=variables)
    ninja.build([library.as_posix()], "link_cuda", objects, implicit=[exports])


@contextlib.contextmanager
def ninja_file(folder: Path) -> Iterator[Writer]:
    """Write the file of what ninja builds in a folder, which is relative to the root.

    Raises NotBuiltError if a Python package of the build is missing.
    """
    try:
        # Imported here, as all that only the native build needs: without it, the package installs.
        from ninja import ninja_syntax

        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        with (ROOT / folder / "build.ninja").open("w", encoding="utf-8") as file:
            writer = ninja_syntax.Writer(file)  # type: ignore[arg-type]  # its stub says str
            writer.variable("builddir", folder.as_posix())  # of ninja's own records
            yield writer
    except ImportError as error:
        raise NotBuiltError(f"the Python package {error.name} is missing at build time") from None


def ninja_command(folder: Path) -> list[str]:
    """Give the command that builds a folder. Raises NotBuiltError if ninja is not installed."""
    from ninja import BIN_DIR

    bundled = Path(BIN_DIR, "ninja")
    ninja = str(bundled) if bundled.is_file() else shutil.which("ninja")
    if ninja is None:
        raise NotBuiltError("the ninja program was not found (pip install ninja)")
    jobs = os.environ.get("MAX_JOBS")
    return [ninja, "-f", str(folder / "build.ninja"), *(["-j", jobs] if jobs else [])]


def run_ninja(folder: Path) -> None:
    """Build what the folder's file says, and show the compilers' output.

    Raises NotBuiltError with the first error in it.
    """
    log = []
    process = subprocess.Popen(
        ninja_command(folder),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},  # the search for the error below is in English
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        log.append(line.strip())
    if process.wait() != 0:
        error = next((line for line in log if ERROR.search(line)), "see the build's output")
        raise NotBuiltError(f"compiling it failed ({error[:300]})")
