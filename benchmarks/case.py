"""What a suite hands to the runner: a case, and the contenders of its workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from genhoi_kernels.tune.accuracy import Results, Truth
from genhoi_kernels.tune.problem import Direction
from genhoi_kernels.tune.shapes import Shape

__all__ = ["Case", "Contender", "Workload"]


@dataclass
class Contender:
    """One way to compute the workload.

    Attributes:
        name: in tables.
        run: the timed call; None if it can't run.
        results: runs it once, and gives what `truth` is about.
        truth: what the results should be; computed when asked for.
        reason: why it can't run.
        lossy: gives up accuracy by design, so it is held to 5 % only.
        beside: bytes of tensors that it needs beside the inputs, made outside the clock.
        kernel: which kernel of a library ran, where that is known.
        turn: what holds while it is checked or timed, entered and left outside the clock: the
            forward pass of a backward one, whose memory is then the next contender's.
    """

    name: str
    run: Callable[[], Any] | None = None
    results: Callable[[], Results] | None = None
    truth: Callable[[], Truth] | None = None
    reason: str = ""
    lossy: bool = False
    beside: int = 0
    kernel: str = ""
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Workload:
    """Contenders over the same numbers.

    Attributes:
        op: name of the contender of this project that ratios refer to.
        strongest: name of the strongest peer.
        flops: useful operations of one call.
        moved: bytes that have to be read or written at least.
        contenders: the ones of this project first.
        fallback: name of the peer that stands for the strongest one where that can't run.
    """

    op: str
    strongest: str
    flops: float
    moved: float
    contenders: list[Contender] = field(default_factory=list)
    fallback: str = ""


@dataclass(frozen=True)
class Case:
    """One measurement: a suite's workload at one shape.

    Attributes:
        suite, shape, dtype, direction, device: what it says.
        threads: of torch on a CPU.
        peers: names to run, None for all the workload has.
        steps: denoising steps of the suite `block`.
        build: makes the workload.
        backends: of the op, None for all that are usable on the device.
    """

    suite: str
    shape: Shape
    dtype: torch.dtype
    direction: Direction
    device: torch.device
    threads: int
    peers: Sequence[str] | None
    build: Callable[[Case], Workload]
    steps: int = 1
    backends: Sequence[str] | None = None

    @property
    def dtype_name(self) -> str:
        """Give the dtype's name without "torch."."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def title(self) -> str:
        """Give the title of the case's table."""
        return f"{self.suite}, {self.direction}, {self.dtype_name}; {self.shape.describe()}"
