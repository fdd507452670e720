"""Build of the C++ extension ``genhoi_kernels._C`` and of the CUDA library beside it.

The extension holds the CPU backend's kernels, and the registration of all kernels through torch's
stable ABI, so one binary serves every torch from MIN_TORCH (in native.py) on.
``genhoi_kernels/libgenhoi_cuda.so`` holds the CUDA kernels. It needs CUDA's runtime library, and
knows no torch; the extension opens it when it is first needed, and so is imported without CUDA too.

An installation never fails for lack of a compiler. Whatever keeps one of the two from being built
becomes one sentence, which is printed and shipped as ``genhoi_kernels/_C_missing.txt`` or
``_cuda_missing.txt`` for the package to show at run time.

The build itself is in build_tools/; everything else is in pyproject.toml.

Environment variables:
  GENHOI_BUILD_CPU   unset: build the extension if possible; 0: do not build it; 1: fail without it
  GENHOI_BUILD_CUDA  unset: build the CUDA library if nvcc and a torch of the same CUDA are there;
                     0: do not build it; 1: build it for whatever torch, and fail without it
  CXX                the C++ compiler (default: the first of c++, g++, clang++)
  CXXFLAGS, LDFLAGS  appended to the flags of build_tools/ninja_file.py
  CUDACXX            nvcc (default: that in CUDA_HOME, else on PATH, else in /usr/local/cuda)
  TORCH_CUDA_ARCH_LIST  GPUs to compile for, as torch writes them: "8.0;9.0a;12.0+PTX"
                     (default: see CUDA_ARCHITECTURES in build_tools/nvcc.py)
  MAX_JOBS           compilations at a time (default: ninja's choice, and of nvcc's as many as
                     memory has room for)
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

# pip runs this file without its folder on the path, which a direct call has there.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_tools.commands import (
    EXTENSION,
    BdistWheel,
    BuildExt,
    EditableWheel,
    NativeDistribution,
)
from build_tools.sources import sources
from build_tools.torch import build_requirements

setup(
    distclass=NativeDistribution,
    cmdclass={"build_ext": BuildExt, "bdist_wheel": BdistWheel, "editable_wheel": EditableWheel},
    ext_modules=[Extension(EXTENSION, [source.as_posix() for source in sources()])],
    setup_requires=build_requirements(),
)
