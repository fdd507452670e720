"""A kernel's launch as data, so that it can be run, or compiled ahead of time for another GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels.backends.triton.tuning.configs import Config


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel.

    kernel: the function that ``triton.jit`` returned. grid: programs along each axis.
    arguments: tensors, numbers and None, by name. constants: the compile-time arguments.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    config: Config
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Start the kernel on its tensors' device and stream; nothing if the grid is empty."""
        if 0 in self.grid:
            return
        device = self.device()
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.compile_options())

    def device(self) -> torch.device:
        """The tensors' device."""
        return next(x.device for x in self.arguments.values() if isinstance(x, Tensor))

    def compile_options(self) -> dict[str, Any]:
        """What the compiler is told besides the constants."""
        return {
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
            "enable_fp_fusion": True,
            **self.options,
        }


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int, *, at_least: int = 16) -> int:
    """The next power of two from n on."""
    return max(at_least, 1 << (n - 1).bit_length())


def strides(name: str, x: Tensor | None) -> dict[str, int]:
    """Strides of ``[B or 1, tokens, H, D]`` as a kernel's arguments; a batch of 1 repeats."""
    if x is None:
        return {f"{name}_b": 0, f"{name}_n": 0, f"{name}_h": 0}
    batch = 0 if x.shape[0] == 1 else x.stride(0)
    return {f"{name}_b": batch, f"{name}_n": x.stride(1), f"{name}_h": x.stride(2)}


_TMA_ALIGNMENT = 16  # bytes, of a tensor's start and of its strides


def has_descriptor(x: Tensor) -> bool:
    """Whether a tensor descriptor can describe x ``[B, tokens, H, D]``."""
    steps = (x.stride(i) * x.element_size() for i in range(3) if x.shape[i] > 1)
    aligned = x.is_meta or x.data_ptr() % _TMA_ALIGNMENT == 0
    return x.numel() > 0 and aligned and all(s > 0 and s % _TMA_ALIGNMENT == 0 for s in steps)


def descriptor(x: Tensor, block: tuple[int, int]) -> Any:
    """Triton's tensor descriptor of x as ``[B, H, tokens, D]``, its blocks of one head."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    by_head = x.transpose(1, 2)
    # The stride of a dimension of size 1 may be anything, and matters to nobody but the driver.
    steps = [by_head.stride(i) if by_head.shape[i] > 1 else _TMA_ALIGNMENT for i in range(3)]
    return TensorDescriptor(x, list(by_head.shape), [*steps, 1], [1, 1, *block])
