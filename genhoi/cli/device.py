"""The device that `--device` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["chosen_device"]


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
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device: got {text}, want cpu, cuda, or one GPU such as cuda:1")
    if device.type == "cuda":
        _check_gpu(text, device.index, torch.cuda.device_count() if _has_cuda() else 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("--device: got mps, but torch sees no Apple GPU here; leave it out")
    return device


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
