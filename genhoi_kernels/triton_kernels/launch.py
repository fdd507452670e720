"""A kernel's launch as data, so that it can be run, or compiled ahead of time for another GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .configs import Config


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
        device = next(x.device for x in self.arguments.values() if isinstance(x, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.compile_options())

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


@functools.lru_cache(maxsize=64)
def host_integers(values: Sequence[int], device: torch.device) -> Tensor:
    """A few integers in the device's memory, copied once: no launch waits for the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.int32).to(device)
