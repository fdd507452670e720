"""Other attention kernels beside ours, as the model sees them.

Their figures are stored; FlashAttention-2's are also read anew where a CUDA torch is installed.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.static.sass_model import MODELLED, Kernel, model_sass
from benchmarks.static.tools import library_sass, library_usage

__all__ = ["BACKWARD", "FORWARD", "find_cuda_torch", "products_of", "read_peers", "read_torch"]

Row = dict[str, Any]

FORWARD, BACKWARD = 2, 5  # matrix products of a tile
_FILE = Path(__file__).with_name("peers.csv")
_ROOT = Path(__file__).resolve().parents[2]
_LIBRARY = "libtorch_cuda.so"

_BF16 = "EN7cutlass10bfloat16_t"
# Even sizes, no dropout, mask, bias or cap: the plain main loop.
_FORWARD_NAME = (
    f"_ZN13pytorch_flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi128ELi128ELi64ELi4ELb0ELb0{_BF16}"
    "E19Flash_kernel_traitsILi128ELi128ELi64ELi4ES3_EELb0ELb0ELb0ELb0ELb1ELb1ELb0ELb0EEEv"
    "NS_16Flash_fwd_paramsE"
)
_BACKWARD_NAME = (
    "_ZN13pytorch_flash44flash_bwd_dq_dk_dv_loop_seqk_parallel_kernelI23Flash_bwd_kernel_traits"
    f"ILi128ELi64ELi128ELi8ELi2ELi4ELi2ELb0ELb0{_BF16}E19Flash_kernel_traitsILi128ELi64ELi128ELi8ES3_EE"
    "Lb0ELb0ELb0ELb0ELb1ELb1ELb0EEEvNS_16Flash_bwd_paramsE"
)
_KERNELS = {
    "FA2 fwd installed torch 128x64": (
        _FORWARD_NAME, Kernel("", (128, 64, 128), FORWARD, 4, shared=65536)
    ),
    "FA2 bwd installed torch 64x128": (
        _BACKWARD_NAME, Kernel("", (64, 128, 128), BACKWARD, 8, shared=147456)
    ),
}  # fmt: skip


def products_of(name: str) -> int:
    """Matrix products of a tile of a peer, by its name."""
    return BACKWARD if " bwd " in f" {name} " else FORWARD


def read_peers() -> list[Row]:
    """The stored figures, numbers as numbers, `arch` as in "sm_80"."""
    with _FILE.open(newline="", encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        return [
            {name: _number(value) for name, value in row.items()} | {"arch": f"sm_{row['arch']}"}
            for row in csv.DictReader(lines)
        ]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def find_cuda_torch() -> Path | None:
    """The library with a CUDA torch's kernels: of this environment, or of .venv-cuda beside it."""
    folders = [Path(path) for path in sys.path if path]
    folders += sorted((_ROOT / ".venv-cuda" / "lib").glob("python*/site-packages"))
    libraries = (folder / "torch" / "lib" / _LIBRARY for folder in folders)
    return next((library for library in libraries if library.exists()), None)


def read_torch(library: Path) -> Iterator[Row]:
    """FlashAttention-2's main loops in a CUDA torch, forward and backward; those that it has."""
    for name, (function, kernel) in _KERNELS.items():
        for arch in MODELLED:
            usage = library_usage(library, arch, function)
            if usage is None:
                continue
            known = replace(kernel, arch=arch)
            text = library_sass(library, arch, function)
            for row in model_sass(text, known, {"kernel": usage}):
                yield row | {"kernel": name, "arch": arch}
