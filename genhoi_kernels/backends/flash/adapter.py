"""What every FlashAttention looks like to the flash backend."""

from __future__ import annotations

import enum
from typing import Protocol

import torch
from torch import Tensor

INTERPRETER = "interpreter"
"""The architecture of Triton's interpreter, in which stand-ins take any call."""


class Generation(enum.IntEnum):
    """Which FlashAttention it is, for entries of ``preferences``; 0 there means none of them."""

    FLASH_2 = 2
    FLASH_3 = 3
    FLASH_4 = 4
    TORCH_FLASH = 20
    """FlashAttention 2 as torch compiled it."""
    TORCH_CUDNN = 90
    """cuDNN's attention, by way of torch."""


class FlashAttention(Protocol):
    """Two calls over ``[B, tokens, H, D]`` tensors, without dropout and without a mask.

    generation: which one it is. package: its name in words. row_multiple: counts of rows that
    differ from call to call are best rounded up to it.
    """

    @property
    def generation(self) -> Generation: ...

    @property
    def package(self) -> str: ...

    @property
    def row_multiple(self) -> int: ...

    def refuses(self, arch: str, dtype: torch.dtype, head_dim: int, needs_grad: bool) -> str | None:
        """Say why it can't take such a call on such a GPU, or None."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Give the output of q over k and v, and its log-sum-exp (natural), ``[B, H, rows]``."""

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give dq, dk and dv.

        out and lse need not be of these keys alone: probabilities are exp(S - lse), and delta is
        the row sum of dout times out.
        """
