"""Random numbers for one attention call of a shape, and the op's passes over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from genhoi_kernels.functional import reference_attention
from genhoi_kernels.mask_gate import MaskGate
from genhoi_kernels.tune.shapes import Shape

Direction = Literal["forward", "backward"]

_T = TypeVar("_T")


def draw_normal(
    size: Sequence[int], draw: torch.Generator, dtype: torch.dtype, *, mean: float = 0.0
) -> Tensor:
    """Draw normal numbers of deviation 1, where the generator is and in the dtype wanted."""
    return torch.empty(size, dtype=dtype, device=draw.device).normal_(mean, generator=draw)


class Problem:
    """Random queries, keys and values; keys and queries stand for rotated ones.

    q, k, v and upstream are ``[1, N, H, D]``, k_ref and v_ref ``[1, M, H, D]``, mask is ``[1, N]``
    bool. The tensors require gradients if the direction is "backward".
    """

    def __init__(
        self, shape: Shape, dtype: torch.dtype, direction: Direction, device: torch.device
    ) -> None:
        self.shape, self.dtype, self.direction, self.device = shape, dtype, direction, device
        draw = torch.Generator(device).manual_seed(0)

        def normal(tokens: int) -> Tensor:
            x = draw_normal((1, tokens, shape.heads, shape.head_dim), draw, dtype)
            return x.requires_grad_(direction == "backward")

        self.q, self.k, self.v = (normal(shape.n) for _ in range(3))
        self.k_ref, self.v_ref = normal(shape.m), normal(shape.m)
        self.mask = shape.mask().to(device)
        self.upstream = normal(shape.n).detach()

    @property
    def inputs(self) -> list[Tensor]:
        """Give q, k, v, k_ref and v_ref."""
        return [self.q, self.k, self.v, self.k_ref, self.v_ref]


class HeldForward(Generic[_T]):
    """A forward pass with its graph, held for as long as a turn lasts."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self._held: list[_T] = []

    @contextmanager
    def turn(self) -> Iterator[_T]:
        """Give its result: an outer turn's, else one made here and let go of at the end."""
        if self._held:
            yield self._held[0]
            return
        with torch.enable_grad():
            self._held.append(self._call())
        try:
            yield self._held[0]
        finally:
            self._held.clear()


class Contestant:
    """The op on one backend: a pass of a problem's direction, to be checked and timed.

    A backward pass's forward pass is made outside the clock, and held while a turn lasts.
    """

    def __init__(self, problem: Problem, backend: str) -> None:
        self._problem, self._backend = problem, backend
        self._gate = MaskGate.build(problem.mask)
        self._held = HeldForward(self._call)

    def _call(self) -> Tensor:
        out = reference_attention(*self._problem.inputs, mask=self._gate, backend=self._backend)
        assert isinstance(out, Tensor)
        return out

    def turn(self) -> AbstractContextManager[Any]:
        """Hold what a pass needs, entered and left outside the clock."""
        return nullcontext() if self._problem.direction == "forward" else self._held.turn()

    def run(self) -> None:
        """Run the pass that is timed."""
        if self._problem.direction == "forward":
            self.forward()
        else:
            self.gradients(self._problem.upstream)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Run the forward pass alone."""
        return self._call()

    def gradients(self, upstream: Tensor) -> tuple[Tensor, ...]:
        """Run the backward pass: gradients of the problem's inputs."""
        with self._held.turn() as out:
            return torch.autograd.grad(out, self._problem.inputs, upstream, retain_graph=True)
