"""An emulated GPU for PyTorch: custom CUDA and Triton kernels run through their real launch path on a machine without a GPU.

import emugpu
emugpu.install(cc=80)                # before torch is imported
import torch
torch.ops.my.op(torch.randn(64, device='cuda'))
"""

import contextlib
import os
import sys

from . import runtime
from .ptxemu import Deadlock, EmuError, Misaligned, OutOfBounds, RaceError, UninitError, Unsupported
from .runtime import (
    EmulatedGPUError,
    LaunchError,
    NotEmulated,
    check,
    clear,
    hooks,
    launches,
    options,
    pending,
    register_cubin,
    register_ptx,
)

_installed = False


def install(cc=None, *, devices=None, poison=True, capacity=None, aten=True, triton=True, **opts):
    """Make this process see one emulated GPU. aten=False leaves torch's own operators alone (their kernels then raise)."""
    global _installed
    options.update(opts)
    if _installed:
        return
    runtime.load(cc, poison, capacity, devices)
    _installed = True
    import torch

    if not torch.cuda.is_available():
        raise EmulatedGPUError("torch has no CUDA build")
    torch.cuda.init()
    if aten:
        from . import dispatch

        dispatch.install()
    if triton:
        from . import triton_patch

        triton_patch.install()


@contextlib.contextmanager
def checks(**kw):
    """Emulator options for a block: racecheck, initcheck ('record' or 'raise'), schedule, max_issues, eager_wgmma."""
    old = dict(options)
    options.update(kw)
    try:
        yield
    finally:
        options.update(old)


@contextlib.contextmanager
def record():
    """Collect the launches of a block: dicts of kernel, grid, block, smem, report, seconds."""
    got = []
    hooks.append(got.append)
    try:
        yield got
    finally:
        hooks.remove(got.append)


@contextlib.contextmanager
def exact_errors():
    """Re-raise the emulator's own exception where C++ turned it into a RuntimeError, or raise it where nobody looked at the error."""
    try:
        yield
    except Exception as e:
        seen = runtime.core.emuSurfaced()
        p = clear()
        if p is not None and p is not e and (not seen or "[emulated GPU]" in str(e)):
            raise p from e
        raise
    seen = runtime.core.emuSurfaced()
    p = clear()
    if p is not None and not seen:
        raise p


def memory_allocated():
    return runtime.core.emuLiveBytes()


def max_memory_allocated():
    return runtime.core.emuPeakBytes()


def reset_peak_memory():
    runtime.core.emuResetPeak()


def preload():
    """LD_PRELOAD value for processes that cannot import emugpu first."""
    from .build import build

    return " ".join(map(str, build()))
