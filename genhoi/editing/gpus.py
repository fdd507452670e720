"""GPUs by name, as published, for estimates of what would run on one that is not here."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GPUS", "GPU_NAMES", "Gpu", "find_gpu", "gpu_called"]


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker publishes it.

    Args:
        name: as `--device` takes it.
        title: as its driver calls it, or nearly.
        architecture: of its kernels.
        memory_bytes: of the card.
        peak: operations a second of dense bfloat16 products that add up in float32.
        bandwidth: of its memory, in bytes a second.
    """

    name: str
    title: str
    architecture: str
    memory_bytes: int
    peak: float
    bandwidth: float


def _gpu(
    name: str, title: str, architecture: str, gigabytes: int, tflops: float, terabytes: float
) -> Gpu:
    return Gpu(name, title, architecture, gigabytes * 10**9, tflops * 1e12, terabytes * 1e12)


# Data sheets of NVIDIA, and for the GeForce cards the white papers of their architectures. Where a
# sheet tells the rate with sparsity only, half of it.
GPUS = (
    _gpu("h100-80gb", "H100 80GB HBM3", "hopper", 80, 989.4, 3.35),
    _gpu("h100-pcie", "H100 PCIe", "hopper", 80, 756.0, 2.0),
    _gpu("h200", "H200", "hopper", 141, 989.4, 4.8),
    _gpu("b200", "B200", "blackwell", 180, 2250.0, 8.0),
    _gpu("a100-80gb", "A100-SXM4-80GB", "ampere", 80, 312.0, 2.039),
    _gpu("a100-40gb", "A100-SXM4-40GB", "ampere", 40, 312.0, 1.555),
    _gpu("a6000", "RTX A6000", "ampere", 48, 154.8, 0.768),
    _gpu("l40s", "L40S", "ada", 48, 362.0, 0.864),
    _gpu("rtx3090", "GeForce RTX 3090", "ampere", 24, 71.0, 0.936),
    _gpu("rtx4090", "GeForce RTX 4090", "ada", 24, 165.2, 1.008),
    _gpu("rtx5090", "GeForce RTX 5090", "blackwell", 32, 209.5, 1.792),
)
_ALIASES = {"h100": "h100-80gb", "a100": "a100-80gb"}
GPU_NAMES = (*(gpu.name for gpu in GPUS), *_ALIASES)
"""All that `find_gpu` knows."""


def find_gpu(name: str) -> Gpu | None:
    """Find a GPU of the table by the name that `--device` takes; None where there is none.

    Example:
        >>> find_gpu("h100").name
        'h100-80gb'
    """
    name = name.lower()
    return next((gpu for gpu in GPUS if gpu.name == _ALIASES.get(name, name)), None)


def gpu_called(title: str) -> Gpu | None:
    """Find a GPU of the table by what its driver calls it, such as "NVIDIA H200"."""
    words = title.replace("NVIDIA", "").strip()
    return next((gpu for gpu in GPUS if gpu.title == words), None)
