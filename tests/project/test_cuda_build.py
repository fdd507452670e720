"""Building the CUDA library: where it is built, what it shows, and the reason where it is not.

A small extension and a small kernel stand in for the real ones, and folders with little but a
version for a torch.
"""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from test_install import CUDA_REASON_FILE, REASON_FILE, ROOT, copy_tree, run, run_checked

LIBRARY = "genhoi_kernels/libgenhoi_cuda.so"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in /usr/local/cuda")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "setup.py").is_file(), reason="not run from the package's source tree"
    ),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library is for Linux"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    *(
        pytest.mark.skipif(
            importlib.util.find_spec(name) is None, reason=f"{name} is not installed"
        )
        for name in ("ninja", "pybind11", "setuptools")
    ),
]

MODULE = """
#include <pybind11/pybind11.h>
int opened();
PYBIND11_MODULE(_C, m) { m.def("opened", &opened); }
"""
BINDING = """
#ifndef USE_CUDA
#error "The part that deals with CUDA needs USE_CUDA."
#endif
#include <dlfcn.h>
int opened() { return dlopen(nullptr, RTLD_LAZY) != nullptr; }
"""
KERNEL = """
#include "../launch.h"
__global__ void fill(int* x) { x[threadIdx.x] = FILL; }
void helper(int* x) { fill<<<1, 32>>>(x); }
extern "C" int genhoi_fill(int* x) { helper(x); return static_cast<int>(cudaGetLastError()); }
#ifdef GENHOI_HAS_SM90
extern "C" int genhoi_has_sm90() { return 1; }
#endif
"""
HOPPER_KERNEL = """
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "This is for sm_90a alone."
#endif
__global__ void fill_sm90(int* x) { x[threadIdx.x] = 3; }
extern "C" int genhoi_fill_sm90(int* x) { fill_sm90<<<1, 32>>>(x); return 0; }
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The package with small sources instead of its own."""
    copy = copy_tree(tmp_path / "tree", "genhoi_kernels", "genhoi")
    cuda = copy / "csrc" / "cuda"
    (cuda / "sm80").mkdir(parents=True)
    (cuda / "sm90").mkdir()
    (copy / "csrc" / "module.cpp").write_text(MODULE)
    (cuda / "binding.cpp").write_text(BINDING)
    (cuda / "sm80" / "fill.cu").write_text(KERNEL)
    (cuda / "sm90" / "fill.cu").write_text(HOPPER_KERNEL)
    (cuda / "launch.h").write_text("#define FILL 1\n")
    shutil.copy(ROOT / "csrc" / "cuda" / "exports.map", cuda)
    return copy


@pytest.fixture
def torch_of(tmp_path: Path) -> Path:
    """Folder for `import torch`, as far as the build looks at it: 2.14.0 for CUDA 13."""
    return write_torch(tmp_path / "torch-13", "'13.0'")


def write_torch(folder: Path, cuda: str) -> Path:
    package = folder / "torch"
    (package / "include").mkdir(parents=True)
    (package / "lib").mkdir()
    (package / "__init__.py").touch()
    text = f"from typing import Optional\n__version__ = '2.14.0'\ncuda: Optional[str] = {cuda}\n"
    (package / "version.py").write_text(text)
    empty = ["c++", "-shared", "-x", "c++", "/dev/null", "-o", package / "lib" / "libtorch_cpu.so"]
    subprocess.run(empty, check=True)
    return folder


def write_nvcc(folder: Path, release: str) -> Path:
    """A compiler that says its version, and can do nothing else."""
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    version = f"Cuda compilation tools, release {release}, V{release}.88"
    nvcc.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo '{version}';; --list-gpu-code) echo sm_80;; "
        f"*) echo 'fill.cu(3): error: no such thing'; exit 1;; esac\n"
    )
    nvcc.chmod(0o755)
    return folder


def build(tree: Path, torch: Path, **environment: str) -> str:
    return run_checked(
        *[sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=tree,
        PYTHONPATH=str(torch),
        **environment,
    )


def assert_not_built(tree: Path, reason: str) -> None:
    """The extension is there, and in the library's place the reason why it is not."""
    assert (tree / f"genhoi_kernels/_C{sysconfig.get_config_var('EXT_SUFFIX')}").is_file()
    assert not (tree / LIBRARY).exists()
    sentence = (tree / CUDA_REASON_FILE).read_text()
    assert sentence == f"The CUDA library was not built: {reason}.\n"


def test_reasons(tree: Path, torch_of: Path, tmp_path: Path) -> None:
    """Each in the file that the package shows, with an extension that is built all the same."""
    (tree / LIBRARY).touch()  # of other sources, from an earlier build
    build(tree, torch_of, GENHOI_BUILD_CUDA="0")
    assert_not_built(tree, "GENHOI_BUILD_CUDA=0 was set when the package was installed")
    build(tree, torch_of, CUDACXX="no-such-nvcc")
    assert_not_built(tree, "the compiler named by CUDACXX, no-such-nvcc, was not found")
    build(tree, torch_of, CUDA_HOME=str(tmp_path))
    assert_not_built(tree, f"there is no bin/nvcc in CUDA_HOME, {tmp_path}")

    old = str(write_nvcc(tmp_path / "11.8", "11.8"))
    build(tree, torch_of, CUDA_HOME=old)
    assert_not_built(tree, "it needs nvcc 12.8 or newer, and nvcc 11.8 was found")
    nvcc = str(write_nvcc(tmp_path / "13.1", "13.1"))
    build(tree, torch_of, CUDA_HOME=nvcc)
    assert_not_built(tree, "compiling it failed (fill.cu(3): error: no such thing)")
    build(tree, torch_of, CUDA_HOME=nvcc, TORCH_CUDA_ARCH_LIST="8.0 Ampere")
    assert_not_built(tree, "TORCH_CUDA_ARCH_LIST has 'Ampere', which is no number like 8.0")
    build(tree, torch_of, CUDA_HOME=nvcc, TORCH_CUDA_ARCH_LIST="9.0")
    assert_not_built(tree, "TORCH_CUDA_ARCH_LIST has 9.0, which this nvcc doesn't know")
    build(tree, torch_of, CUDA_HOME=nvcc, TORCH_CUDA_ARCH_LIST="7.0;7.5+PTX")
    assert_not_built(tree, "TORCH_CUDA_ARCH_LIST names no GPU of compute capability 8.0 or later")

    other = write_torch(tmp_path / "torch-12", "'12.8'")
    build(tree, other, CUDA_HOME=nvcc)
    assert_not_built(tree, "the torch found is for CUDA 12.8, and nvcc 13.1 for another")
    without = write_torch(tmp_path / "torch-none", "None")
    build(tree, without, CUDA_HOME=nvcc)
    assert_not_built(
        tree, "it is for CUDA builds of torch, and torch 2.14.0, which is none, was found"
    )
    for generation in ("sm80", "sm90"):
        (tree / "csrc" / "cuda" / generation / "fill.cu").unlink()
    build(tree, torch_of, CUDA_HOME=nvcc)
    assert_not_built(tree, "its sources (csrc/cuda/) are missing")


def test_oldest_torch(tree: Path, torch_of: Path) -> None:
    """MIN_TORCH of the package is what the build asks for, and what headers may offer it."""
    native = tree / "genhoi_kernels" / "backends" / "native.py"
    text = native.read_text()

    def build_for(oldest: str) -> None:
        native.write_text(re.sub(r"^MIN_TORCH = .*", oldest, text, flags=re.MULTILINE))
        build(tree, torch_of, GENHOI_BUILD_CUDA="0")

    build_for("MIN_TORCH = (2, 12)")
    (rules,) = (tree / "build").glob("native-*/build.ninja")
    assert "-DTORCH_TARGET_VERSION=0x020c000000000000 " in rules.read_text()
    build_for("MIN_TORCH = (2, 15)")
    assert (tree / REASON_FILE).read_text() == (
        "The C++ extension was not built: "
        "it needs torch 2.15 or newer, and torch 2.14.0 was found.\n"
    )
    with pytest.raises(AssertionError, match=r"no line MIN_TORCH = \(major, minor\)"):
        build_for("MIN_TORCH = minimum()")


LOOKUP = """
#include "loaded_torch.h"
#include <dlfcn.h>
#include <cstdio>
#include <exception>
int main(int, char** libraries) {
  while (*++libraries) {
    if (!dlopen(*libraries, RTLD_NOW | RTLD_LOCAL)) return 2;
  }
  try {
    std::printf("%d", reinterpret_cast<int (*)()>(genhoi::cuda::torch_function("answer"))());
  } catch (const std::exception& error) {
    std::fputs(error.what(), stdout);
  }
}
"""


def test_functions_of_the_loaded_torch(tmp_path: Path) -> None:
    """Found in whatever library of torch has them, loaded as Python does it, or none is named."""
    (tmp_path / "main.cpp").write_text(LOOKUP)
    cuda = ROOT / "csrc" / "cuda"
    options = ["-std=c++17", f"-I{cuda}", cuda / "loaded_torch.cpp", "main.cpp", "-ldl"]
    run_checked("c++", *options, "-o", "lookup", cwd=tmp_path)

    def library(name: str, code: str) -> Path:
        (tmp_path / "library.c").write_text(code)
        options = ["-shared", "-fPIC", "-x", "c", "library.c", f"-Wl,-soname,{name}"]
        run_checked("c++", *options, "-o", name, cwd=tmp_path)
        return tmp_path / name

    answer = "int answer(void) { return 42; }"
    usual, renamed = (library(x, answer) for x in ("libtorch_cuda.so", "libtorch_cuda-1f.so.3"))
    empty, other = library("libtorch_cpu.so", ""), library("libanother.so", answer)

    def look(*libraries: Path) -> str:
        return run_checked(tmp_path / "lookup", *libraries, cwd=tmp_path)

    assert look(usual) == look(empty, usual) == look(empty, renamed) == "42"
    failure = "no library of torch in this process has answer; looked in"
    assert look(other) == f"{failure} none"
    assert look(empty, other) == f"{failure} {empty}"


def test_required_library_is_an_error(tree: Path, torch_of: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {"PYTHONPATH": str(torch_of), "GENHOI_BUILD_CUDA": "1"}
    process = run(*command, cwd=tree, **environment, CUDACXX="no-such-nvcc")
    assert process.returncode != 0
    assert "no-such-nvcc, was not found. GENHOI_BUILD_CUDA=1 makes this an err" in process.stdout
    process = run(*command, cwd=tree, **environment, GENHOI_BUILD_CPU="0")
    assert process.returncode != 0
    assert "through the C++ extension, which was not built" in process.stdout
    assert not (tree / CUDA_REASON_FILE).exists()


def exported_names(tree: Path) -> set[str]:
    """The functions that the library shows."""
    table = run_checked("readelf", "--wide", "--dyn-syms", LIBRARY, cwd=tree)
    rows = [line.split() for line in table.splitlines() if " GLOBAL " in line]
    return {row[7] for row in rows if row[6] != "UND"}


@needs_nvcc
@pytest.mark.nvcc
def test_library(tree: Path, torch_of: Path) -> None:
    """It shows its launchers only, needs no torch, and is built again where a header changes."""
    without = write_torch(tree / "torch-none", "None")
    built = build(tree, without, GENHOI_BUILD_CUDA="1", TORCH_CUDA_ARCH_LIST="8.0")
    assert "compile csrc/cuda/sm80/fill.cu" in built
    assert not (tree / CUDA_REASON_FILE).exists()
    assert exported_names(tree) == {"genhoi_fill"}
    needed = run_checked("readelf", "--wide", "--dynamic", LIBRARY, cwd=tree)
    assert "libcudart.so" in needed
    assert not any(name in needed for name in ("torch", "c10", "RPATH", "RUNPATH"))

    again = {"GENHOI_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0"}
    assert "compile" not in build(tree, without, **again)
    (tree / "csrc" / "cuda" / "launch.h").write_text("#define FILL 2\n")
    assert "compile csrc/cuda/sm80/fill.cu" in build(tree, without, **again)


@needs_nvcc
@pytest.mark.nvcc
def test_kernels_for_one_architecture(tree: Path, torch_of: Path) -> None:
    """Those of csrc/cuda/sm90 are compiled for sm_90a, and are there where 9.0 is asked for."""

    def build_for(architectures: str) -> str:
        wanted = {"GENHOI_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architectures}
        return build(tree, torch_of, **wanted)

    assert "csrc/cuda/sm90" not in build_for("8.0")
    assert exported_names(tree) == {"genhoi_fill"}
    assert "compile csrc/cuda/sm90/fill.cu" in build_for("8.0 9.0")
    assert exported_names(tree) == {"genhoi_fill", "genhoi_fill_sm90", "genhoi_has_sm90"}


@needs_nvcc
@pytest.mark.nvcc
def test_wheel(tree: Path, tmp_path: Path) -> None:
    """The library is in the wheel, which is one for this system."""
    without = write_torch(tmp_path / "torch-none", "None")
    run_checked(
        *[sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", tmp_path / "dist"],
        cwd=tree,
        PYTHONPATH=str(without),
        GENHOI_BUILD_CUDA="1",
        TORCH_CUDA_ARCH_LIST="8.0",
    )
    (wheel,) = (tmp_path / "dist").iterdir()
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extract(LIBRARY, tmp_path)
    assert f"genhoi_kernels/_C{sysconfig.get_config_var('EXT_SUFFIX')}" in names
    assert CUDA_REASON_FILE not in names
    try:
        library = ctypes.CDLL(str(tmp_path / LIBRARY))
    except OSError as error:
        assert "libcudart.so" in str(error)  # of a machine with nvcc alone
    else:
        assert library.genhoi_fill
