"""The two native parts: the C++ extension, and the CUDA library beside it."""

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from build_tools.compilers import find_compiler
from build_tools.ninja_file import ninja_file, run_ninja, write_cuda, write_extension
from build_tools.nvcc import find_nvcc
from build_tools.outcome import BUILD_CPU, BUILD_CUDA, NotBuiltError, Outcome, attempt, requested
from build_tools.project import ROOT, version_numbers
from build_tools.sources import cuda_sources, sources
from build_tools.torch import find_torch, require_torch

CUDA_LIBRARY = "libgenhoi_cuda.so"


@dataclass(frozen=True)
class Native:
    """What became of the two native parts."""

    extension: Outcome
    cuda: Outcome


def build_extension(file_name: str) -> Path:
    """Build the extension. Raises NotBuiltError where that can't be done."""
    if sys.platform == "win32":
        raise NotBuiltError("it is not supported on Windows")
    if not sources():
        raise NotBuiltError("its sources (csrc/) are missing")
    compiler = find_compiler()
    torch = require_torch()
    # One folder for each interpreter, outside of setuptools' temporary ones: a second build
    # compiles only what has changed.
    folder = Path("build", f"native-{sysconfig.get_config_var('SOABI') or 'unknown'}")
    with ninja_file(folder) as ninja:
        write_extension(ninja, folder, folder / file_name, torch, compiler)
    run_ninja(folder)
    return ROOT / folder / file_name


def cuda_of_torch() -> str | None:
    """Give the CUDA version of the torch at hand; None where GENHOI_BUILD_CUDA=1 forbids a look.

    Raises NotBuiltError if there is no torch that is built for CUDA.
    """
    if requested(BUILD_CUDA):
        return None
    torch = find_torch()
    if torch is None or torch.cuda is None:
        other = f"torch {torch.version}, which is none," if torch else "no torch"
        raise NotBuiltError(f"it is for CUDA builds of torch, and {other} was found")
    return torch.cuda


def build_cuda(extension: Outcome) -> Path:
    """Build the CUDA library. Raises NotBuiltError where that can't be done."""
    if extension.library is None:
        raise NotBuiltError("it is called through the C++ extension, which was not built")
    if not sys.platform.startswith("linux"):
        raise NotBuiltError("it is for Linux")
    if not cuda_sources():
        raise NotBuiltError("its sources (csrc/cuda/) are missing")
    cuda = cuda_of_torch()
    nvcc = find_nvcc()
    # Torch could not load another CUDA's library, so nobody has to wait for it.
    if cuda is not None and version_numbers(cuda)[0] != nvcc.version[0]:
        version = ".".join(map(str, nvcc.version))
        raise NotBuiltError(f"the torch found is for CUDA {cuda}, and nvcc {version} for another")
    folder = Path("build", "cuda")  # the same for every interpreter and torch
    with ninja_file(folder) as ninja:
        write_cuda(ninja, folder, folder / CUDA_LIBRARY, nvcc)
    run_ninja(folder)
    return ROOT / folder / CUDA_LIBRARY


def build_native(extension_file: str) -> Native:
    """Build both parts as far as that is possible."""
    extension = attempt("C++ extension", BUILD_CPU, lambda: build_extension(extension_file))
    return Native(extension, attempt("CUDA library", BUILD_CUDA, lambda: build_cuda(extension)))
