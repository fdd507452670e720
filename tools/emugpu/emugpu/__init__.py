"""An emulated GPU for PyTorch: custom CUDA and Triton kernels run without a GPU.

Their launches take the real path (dispatcher, device guard, stream, nvcc's stubs or Triton's
driver), and the PTX emulator executes them::

    import emugpu
    emugpu.install(80)  # before torch is imported
    import torch
    torch.ops.my.op(torch.randn(64, device="cuda"))
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from . import launch, libraries
from .build import build
from .errors import EmulatedGPUError, LaunchError, NotEmulatedError
from .images import register_cubin, register_ptx
from .launch import check, clear, pending
from .libraries import hooks, launches, options
from .ptxemu import (
    DeadlockError,
    EmuError,
    MisalignedError,
    OutOfBoundsError,
    RaceError,
    UninitError,
    UnsupportedError,
)

__all__ = [
    "DeadlockError",
    "EmuError",
    "EmulatedGPUError",
    "LaunchError",
    "MisalignedError",
    "NotEmulatedError",
    "OutOfBoundsError",
    "RaceError",
    "UninitError",
    "UnsupportedError",
    "check",
    "checks",
    "clear",
    "exact_errors",
    "hooks",
    "install",
    "installed",
    "launches",
    "max_memory_allocated",
    "memory_allocated",
    "options",
    "pending",
    "preload",
    "record",
    "register_cubin",
    "register_ptx",
    "reset_peak_memory",
]


def installed() -> bool:
    """Whether this process has an emulated GPU."""
    return libraries.core is not None


def install(
    capability: int | None = None,
    *,
    devices: int | None = None,
    poison: bool = True,
    capacity: int | None = None,
    aten: bool = True,
    triton: bool = True,
    **settings: Any,
) -> None:
    """Make this process see an emulated GPU of a compute capability: 80, 90.

    poison: fill new memory with NaN. capacity: bytes of memory. aten=False leaves torch's own
    operators alone (their kernels then raise). settings: as for ``checks``. Raises
    EmulatedGPUError if torch is no build for CUDA 13, or has been imported already.
    """
    options.update(settings)
    if not libraries.load(capability, poison, capacity, devices):
        return
    launch.start()
    import torch

    cuda = torch.version.cuda
    if cuda is None or not cuda.startswith("13."):
        build = f"a build for CUDA {cuda}" if cuda else "no CUDA build"
        raise EmulatedGPUError(f"torch {torch.__version__} is {build}; wanted one for CUDA 13")
    if not torch.cuda.is_available():
        raise EmulatedGPUError("torch does not see the emulated GPU")
    torch.cuda.init()
    if aten:
        from . import dispatch

        dispatch.install()
    if triton:
        from . import triton_patch

        triton_patch.install()


@contextlib.contextmanager
def checks(**settings: Any) -> Iterator[None]:
    """Options for a block: racecheck, initcheck ("record", "raise"), schedule, max_issues, ..."""
    old = dict(options)
    options.update(settings)
    try:
        yield
    finally:
        options.update(old)


@contextlib.contextmanager
def record() -> Iterator[list[dict[str, Any]]]:
    """Collect the launches of a block: dicts of kernel, grid, block, smem, report, seconds, ..."""
    collected: list[dict[str, Any]] = []
    hook = collected.append
    hooks.append(hook)
    try:
        yield collected
    finally:
        hooks.remove(hook)


@contextlib.contextmanager
def exact_errors() -> Iterator[None]:
    """Raise the emulator's own exception.

    Also where C++ turned it into a RuntimeError, and where nobody looked at the error.
    """
    try:
        yield
    except Exception as error:
        seen = libraries.core.emuSurfaced()
        own = clear()
        ours = not seen or "[emulated GPU]" in str(error)
        if own is not None and own is not error and ours:
            raise own from error
        raise
    seen = libraries.core.emuSurfaced()
    own = clear()
    if own is not None and not seen:
        raise own


def memory_allocated() -> int:
    """Bytes of all live tensors' storages."""
    return libraries.core.emuLiveBytes()


def max_memory_allocated() -> int:
    """The most of them since ``reset_peak_memory``."""
    return libraries.core.emuPeakBytes()


def reset_peak_memory() -> None:
    """Begin anew with ``max_memory_allocated``."""
    libraries.core.emuResetPeak()


def preload() -> str:
    """LD_PRELOAD value for processes that cannot import emugpu first."""
    return " ".join(map(str, build()))
