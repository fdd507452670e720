"""Nothing is timed before it gave the right numbers: results against float64.

The bound is the error budget of CONTRIBUTING.md: with e the plain PyTorch result in the same dtype
and t the one in float64, max|x - t| <= 2 max|e - t| + 2 eps(dtype) max|t|. Large shapes are checked
on a part of their rows and heads, which `Truth.words` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Contender, Results, Truth
from benchmarks.context import Context
from genhoi_kernels import GateWeights, VideoRope, apply_rope, reference_attention

__all__ = [
    "Accuracy",
    "Part",
    "attention_truth",
    "choose_part",
    "compare",
    "error_budget",
    "joined_gradients",
    "spread_upstream",
]

_ALL_ROWS = 256
_SOME_ROWS = 64
_MANY = 1 << 27  # values of k from which only some heads are checked
_SOME_HEADS = 2
LOSSY = 0.05


@dataclass(frozen=True)
class Part:
    """The rows and heads of an attention output that are checked."""

    rows: Tensor
    heads: Tensor
    words: str

    def of(self, x: Tensor) -> Tensor:
        """Rows and heads of x ``[1, N, H, D]``."""
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
        """Within the bound; False for NaN too."""
        return self.error <= self.allowed


def choose_part(ctx: Context) -> Part:
    """All of a small case; of a large one rows inside and outside the mask, and some heads."""
    n, heads = ctx.shape.n, ctx.shape.heads
    rows = torch.arange(n)
    if n > _ALL_ROWS:
        mask = ctx.mask[0].cpu()
        halves = [mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]]
        rows = torch.cat([_spaced(half, _SOME_ROWS // 2) for half in halves]).sort().values
    chosen = torch.arange(heads)
    if ctx.k.numel() > _MANY:
        chosen = _spaced(chosen, _SOME_HEADS)
    words = f"{len(rows)} of {n} rows, {len(chosen)} of {heads} heads"
    return Part(rows.to(ctx.device), chosen.to(ctx.device), words)


def _spaced(indices: Tensor, count: int) -> Tensor:
    """`count` of the indices, evenly spaced, both ends included."""
    if len(indices) <= count:
        return indices
    return indices[torch.linspace(0, len(indices) - 1, count).round().long()]


def spread_upstream(ctx: Context, part: Part) -> Tensor:
    """The upstream gradient of a check: zero outside the part, so that the part decides all."""
    kept = torch.zeros_like(ctx.upstream)
    kept[:, part.rows] = ctx.upstream[:, part.rows]
    return kept


def attention_truth(
    ctx: Context,
    part: Part,
    *,
    masked: bool,
    rope: VideoRope | None = None,
    gate: GateWeights | None = None,
) -> Truth:
    """What the eager backend gives for a part, in float64 and in the case's dtype.

    Args:
        ctx: the numbers.
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
            x.detach().index_select(2, part.heads).to(dtype) for x in ctx.inputs
        )
        if rope is not None:
            q, k = (apply_rope(x, rope, backend="eager") for x in (q, k))
        leaves = [q.index_select(1, part.rows), k, v, k_ref, v_ref]
        for x in leaves:
            x.requires_grad_(ctx.direction == "backward")
        options: dict[str, Any] = {"mask": ctx.mask[:, part.rows]} if masked else {}
        if gate is not None:
            options["gate"] = GateWeights(*(w.to(dtype) for w in gate))
        out = reference_attention(*leaves, backend="eager", **options)
        assert isinstance(out, Tensor)
        if ctx.direction == "forward":
            return {"out": out}
        grads = torch.autograd.grad(out, leaves, part.of(ctx.upstream).to(dtype))
        return joined_gradients(grads)

    return Truth(run(torch.float64), run(ctx.dtype), part.words)


def joined_gradients(grads: Any) -> Results:
    """dq, dk and dv by name; the reference's gradients go behind the video's."""
    if len(grads) == 5:
        dq, dk, dv, dk_ref, dv_ref = grads
        grads = dq, torch.cat([dk, dk_ref], 1), torch.cat([dv, dv_ref], 1)
    return dict(zip(("dq", "dk", "dv"), grads, strict=True))


def compare(contender: Contender) -> Accuracy:
    """Run a contender once and hold its results to its truth."""
    assert contender.results is not None and contender.truth is not None
    wanted = contender.truth()
    with contender.turn():
        found = contender.results()
    worst: Accuracy | None = None
    for name, t in wanted.exact.items():
        accuracy = _accuracy(found[name], wanted.eager[name], t, contender.lossy)
        closeness = accuracy.error / accuracy.allowed
        if worst is None or not closeness <= worst.error / worst.allowed:
            worst = accuracy
    assert worst is not None
    return worst


def error_budget(eager: float, dtype: torch.dtype) -> float:
    """The error that is allowed where eager's is `eager`, both relative to the largest value."""
    return 2 * eager + 2 * torch.finfo(dtype).eps


def _accuracy(x: Tensor, e: Tensor, t: Tensor, lossy: bool) -> Accuracy:
    if x.shape != t.shape:
        raise ValueError(f"result: got shape {tuple(x.shape)}, wanted {tuple(t.shape)}")
    size = float(t.abs().max()) or 1.0
    error = float((x.to(t.dtype) - t).abs().max()) / size
    eager = float((e.to(t.dtype) - t).abs().max()) / size
    allowed = LOSSY if lossy else error_budget(eager, e.dtype)
    return Accuracy(error, allowed)
