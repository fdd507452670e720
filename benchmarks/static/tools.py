"""NVIDIA's binary tools, which come inside the Triton wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "disassemble", "find_tool", "library_sass", "library_usage", "resource_usage"]


@dataclass(frozen=True)
class Usage:
    """A compiled function's registers a thread, and bytes of stack a thread if known."""

    registers: int
    stack: int | None


def disassemble(cubin: bytes) -> str:
    """Return the SASS of a cubin."""
    with _file(cubin) as path:
        return _run("nvdisasm", "-c", path)


def resource_usage(cubin: bytes) -> dict[str, Usage]:
    """Return registers and stack of each function of a cubin."""
    with _file(cubin) as path:
        return _usages(_run("cuobjdump", "-res-usage", path))


def library_sass(library: Path, arch: str, function: str) -> str:
    """Return the SASS of one function of a shared library, by its mangled name."""
    return _run("cuobjdump", "-sass", "-arch", arch, "-fun", function, str(library))


def library_usage(library: Path, arch: str, function: str) -> Usage | None:
    """Return registers and stack of one function of a shared library, if it has it."""
    text = _run("cuobjdump", "-res-usage", "-arch", arch, "-fun", function, str(library))
    return _usages(text).get(function)


def _usages(text: str) -> dict[str, Usage]:
    matches = re.findall(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+)", text)
    return {name: Usage(int(registers), int(stack)) for name, registers, stack in matches}


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run([find_tool(name), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def find_tool(name: str) -> str:
    """Find a tool: in the folder that NVBIN names, else in the Triton wheel, else on the PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    folders = [os.environ["NVBIN"]] if "NVBIN" in os.environ else []
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin:
        folders.append(str(Path(spec.origin).parent / "backends" / "nvidia" / "bin"))
    path = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))
    if path is None:
        raise FileNotFoundError(
            f"no {name}: it comes with triton (pip install 'genhoi-kernels[triton]')"
        )
    return path


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        yield file.name
