"""The numbers of one attention case, in every layout that some peer is fastest with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import Case
from benchmarks.memory import available_bytes
from genhoi_kernels.tune.problem import HeldForward, Problem

__all__ = ["Context", "Pair", "autograd_pair"]

_MOST_MEMORY = 0.4  # of what is free, for one peer


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


class Context(Problem):
    """A case's problem in every layout that a peer is fastest with, and why a peer can't run."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.shape, case.dtype, case.direction, case.device)
        self.reason = ""

    def refuse(self, reason: str) -> Pair | None:
        """Keep the reason why a peer cannot run, and return None for it."""
        self.reason = reason
        return None

    def has_room(self, wanted: float) -> bool:
        """Say whether so many bytes are free; if not, that is kept as the reason."""
        free = available_bytes(self.device)
        if wanted <= _MOST_MEMORY * free:
            return True
        self.refuse(
            f"needs about {wanted / 2**30:.1f} GiB, more than {_MOST_MEMORY:.0%} of the "
            f"{free / 2**30:.1f} GiB that are free"
        )
        return False

    @functools.cached_property
    def heads_first(self) -> list[Tensor]:
        """Give q, k, v, k_ref, v_ref as ``[1, H, tokens, D]``."""
        return [_leaf(x.transpose(1, 2), x) for x in self.inputs]

    @functools.cached_property
    def joined(self) -> list[Tensor]:
        """Give q, and k and v with the reference's behind the video's: ``[1, tokens, H, D]``."""
        pairs = ((self.k, self.k_ref), (self.v, self.v_ref))
        return [self.q, *(_leaf(torch.cat(pair, 1), pair[0]) for pair in pairs)]

    @functools.cached_property
    def joined_heads_first(self) -> list[Tensor]:
        """Give the tensors of `joined` as ``[1, H, tokens, D]``."""
        return [_leaf(x.transpose(1, 2), x) for x in self.joined]

    @functools.cached_property
    def additive_mask(self) -> Tensor:
        """Build ``[N, N + M]`` in the case's dtype: 0 where the row sees the key, else -inf."""
        n, m = self.shape.n, self.shape.m
        bias = torch.zeros(n, n + m, dtype=self.dtype, device=self.device)
        bias[:, n:].masked_fill_(~self.mask[0, :, None], -math.inf)
        return bias


def _leaf(x: Tensor, like: Tensor) -> Tensor:
    return x.detach().contiguous().requires_grad_(like.requires_grad)


def autograd_pair(
    call: Callable[[], Any],
    leaves: Sequence[Tensor],
    *,
    beside: Sequence[Tensor] = (),
    heads_first: bool = True,
    kernel: str = "",
) -> Pair:
    """Make the pair of a call that autograd differentiates."""
    held = HeldForward(call)

    @torch.no_grad()
    def forward() -> Tensor:
        out: Tensor = call()
        return out

    def backward(upstream: Tensor) -> Sequence[Tensor]:
        with held.turn() as out:
            return torch.autograd.grad(out, list(leaves), upstream, retain_graph=True)

    return Pair(
        forward,
        backward,
        beside=tuple(beside),
        heads_first=heads_first,
        kernel=kernel,
        turn=held.turn,
    )
