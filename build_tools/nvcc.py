"""The CUDA compiler: which one, for which GPUs, and how many runs of it at a time."""

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from build_tools.compilers import named_by
from build_tools.outcome import NotBuiltError
from build_tools.project import version_numbers

MIN_NVCC = (12, 8)  # the first that knows all of CUDA_ARCHITECTURES

# Machine code for these, as far as nvcc has them, and PTX of the first in any case: it serves every
# later GPU. What is older lacks instructions that the kernels use. The code for 8.0 is that of 8.6
# and 8.9 too: they run it, and code of their own spills registers.
CUDA_ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0"]

# Kernels that exist for one architecture alone, by their folder below csrc/cuda: no other GPU runs
# them, later ones included.
ONLY_FOR = {"sm90": "sm_90a"}

NVCC_BYTES = 3 << 30  # memory that one run of nvcc may take


@dataclass(frozen=True)
class Nvcc:
    """An installed nvcc."""

    command: list[str]
    version: tuple[int, ...]


def nvcc_command() -> list[str]:
    """Find nvcc by CUDACXX, in CUDA_HOME or on PATH. Raises NotBuiltError if there is none."""
    command = named_by("CUDACXX")
    if command:
        return command
    home = os.environ.get("CUDA_HOME", "")
    if home:
        if shutil.which(f"{home}/bin/nvcc") is None:
            raise NotBuiltError(f"there is no bin/nvcc in CUDA_HOME, {home}")
        return [f"{home}/bin/nvcc"]
    for name in ("nvcc", "/usr/local/cuda/bin/nvcc"):
        if shutil.which(name):
            return [name]
    raise NotBuiltError(
        "nvcc was not found (looked for it in CUDA_HOME, on PATH and in /usr/local/cuda)"
    )


def ask_nvcc(command: list[str], option: str) -> str:
    """Read what nvcc prints for an option. Raises NotBuiltError if it does not run."""
    try:
        answer = subprocess.run([*command, option], capture_output=True, text=True)
    except OSError as error:
        raise NotBuiltError(f"{shlex.join(command)} does not run ({error.strerror})") from None
    if answer.returncode != 0:
        raise NotBuiltError(f"{shlex.join([*command, option])} fails")
    return answer.stdout


def find_nvcc() -> Nvcc:
    """Find the nvcc to use. Raises NotBuiltError if there is none, or if it is too old."""
    command = nvcc_command()
    release = re.search(r"release (\d+\.\d+)", ask_nvcc(command, "--version"))
    if release is None:
        raise NotBuiltError(f"{shlex.join(command)} does not say which version it is")
    version = version_numbers(release[1])
    if version < MIN_NVCC:
        oldest = ".".join(map(str, MIN_NVCC))
        raise NotBuiltError(f"it needs nvcc {oldest} or newer, and nvcc {release[1]} was found")
    return Nvcc(command, version)


def gpu_code_flags(nvcc: Nvcc) -> list[str]:
    """Give -gencode for TORCH_CUDA_ARCH_LIST, else for CUDA_ARCHITECTURES, and PTX of the oldest.

    Raises NotBuiltError if the list can't be read, or names nothing that could be compiled for.
    """
    listed = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip("; "))
    named = [architecture for architecture in listed if architecture]
    oldest = CUDA_ARCHITECTURES[0].replace(".", "")
    known = ask_nvcc(nvcc.command, "--list-gpu-code").split()
    codes = []
    for architecture in named or CUDA_ARCHITECTURES:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture)
        if match is None:
            raise NotBuiltError(
                f"TORCH_CUDA_ARCH_LIST has {architecture!r}, which is no number like 8.0"
            )
        major, minor, suffix, ptx = match.groups()
        if int(major + minor) < int(oldest):
            continue
        target = f"{major}{minor}{suffix}"
        if f"sm_{major}{minor}" in known:
            codes.append(f"arch=compute_{target},code=sm_{target}")
        elif named:
            raise NotBuiltError(
                f"TORCH_CUDA_ARCH_LIST has {architecture}, which this nvcc doesn't know"
            )
        if ptx:
            codes.append(f"arch=compute_{target},code=compute_{target}")
    if not codes:
        raise NotBuiltError(
            f"TORCH_CUDA_ARCH_LIST names no GPU of compute capability {CUDA_ARCHITECTURES[0]} "
            f"or later"
        )
    codes.append(f"arch=compute_{oldest},code=compute_{oldest}")
    return [flag for code in dict.fromkeys(codes) for flag in ("-gencode", code)]


def only_code_flags(folder: str) -> list[str]:
    """Give -gencode for a folder of ONLY_FOR: machine code, and PTX for tools that read it."""
    target = ONLY_FOR[folder].removeprefix("sm_")
    return ["-gencode", f"arch=compute_{target},code=[sm_{target},compute_{target}]"]


def folders_left_out(code_flags: list[str]) -> set[str]:
    """Name the folders of ONLY_FOR whose architecture is none of those in gpu_code_flags."""
    compiled_for = " ".join(code_flags)
    return {name for name in ONLY_FOR if f"code=sm_{name.removeprefix('sm')}" not in compiled_for}


def free_memory() -> int | None:
    """Count the bytes that programs can still take, where the system says so."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    available = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    return int(available[1]) * 1024 if available else None


def nvcc_jobs() -> int:
    """Count the runs of nvcc at a time: as many as there are cores, or memory for them."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    memory = free_memory()
    return max(1, cores if memory is None else min(cores, memory // NVCC_BYTES))
