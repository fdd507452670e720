"""The numbers of one attention case, in every layout that some peer is fastest with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.case import Case, Direction
from benchmarks.memory import available_bytes

__all__ = ["Context", "HeldForward", "Pair", "autograd_pair", "draw_normal"]

_MOST_MEMORY = 0.4  # of what is free, for one peer
_T = TypeVar("_T")


class Pair(NamedTuple):
    """How a peer computes attention.

    forward: without autograd. backward: gradients for an upstream one; None if it has none.
    beside: tensors it needs beside the inputs. heads_first: results are ``[1, H, tokens, D]``, else
    ``[1, tokens, H, D]``. The gradients are those of q, k and v with the reference's joined to the
    video's, or of q, k, v, k_ref and v_ref. kernel: which of a library's kernels runs, if known.
    turn: while it is entered, backward keeps to one forward pass, whose result it gives.
    """

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], Sequence[Tensor]] | None
    beside: tuple[Tensor, ...] = ()
    heads_first: bool = True
    kernel: str = ""
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext


def draw_normal(
    size: Sequence[int], draw: torch.Generator, dtype: torch.dtype, *, mean: float = 0.0
) -> Tensor:
    """Normal numbers of deviation 1, drawn where the generator is and in the dtype wanted."""
    return torch.empty(size, dtype=dtype, device=draw.device).normal_(mean, generator=draw)


class Context:
    """Random queries, keys and values of a case; keys and queries stand for rotated ones.

    q, k, v are ``[1, N, H, D]``, k_ref and v_ref ``[1, M, H, D]``, mask is ``[1, N]`` bool.
    """

    def __init__(self, case: Case) -> None:
        shape = case.shape
        self.shape, self.dtype, self.device = shape, case.dtype, case.device
        self.direction: Direction = case.direction
        self.reason = ""
        draw = torch.Generator(case.device).manual_seed(0)

        def normal(tokens: int) -> Tensor:
            x = draw_normal((1, tokens, shape.heads, shape.head_dim), draw, case.dtype)
            return x.requires_grad_(case.direction == "backward")

        self.q, self.k, self.v = (normal(shape.n) for _ in range(3))
        self.k_ref, self.v_ref = normal(shape.m), normal(shape.m)
        self.mask = shape.mask().to(case.device)
        self.upstream = normal(shape.n).detach()

    def refuse(self, reason: str) -> Pair | None:
        """What a peer returns when it can't run: None, with the reason kept."""
        self.reason = reason
        return None

    def has_room(self, wanted: float) -> bool:
        """Whether so many bytes are free; if not, that is the reason."""
        free = available_bytes(self.device)
        if wanted <= _MOST_MEMORY * free:
            return True
        self.refuse(
            f"needs about {wanted / 2**30:.1f} GiB, more than {_MOST_MEMORY:.0%} of the "
            f"{free / 2**30:.1f} GiB that are free"
        )
        return False

    @property
    def inputs(self) -> list[Tensor]:
        """q, k, v, k_ref, v_ref."""
        return [self.q, self.k, self.v, self.k_ref, self.v_ref]

    @functools.cached_property
    def heads_first(self) -> list[Tensor]:
        """The five inputs as ``[1, H, tokens, D]``."""
        return [_leaf(x.transpose(1, 2), x) for x in self.inputs]

    @functools.cached_property
    def joined(self) -> list[Tensor]:
        """q, and k and v with the reference's behind the video's: ``[1, tokens, H, D]``."""
        pairs = ((self.k, self.k_ref), (self.v, self.v_ref))
        return [self.q, *(_leaf(torch.cat(pair, 1), pair[0]) for pair in pairs)]

    @functools.cached_property
    def joined_heads_first(self) -> list[Tensor]:
        """`joined` as ``[1, H, tokens, D]``."""
        return [_leaf(x.transpose(1, 2), x) for x in self.joined]

    @functools.cached_property
    def additive_mask(self) -> Tensor:
        """``[N, N + M]`` in the case's dtype: 0 where the row sees the key, else -inf."""
        n, m = self.shape.n, self.shape.m
        bias = torch.zeros(n, n + m, dtype=self.dtype, device=self.device)
        bias[:, n:].masked_fill_(~self.mask[0, :, None], -math.inf)
        return bias


def _leaf(x: Tensor, like: Tensor) -> Tensor:
    return x.detach().contiguous().requires_grad_(like.requires_grad)


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


def autograd_pair(
    call: Callable[[], Any],
    leaves: Sequence[Tensor],
    *,
    beside: Sequence[Tensor] = (),
    heads_first: bool = True,
    kernel: str = "",
) -> Pair:
    """The pair of a call that autograd differentiates."""
    held = HeldForward(call)

    @torch.no_grad()
    def forward() -> Tensor:
        out: Tensor = call()
        return out

    def backward(upstream: Tensor) -> Sequence[Tensor]:
        with held.turn() as out:
            return torch.autograd.grad(out, list(leaves), upstream, retain_graph=True)

    return Pair(forward, backward, tuple(beside), heads_first, kernel, held.turn)
