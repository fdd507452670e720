"""The compilers behind the emulator's tests: nvcc for PTX, torch's builder for an extension."""

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from emugpu.build import BUILD, cuda_home

KERNELS = Path(__file__).parent / "kernels"
OUTPUT = BUILD / "tests"
TOY_LIBRARY = OUTPUT / "toy" / "emugpu_toy.so"


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    found = shutil.which("nvcc")
    if found is None and (home := cuda_home()) is not None and (home / "bin" / "nvcc").is_file():
        found = str(home / "bin" / "nvcc")
    return found


def why_no_nvcc() -> str | None:
    """Why kernels/*.cu cannot be compiled here, or None."""
    return None if nvcc() else "no nvcc (the CUDA compiler) on PATH or in CUDA_HOME"


def why_no_triton() -> str | None:
    """Why Triton cannot compile kernels here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "Triton interprets kernels in this process; `make test-gpu-emulated` compiles them"
    return None


def why_no_emulated_gpu() -> str | None:
    """Why a test of the launch path cannot run here, or None."""
    if torch.version.cuda is None:
        return "this torch has no CUDA; `make test-gpu-emulated` installs one that has"
    if not os.environ.get("EMULATED_GPU"):
        return "no emulated GPU: set EMULATED_GPU=80 and load the plugin emugpu.pytest_plugin"
    return why_no_nvcc()


def compute_capability() -> int:
    """The emulated compute capability: 80, 90."""
    return int(os.environ.get("EMULATED_GPU", "80").split("x")[0])


@functools.cache
def nvcc_ptx(name: str, arch: str = "sm_80", options: Sequence[str] = ()) -> str:
    """PTX of ``kernels/<name>.cu``, compiled once for each architecture and list of options.

    Raises subprocess.CalledProcessError if nvcc refuses it.
    """
    source = KERNELS / f"{name}.cu"
    output = OUTPUT / "".join((name, ".", arch, *options, ".ptx"))
    if not output.exists() or output.stat().st_mtime < source.stat().st_mtime:
        output.parent.mkdir(parents=True, exist_ok=True)
        target = [f"-arch={arch}"]
        if arch.endswith("a"):
            virtual = arch.replace("sm", "compute")
            target = [f"-gencode=arch={virtual},code={virtual}"]
        command = [nvcc() or "nvcc", "-ptx", "-std=c++17", *target, *options]
        subprocess.run([*command, str(source), "-o", str(output)], check=True)
    return output.read_text()


def build_toy() -> "torch._ops._OpNamespace":
    """Build and load the test extension: real nvcc, real launchers, PTX in the fat binary."""
    home = cuda_home()
    if home is not None:  # before cpp_extension looks
        os.environ.setdefault("CUDA_HOME", str(home))
    from torch.utils.cpp_extension import load

    folder = TOY_LIBRARY.parent
    folder.mkdir(parents=True, exist_ok=True)
    architectures = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ("80", "90a")]
    load(
        TOY_LIBRARY.stem,
        [str(KERNELS / "toy.cpp"), str(KERNELS / "toy.cu")],
        extra_cuda_cflags=["-std=c++17", *architectures],
        extra_cflags=["-O1"],
        build_directory=str(folder),
        is_python_module=False,
        with_cuda=True,
    )
    return torch.ops.toy
