"""Measures how much memory a call takes beyond what was held before, and how much is free."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["available_bytes", "peak_extra_bytes"]

_STATUS = Path("/proc/self/status")


def available_bytes(device: torch.device) -> float:
    """Return the bytes that can still be allocated; infinite where the system can't say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + max(0, cached))
    try:
        return _kibibytes(Path("/proc/meminfo"), "MemAvailable") * 1024.0
    except OSError:
        return float("inf")


def peak_extra_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Measure a call's peak of memory over what was held before, its results included.

    On a CPU this is the resident set, so it also sees what C++ allocates; scratch memory that a
    backend keeps between calls is not counted again. None where Linux can't say.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    try:
        _trim_heap()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        held = _kibibytes(_STATUS, "VmRSS")
        call()
        return max(0, _kibibytes(_STATUS, "VmHWM") - held) * 1024
    except OSError:
        return None


def _trim_heap() -> None:
    """Hand freed memory back to the system: pages used again would not raise the peak."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _kibibytes(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{path} has no {name}")
