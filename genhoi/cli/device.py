"""The device that `--device` names: one to compute on, or one to estimate for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genhoi.editing.gpus import GPU_NAMES, Gpu, find_gpu

if TYPE_CHECKING:
    import torch

__all__ = ["Target", "chosen_device", "dry_run_target"]


@dataclass(frozen=True)
class Target:
    """What a dry run estimates for.

    Args:
        name: for people.
        device: of this machine; None for a GPU by name.
        gpu: by name; None for a device of this machine.
    """

    name: str
    device: torch.device | None = None
    gpu: Gpu | None = None

    @property
    def memory_bytes(self) -> int:
        """Count the bytes of the GPU's memory, or of the machine's."""
        if self.gpu is not None:
            return self.gpu.memory_bytes
        assert self.device is not None
        return _memory(self.device)

    @property
    def is_cpu(self) -> bool:
        """Tell whether it is this machine's CPU."""
        return self.device is not None and self.device.type == "cpu"


def chosen_device(text: str | None) -> torch.device:
    """Say where to compute, after checking that torch can compute there.

    Args:
        text: cpu, cuda, cuda:1 and so on, or mps; None: cuda if there is a GPU, else cpu.

    Raises:
        ValueError: torch knows no such device, or this machine has none.

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    import torch

    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if find_gpu(text) is not None:
        raise ValueError(
            f"--device: got {text}, which serves --dry-run alone, want cpu, cuda, or one GPU such "
            f"as cuda:1"
        )
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(
            f"--device: got {text}, want cpu, cuda, or one GPU such as cuda:1; with --dry-run also "
            f"{', '.join(GPU_NAMES)}"
        )
    if device.type == "cuda":
        _check_gpu(text, device.index, torch.cuda.device_count() if _has_cuda() else 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device: got mps, but torch sees no Apple GPU here; leave it out")
    return device


def dry_run_target(text: str | None) -> Target:
    """Say what to estimate for: a GPU by name, which need not be here, or a device that is.

    Args:
        text: as for `chosen_device`, or a GPU of `genhoi.editing.gpus`.

    Raises:
        ValueError: as `chosen_device`.

    Example:
        >>> dry_run_target("h100").name
        'h100-80gb'
    """
    gpu = None if text is None else find_gpu(text)
    if gpu is not None:
        return Target(gpu.name, gpu=gpu)
    device = chosen_device(text)
    return Target(str(device), device=device)


def _memory(device: torch.device) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _check_gpu(text: str, index: int | None, gpus: int) -> None:
    if not gpus:
        raise ValueError(
            f"--device: got {text}, but torch sees no CUDA GPU here (genhoi doctor says why); "
            f"leave it out, or use --device cpu"
        )
    if index is not None and index >= gpus:
        raise ValueError(f"--device: got {text}, but torch sees {gpus} CUDA GPU(s), from cuda:0 on")
