"""Holds results to float64: nothing is timed before it gave the right numbers.

The bound is the error budget of CONTRIBUTING.md: with e the plain PyTorch result in the same dtype
and t the one in float64, max|x - t| <= 2 max|e - t| + 2 eps(dtype) max|t|. Large shapes are checked
on a part of their rows and heads, which ``Truth.words`` names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genhoi_kernels.flow_gate import GateWeights
from genhoi_kernels.functional import apply_rope, reference_attention
from genhoi_kernels.rope import VideoRope
from genhoi_kernels.tune.problem import Problem

Results = dict[str, Tensor]

_ALL_ROWS = 256
_SOME_ROWS = 64
_MANY = 1 << 27  # values of k from which only some heads are checked
_SOME_HEADS = 2
LOSSY = 0.05
"""The error allowed to what gives up accuracy by design."""


@dataclass(frozen=True)
class Truth:
    """What results are held to.

    exact: the results in float64. eager: the same computed plainly in the call's dtype, which says
    what the dtype can do. words: which part of the results this is.
    """

    exact: Results
    eager: Results
    words: str


@dataclass(frozen=True)
class Part:
    """The rows and heads of an attention output that are checked."""

    rows: Tensor
    heads: Tensor
    description: str

    def of(self, x: Tensor) -> Tensor:
        """Select rows and heads of x ``[1, N, H, D]``."""
        return x.index_select(1, self.rows).index_select(2, self.heads)


@dataclass(frozen=True)
class Accuracy:
    """The largest error and what was allowed, both relative to the largest true value.

    Of several tensors (gradients) it is the one that came closest to its bound.
    """

    error: float
    allowed: float

    @property
    def good(self) -> bool:
        """Say whether the error is within the bound; NaN is not."""
        return self.error <= self.allowed


def choose_part(problem: Problem) -> Part:
    """Choose all of a small problem; of a large one rows on both sides of the mask, some heads."""
    n, heads = problem.shape.n, problem.shape.heads
    rows = torch.arange(n)
    if n > _ALL_ROWS:
        mask = problem.mask[0].cpu()
        halves = [mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]]
        rows = torch.cat([_spaced(half, _SOME_ROWS // 2) for half in halves]).sort().values
    chosen = torch.arange(heads)
    if problem.k.numel() > _MANY:
        chosen = _spaced(chosen, _SOME_HEADS)
    description = f"{len(rows)} of {n} rows, {len(chosen)} of {heads} heads"
    return Part(rows.to(problem.device), chosen.to(problem.device), description)


def _spaced(indices: Tensor, count: int) -> Tensor:
    """Pick `count` of the indices, evenly spaced, both ends included."""
    if len(indices) <= count:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, count).round().long()]


def spread_upstream(problem: Problem, part: Part) -> Tensor:
    """Give a check's upstream gradient: zero outside the part, so that the part decides all."""
    kept = torch.zeros_like(problem.upstream)
    kept[:, part.rows] = problem.upstream[:, part.rows]
    return kept


def attention_truth(
    problem: Problem,
    part: Part,
    *,
    masked: bool,
    rope: VideoRope | None = None,
    gate: GateWeights | None = None,
) -> Truth:
    """Compute a part by the eager backend, in float64 and in the problem's dtype.

    Args:
        problem: the numbers.
        part: whose rows and heads are wanted.
        masked: the mask holds; else every row sees the reference.
        rope: rotation of q and k, if they come without.
        gate: token gate, if there is one.

    Returns:
        out, and for a backward case dq, dk, dv (the reference's behind the video's) for the
        gradient that `spread_upstream` makes.
    """

    def run(dtype: torch.dtype) -> Results:
        # Heads first: all of a large case in float64 would be four times its size.
        q, k, v, k_ref, v_ref = (
            x.detach().index_select(2, part.heads).to(dtype) for x in problem.inputs
        )
        if rope is not None:
            q, k = (apply_rope(x, rope, backend="eager") for x in (q, k))
        leaves = [q.index_select(1, part.rows), k, v, k_ref, v_ref]
        for x in leaves:
            x.requires_grad_(problem.direction == "backward")
        options: dict[str, Any] = {"mask": problem.mask[:, part.rows]} if masked else {}
        if gate is not None:
            options["gate"] = GateWeights(*(w.to(dtype) for w in gate))
        out = reference_attention(*leaves, backend="eager", **options)
        assert isinstance(out, Tensor)
        if problem.direction == "forward":
            return {"out": out}
        grads = torch.autograd.grad(out, leaves, part.of(problem.upstream).to(dtype))
        return joined_gradients(grads)

    return Truth(run(torch.float64), run(problem.dtype), part.description)


def joined_gradients(grads: Sequence[Tensor]) -> Results:
    """Name dq, dk and dv; the reference's gradients go behind the video's."""
    if len(grads) == 5:
        dq, dk, dv, dk_ref, dv_ref = grads
        grads = dq, torch.cat([dk, dk_ref], 1), torch.cat([dv, dv_ref], 1)
    return dict(zip(("dq", "dk", "dv"), grads, strict=True))


def gradients_of_part(grads: Sequence[Tensor], part: Part) -> Results:
    """Reduce gradients ``[1, tokens, H, D]`` to what ``attention_truth`` gives."""
    results = joined_gradients(grads)
    heads = {name: results[name].index_select(2, part.heads) for name in ("dk", "dv")}
    return {"dq": part.of(results["dq"]), **heads}


def compare(results: Results, truth: Truth, *, lossy: bool = False) -> Accuracy:
    """Give the accuracy of the result that comes closest to its bound."""
    worst: Accuracy | None = None
    for name, exact in truth.exact.items():
        accuracy = _accuracy(results[name], truth.eager[name], exact, lossy)
        closeness = accuracy.error / accuracy.allowed
        if worst is None or not closeness <= worst.error / worst.allowed:
            worst = accuracy
    assert worst is not None
    return worst


def error_budget(eager: float, dtype: torch.dtype) -> float:
    """Give the error allowed where eager's is ``eager``, both relative to the largest value."""
    return 2 * eager + 2 * torch.finfo(dtype).eps


def _accuracy(x: Tensor, e: Tensor, t: Tensor, lossy: bool) -> Accuracy:
    if x.shape != t.shape:
        raise ValueError(f"result: got shape {tuple(x.shape)}, wanted {tuple(t.shape)}")
    size = float(t.abs().max()) or 1.0
    error = float((x.to(t.dtype) - t).abs().max()) / size
    eager = float((e.to(t.dtype) - t).abs().max()) / size
    allowed = LOSSY if lossy else error_budget(eager, e.dtype)
    return Accuracy(error, allowed)
