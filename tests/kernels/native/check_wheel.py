"""Of an installed wheel: does it work beside this torch, and is the CUDA library whole?

Run by `make cuda-build-check` with the path of csrc/cuda/launch.h, in environments that hold little
more than torch, pytest and the wheel.
"""

import ctypes
import dataclasses
import functools
import re
import sys
from pathlib import Path

import torch

import genhoi_kernels
from genhoi_kernels.backends import native

sys.path.append(str(Path(__file__).resolve().parents[2]))

from support.cases import DTYPES, Case, check_budget


def launchers(header: Path) -> list[str]:
    """Names of the functions that the header declares."""
    return re.findall(r"^int (genhoi_\w+)\(", header.read_text(encoding="utf-8"), re.MULTILINE)


def norm_rope_gradients(backend: str) -> tuple[torch.Tensor, ...]:
    """Of q, k and their weights."""
    rope = genhoi_kernels.VideoRope((3, 5, 5), head_dim=24)
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    args = [draw(shape).requires_grad_() for shape in ((2, 75, 72), (2, 75, 72), 72, 72)]
    q, k = genhoi_kernels.qk_norm_rope(*args, rope, backend=backend)
    return torch.autograd.grad((q.sin() + k.cos()).sum(), args)


def check_cpu() -> None:
    """Each CPU operator, forward and backward, beside eager. Raises AssertionError."""
    case = Case(
        batch=2,
        grid=(3, 5, 5),
        heads=3,
        dim=24,
        refs=((3, 4), (1, 1)),
        mask="random",
        bias=(0.5, -1.0),
    )
    for dtype in DTYPES:
        for gate in ("token", "sum"):
            check_budget(dataclasses.replace(case, dtype=dtype, gate=gate), "cpu")
    torch.testing.assert_close(norm_rope_gradients("cpu"), norm_rope_gradients("eager"))


def check_cuda_library(path: Path, header: Path) -> str:
    """What there is to say of it. Exits with a sentence where something is missing."""
    assert torch.version.cuda is not None
    runtime = f"libcudart.so.{torch.version.cuda.split('.')[0]}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        if "libcudart.so" in str(error) and runtime not in str(error):
            return f"{path.name} is there, for a torch of another CUDA than {torch.version.cuda}"
        sys.exit(f"{path.name} does not open: {error}")
    names = launchers(header)
    missing = [name for name in names if not hasattr(library, name)]
    if missing:
        sys.exit(f"{path.name} lacks {', '.join(missing)}")
    # Finds torch's streams too. The backend itself opens it only where there is a GPU.
    native.module.open_cuda_library(str(path))
    return f"{path.name} opens and has all {len(names)} launchers"


def main() -> None:
    """Exits with a sentence where something is wrong."""
    print(f"torch {torch.__version__}: {Path(genhoi_kernels.__file__).parent}")
    for backend in genhoi_kernels.backends():
        print(f"backend {backend.name}: {backend.usable}: {backend.reason}")
    if native.module is None:
        sys.exit(native.missing_reason)
    check_cpu()
    print("the CPU kernels keep the error budget")
    if native.cuda_library is None:
        print(native.cuda_missing_reason)
    elif torch.version.cuda is None:
        print(f"{native.cuda_library.name} is there, for a CUDA build of torch")
    else:
        print(check_cuda_library(native.cuda_library, Path(sys.argv[1])))


main()
