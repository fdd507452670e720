"""Of an installed wheel: does it import beside this torch, and is the CUDA library whole?

Run by `make cuda-build-check` with the path of csrc/cuda/launch.h, in environments that hold little
more than torch and the wheel.
"""

import ctypes
import re
import sys
from pathlib import Path

import torch

import genhoi_kernels
from genhoi_kernels import native


def launchers(header: Path) -> list[str]:
    """Names of the functions that the header declares."""
    return re.findall(r"^int (genhoi_\w+)\(", header.read_text(encoding="utf-8"), re.MULTILINE)


def main() -> None:
    """Exits with a sentence where something is wrong."""
    print(f"torch {torch.__version__}: {Path(genhoi_kernels.__file__).parent}")
    for backend in genhoi_kernels.backends():
        print(f"backend {backend.name}: {backend.usable}: {backend.reason}")
    if native.module is None:
        sys.exit(native.missing_reason)
    if native.cuda_library is None:
        print(native.cuda_missing_reason)
    elif torch.version.cuda is None:
        print(f"{native.cuda_library.name} is there, for a CUDA build of torch")
    else:
        library = ctypes.CDLL(str(native.cuda_library))
        names = launchers(Path(sys.argv[1]))
        missing = [name for name in names if not hasattr(library, name)]
        if missing:
            sys.exit(f"{native.cuda_library.name} lacks {', '.join(missing)}")
        print(f"{native.cuda_library.name} opens and has all {len(names)} launchers")


main()
