"""What a compiled forward pass leaves to Python: the references, and the attention to them.

A program of torch.compile over a whole transformer must not depend on the reference, or every clip
would compile it again. It therefore holds two operators that look the attachment up when they run:
one brings the cached keys and values up to date before the first block, one attends to them. So
nothing is guarded but what the video's own shapes dictate, and keys and values are not copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from genhoi.models.wan.passes import VideoPass
from genhoi_kernels import GateWeights, VideoRope

__all__ = ["ProgramPass", "Registered", "is_exporting", "prepare_references"]


def is_exporting() -> bool:
    """Tell whether torch.export is tracing."""
    # Not torch.compiler.is_exporting(), which is True under torch.compile before torch 2.13.
    return torch.compiler._is_exporting_flag


class Owner(Protocol):
    """An attachment, as far as the operators ask."""

    reference_passes: int

    def current_passes(self, latents: Tensor) -> Sequence[VideoPass | None]:
        """Return every block's pass in a forward pass over latents, with the references' cache."""

    def observe(self, layer: int, q: Tensor, k: Tensor, current: VideoPass) -> None:
        """Show a block's q and k, rotated, to whoever watches it."""


_numbers = itertools.count()
_registered: WeakValueDictionary[int, Registered] = WeakValueDictionary()


class Registered:
    """An attachment under a number, by which programs find it as long as it lives.

    A copy, or what a file holds, is another attachment and gets a number of its own.

    Args:
        owner: the attachment.

    Attributes:
        number: int64 ``[]`` on the CPU. A tensor, so that a program made for one attachment serves
            the next one on the same transformer.
        passes: of the program that runs, one a block.
    """

    number: Tensor
    passes: Sequence[VideoPass | None]

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self._register()

    def __getstate__(self) -> dict[str, Any]:
        return {"owner": self.owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._register()

    def _register(self) -> None:
        number = next(_numbers)
        _registered[number] = self
        self.number, self.passes = torch.tensor(number, device="cpu"), []


@dataclass(frozen=True, eq=False)
class ProgramPass:
    """A `VideoPass` of a program, whose references are looked up when it runs.

    Args:
        rope: where the video's tokens are.
        ready: what ``genhoi::prepare_references`` returned.
        layer: the block's number, int64 ``[]`` on the CPU; a tensor, so that blocks share programs.
    """

    rope: VideoRope
    ready: Tensor
    layer: Tensor

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        gate: GateWeights | None,
        gate_reduction: str | None,
        backend: str | None,
    ) -> Tensor:
        """Attend as `VideoPass.attend` does."""
        weights = [] if gate is None else list(gate)
        out: Tensor = torch.ops.genhoi.attend_prepared(
            q, k, v, weights, gate_reduction, backend, self.ready, self.layer
        )
        return out


def prepare_references(latents: Tensor, registered: Registered) -> Tensor:
    """Let a program bring an attachment's references up to date; return `ProgramPass.ready`."""
    device = latents.device.type
    # Programs run with autocast off, what it does being part of them.
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    ready: Tensor = torch.ops.genhoi.prepare_references(latents, registered.number, autocast)
    return ready


# A recorded CUDA graph would skip what Python does here.
_TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op(
    "genhoi::prepare_references",
    mutates_args=(),
    schema="(Tensor latents, Tensor number, ScalarType? autocast) -> Tensor",
    tags=_TAGS,
)
def _prepare(latents: Tensor, number: Tensor, autocast: torch.dtype | None) -> Tensor:
    """Return ``[2]`` int64: the attachment's number, and how often its reference stream ran."""
    registered = _found(int(number))
    with torch.autocast(latents.device.type, autocast, enabled=autocast is not None):
        registered.passes = registered.owner.current_passes(latents)
    return torch.tensor([int(number), registered.owner.reference_passes], device="cpu")


@_prepare.register_fake
def _(latents: Tensor, number: Tensor, autocast: torch.dtype | None) -> Tensor:
    return number.new_empty(2)


@torch.library.custom_op(
    "genhoi::attend_prepared",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor[] gate, str? gate_reduction, str? backend, "
    "Tensor ready, Tensor layer) -> Tensor",
    tags=_TAGS,
)
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Sequence[Tensor],
    gate_reduction: str | None,
    backend: str | None,
    ready: Tensor,
    layer: Tensor,
) -> Tensor:
    number, passes = ready.tolist()
    registered = _found(number)
    if registered.owner.reference_passes != passes:
        raise RuntimeError(
            "transformer: got two forward passes in one program whose references differ, and the "
            "compiler mixed them up; wanted a program for each"
        )
    weights = GateWeights(*gate) if gate else None
    current = registered.passes[int(layer)]
    assert current is not None  # programs without gates and references don't attend in this way
    registered.owner.observe(int(layer), q, k, current)
    return current.attend(q, k, v, gate=weights, gate_reduction=gate_reduction, backend=backend)


@_attend.register_fake
def _(q: Tensor, *others: Any) -> Tensor:
    return q.new_empty(q.shape)


def _found(number: int) -> Registered:
    registered = _registered.get(number)
    if registered is None:
        raise RuntimeError(
            "transformer: got a compiled program of an adapter that is gone, wanted its attachment"
        )
    return registered
