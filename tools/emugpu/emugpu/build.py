"""Build the three stand-in libraries: libemugpu.so (core), libcudart.so.13 and libcuda.so.1."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
# Everything the emulator and its tests produce; below build/, which git ignores.
BUILD = Path(
    os.environ.get("EMUGPU_BUILD_DIR") or Path(__file__).resolve().parents[3] / "build" / "emugpu"
)
LIBRARIES = ("libemugpu.so", "libcudart.so.13", "libcuda.so.1")


def cuda_home() -> Path | None:
    """The CUDA toolkit: $CUDA_HOME, else around nvcc, else /usr/local/cuda; None without one."""
    compiler = shutil.which("nvcc")
    # resolve(): nvcc on PATH may be a link into the toolkit.
    beside = Path(compiler).resolve().parents[1] if compiler else None
    for folder in (os.environ.get("CUDA_HOME"), beside, "/usr/local/cuda"):
        if folder and Path(folder, "include", "cuda.h").exists():
            return Path(folder)
    return None


def cuda_include() -> Path:
    """The folder of cuda.h: the toolkit's, or the one of NVIDIA's wheels.

    Raises RuntimeError if there is none.
    """
    home = cuda_home()
    if home is not None:
        return home / "include"
    for entry in sys.path:
        for folder in Path(entry, "nvidia").glob("cu*/include"):
            if (folder / "cuda.h").exists():
                return folder
    raise RuntimeError("emugpu: no cuda.h; set CUDA_HOME")


def complete_cudart() -> str:
    """cudart.c, and a call that succeeds and does nothing for every other symbol of the library."""
    code = (SOURCES / "cudart.c").read_text()
    defined = set(re.findall(r"^API\b[^(;]*?\b(_*cuda\w+)\s*\(", code, re.M))
    defined |= set(re.findall(r"^NOT_EMULATED\((\w+)\)", code, re.M))
    defined |= {"cudaGetDeviceProperties", "cudaFuncGetAttributes"}  # props.c
    symbols = (SOURCES / "cudart_symbols.txt").read_text().split()
    defaults = [f"DEFAULT({symbol})" for symbol in symbols if symbol not in defined]
    return "\n".join([code, *defaults, ""])


def build(folder: Path | None = None, force: bool = False) -> list[Path]:
    """The three libraries' paths; compiles them if a source is newer or ``force`` is set.

    Raises RuntimeError without cuda.h, subprocess.CalledProcessError if gcc fails.
    """
    folder = folder or BUILD
    libraries = [folder / name for name in LIBRARIES]
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    if not force and all(path.exists() and path.stat().st_mtime > newest for path in libraries):
        return libraries
    # Built aside and moved into place: another process may be loading the old ones.
    work = folder / f"work-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    (work / "cudart.c").write_text(complete_cudart())
    (work / "versions").write_text(
        "libcudart.so.13 { global: cuda*; __cuda*; emu*; local: *; };\n",
    )
    gcc = ["gcc", "-O2", "-w", "-shared", "-fPIC", f"-I{SOURCES}", f"-I{cuda_include()}"]
    gcc += ["-Wl,-rpath,$ORIGIN", f"-L{work}"]

    def compile_library(name: str, *arguments: Path | str) -> None:
        named = [f"-Wl,-soname,{name}", "-o", str(work / name)]
        subprocess.run([*gcc, *named, *map(str, arguments)], check=True)

    compile_library("libemugpu.so", SOURCES / "core.c", "-lpthread")
    compile_library(
        "libcudart.so.13",
        *(work / "cudart.c", SOURCES / "props.c"),
        f"-Wl,--version-script={work}/versions",
        *("-lemugpu", "-ldl"),
    )
    compile_library("libcuda.so.1", SOURCES / "cuda.c", "-lemugpu")
    for path in libraries:
        os.replace(work / path.name, path)
    shutil.rmtree(work)
    return libraries
