"""The suites `norm_rope` and `reference_frames`: RMS norm over all heads of q and k, and rotation.

The peer is PyTorch's calls, with the angles of every token made outside the clock. In the suite
`reference_frames` the first frame of the sequence turns per head, and the peer is the same op in
two passes: all tokens as a video's, then the first frame's as a reference's, copied over them.

Checked on some tokens only, for a gradient that is zero elsewhere: the last ones, or those around
the end of the first frame. Beside `norm_rope` the bare traffic is timed, as many bytes from and to
memory: q and k cloned, or in the backward pass each added to a gradient. How much of the machine's
bandwidth that reaches depends on caches and on the memory it is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import genhoi_kernels as gk
from benchmarks.bare_attention import op_backends, op_label
from benchmarks.case import Case, Contender, Workload
from benchmarks.torch_parts import cos_sin, rotate
from genhoi_kernels import HeadSlidingRope, ReferenceFramesRope, VideoRope, reference
from genhoi_kernels.tune.accuracy import Results, Truth
from genhoi_kernels.tune.problem import HeldForward, draw_normal

__all__ = ["PEER_LABELS", "TWO_PASSES", "build_norm_rope", "build_reference_frames"]

_EAGER, _TRAFFIC = PEER_LABELS = ("eager norm + RoPE", "bare traffic (clone; add)")
TWO_PASSES = "this op in two passes and a copy"
EPS = 1e-6
_CHECKED = 512
Both = tuple[Tensor, Tensor]
Call = Callable[[], Both]


class _Inputs:
    """q and k ``[1, N, H*D]``, their weights ``[H*D]``, an upstream gradient of both results."""

    def __init__(self, case: Case, rope: VideoRope | ReferenceFramesRope) -> None:
        shape = case.shape
        self.case, self.width, self.rope = case, shape.heads * shape.head_dim, rope
        draw = torch.Generator(case.device).manual_seed(0)
        wanted = case.direction == "backward"

        def normal(*size: int, mean: float = 0.0) -> Tensor:
            return draw_normal(size, draw, case.dtype, mean=mean).requires_grad_(wanted)

        self.q, self.k = (normal(1, shape.n, self.width) for _ in range(2))
        self.weights = [normal(self.width, mean=1.0) for _ in range(2)]
        self.upstream = normal(2, shape.n, shape.heads, shape.head_dim).detach()
        checked = min(shape.n, _CHECKED)
        middle = shape.grid[1] * shape.grid[2] if isinstance(rope, ReferenceFramesRope) else shape.n
        first = min(max(middle - checked // 2, 0), shape.n - checked)
        self.checked = slice(first, first + checked)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.q, self.k, *self.weights]


def build_norm_rope(case: Case) -> Workload:
    """Build the contenders: the op on every usable backend, and eager norm + RoPE."""
    given = _Inputs(case, VideoRope(case.shape.grid, head_dim=case.shape.head_dim))
    work = _workload(given, {_EAGER: _eager(given)})
    work.contenders.append(_traffic(given))
    return work


def build_reference_frames(case: Case) -> Workload:
    """Build the contenders: the op in one pass on every usable backend, and in two."""
    shape = case.shape
    rope = ReferenceFramesRope(
        shape.grid, (0,), head_dim=shape.head_dim, num_heads=shape.heads, schedule="release"
    )
    given = _Inputs(case, rope)
    backend = op_backends(case.device, case.backends)[0]
    return _workload(given, {TWO_PASSES: _two_passes(given, backend)})


def _workload(given: _Inputs, peers: dict[str, Call]) -> Workload:
    """Make the workload of the op on every usable backend and its peers, the strongest first."""
    case = given.case
    names = op_backends(case.device, case.backends)
    truth = functools.cache(functools.partial(_truth, given))
    values = case.shape.n * given.width * case.dtype.itemsize
    moved = 2 * values * (2 if case.direction == "forward" else 3)
    work = Workload(op_label(names[0]), next(iter(peers)), 0.0, moved)
    for label, call in ({op_label(name): _op(given, name) for name in names} | peers).items():
        work.contenders.append(_contender(label, given, call, truth))
    return work


def _traffic(given: _Inputs) -> Contender:
    forward = given.case.direction == "forward"
    grads = given.upstream.flatten(-2).split(1)

    def results(dtype: torch.dtype = given.case.dtype) -> Results:
        q, k, dq, dk = (x.detach().to(dtype) for x in (given.q, given.k, *grads))
        return {"q": q.clone(), "k": k.clone()} if forward else {"q": q + dq, "k": k + dk}

    return Contender(
        _TRAFFIC, results, results, lambda: Truth(results(torch.float64), results(), "all")
    )


def _op(given: _Inputs, backend: str) -> Call:
    def call() -> Both:
        q_weight, k_weight = given.weights
        return gk.qk_norm_rope(
            given.q, given.k, q_weight, k_weight, given.rope, eps=EPS, backend=backend
        )

    return call


def _two_passes(given: _Inputs, backend: str) -> Call:
    """Rotate all tokens as a video's, then the first frame's anew, and copy those over."""
    frames, h, w = given.case.shape.grid
    head_dim, heads = given.case.shape.head_dim, given.case.shape.heads
    rows, options = slice(h * w), {"eps": EPS, "backend": backend}
    video = VideoRope(given.rope.grid, head_dim=head_dim)
    reference_rope = HeadSlidingRope(
        (frames, h, w), ((h, w),), head_dim=head_dim, num_heads=heads, schedule="release"
    )

    def call() -> Both:
        both = gk.qk_norm_rope(given.q, given.k, *given.weights, video, **options)
        some = (given.q[:, rows], given.k[:, rows])
        turned = gk.qk_norm_rope(*some, *given.weights, reference_rope, **options)
        for whole, frame in zip(both, turned, strict=True):
            whole[:, rows] = frame
        return both

    return call


def _eager(given: _Inputs) -> Call:
    shape = given.case.shape
    table = cos_sin(given.rope, shape.n, given.case.device)

    def one(x: Tensor, weight: Tensor) -> Tensor:
        normed = F.rms_norm(x, (given.width,), weight, EPS)
        return rotate(normed.unflatten(-1, (shape.heads, shape.head_dim)), table)

    def call() -> Both:
        return one(given.q, given.weights[0]), one(given.k, given.weights[1])

    return call


def _contender(label: str, given: _Inputs, call: Call, truth: Callable[[], Truth]) -> Contender:
    checked = given.checked
    if given.case.direction == "forward":
        run = torch.no_grad()(call)

        def results() -> Results:
            return dict(zip("qk", (x[:, checked] for x in run()), strict=True))

        return Contender(label, run, results, truth)
    held = HeldForward(call)

    def backward(upstream: Tensor) -> tuple[Tensor, ...]:
        with held.turn() as both:
            toward = upstream.split(1)
            return torch.autograd.grad(both, given.leaves, toward, retain_graph=True)

    def gradients() -> Results:
        upstream = torch.zeros_like(given.upstream)
        upstream[:, checked] = given.upstream[:, checked]
        dq, dk, *dweights = backward(upstream)
        return _named((dq[:, checked], dk[:, checked], *dweights))

    return Contender(label, lambda: backward(given.upstream), gradients, truth, turn=held.turn)


def _named(grads: tuple[Tensor, ...]) -> Results:
    return dict(zip(("dq", "dk", "dq_weight", "dk_weight"), grads, strict=True))


def _truth(given: _Inputs) -> Truth:
    """Compute the checked tokens by the eager backend's formula."""
    rows = given.checked
    rope = replace(given.rope, token_offset=rows.start)
    checked = f"{rows.stop - rows.start} of {given.case.shape.n} tokens"

    def run(dtype: torch.dtype) -> Results:
        some = [given.q[:, rows], given.k[:, rows], *given.weights]
        some = [x.detach().to(dtype).requires_grad_(x.requires_grad) for x in some]
        rotated = [
            reference.norm_rope(x, weight, rope, eps=EPS)
            for x, weight in zip(some[:2], some[2:], strict=True)
        ]
        if given.case.direction == "forward":
            return dict(zip("qk", rotated, strict=True))
        upstream = given.upstream[:, rows].to(dtype).split(1)
        return _named(torch.autograd.grad(rotated, some, upstream))

    return Truth(run(torch.float64), run(given.case.dtype), checked)
