"""The suites `attention`, `shapes` and `sweeps`: bare attention with the mask gate.

Queries and keys stand for rotated ones; no flow gate. Times of a backward pass are its own: the
forward pass that it belongs to is made outside the clock, and only one contender's is held at once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

import genhoi_kernels as gk
from benchmarks.case import Case, Contender, Results, Truth, Workload, first_line
from benchmarks.checks import Part, attention_truth, choose_part, joined_gradients, spread_upstream
from benchmarks.context import Context, Pair, autograd_pair
from benchmarks.peers import GATHERED, PEERS, strongest
from genhoi_kernels import AttentionCall, MaskGate
from genhoi_kernels.backends.flash import backend as flash

__all__ = ["attention_flops", "attention_moved", "backend_of", "build_attention", "op_backends",
           "op_label"]  # fmt: skip

BACKWARD = 2.5  # five matrix products for the forward pass's two


def build_attention(case: Case) -> Workload:
    """The op on every usable backend, then the peers."""
    ctx = Context(case)
    part = choose_part(ctx)
    truths: dict[bool, Callable[[], Truth]] = {
        masked: functools.cache(functools.partial(attention_truth, ctx, part, masked=masked))
        for masked in (True, False)
    }
    names = op_backends(case.device, case.backends)
    work = Workload(
        op=op_label(names[0]),
        strongest=PEERS[strongest(case.device)].label,
        fallback=PEERS[GATHERED].label,
        flops=attention_flops(case),
        moved=attention_moved(case),
    )
    for name in names:
        contender = _contender(op_label(name), ctx, part, truths[True], _op(ctx, name))
        work.contenders.append(contender)
    for key, peer in PEERS.items():
        if case.peers is not None and key not in case.peers:
            continue
        ctx.reason = ""
        try:
            pair = peer.setup(ctx)
        except Exception as error:  # whatever a peer raises is why it can't run
            pair = ctx.refuse(first_line(error))
        contender = _contender(peer.label, ctx, part, truths[peer.masked], pair)
        contender.lossy = peer.lossy
        work.contenders.append(contender)
    return work


def op_backends(device: torch.device, names: Sequence[str] | None = None) -> list[str]:
    """Backends of the op to time on a device: the named ones, else all that are usable there.

    The oracle is among them only where there is nothing else.
    """
    if names:
        return list(names)
    on_cpu = device.type == "cpu"
    usable = [b.name for b in gk.backends() if b.usable and b.name != "eager"]
    return [name for name in usable if (name == "cpu") == on_cpu] or ["eager"]


def op_label(backend: str) -> str:
    """The op's name in tables."""
    return f"this op ({backend})"


def backend_of(label: str) -> str | None:
    """The inverse of ``op_label``; None for the label of a peer."""
    found = re.fullmatch(r"this op \((.+)\)", label)
    return found[1] if found else None


def attention_flops(case: Case) -> float:
    """Operations on useful pairs."""
    forward = 4.0 * case.shape.pairs() * case.shape.heads * case.shape.head_dim
    return forward * (BACKWARD if case.direction == "backward" else 1.0)


def attention_moved(case: Case) -> float:
    """Bytes at least: inputs read, results written, each once."""
    n, m, heads, dim = (getattr(case.shape, key) for key in ("n", "m", "heads", "head_dim"))
    inputs, out, lse = 3 * n + 2 * m, n, 4.0 * n * heads
    values = (inputs + out) if case.direction == "forward" else (2 * inputs + 2 * out)
    return values * heads * dim * case.dtype.itemsize + lse


def _op(ctx: Context, backend: str) -> Pair:
    gate = MaskGate.build(ctx.mask)

    def call() -> Tensor:
        out = gk.reference_attention(*ctx.inputs, mask=gate, backend=backend)
        assert isinstance(out, Tensor)
        return out

    return autograd_pair(call, ctx.inputs, heads_first=False, kernel=op_kernel(ctx, backend))


def op_kernel(ctx: Context, backend: str) -> str:
    """Which FlashAttention the flash backend takes; "" for other backends, or where it refuses."""
    shape = ctx.shape
    call = AttentionCall(
        device=ctx.device, dtype=ctx.dtype, head_dim=shape.head_dim, ref_lengths=(shape.m,),
        rope=None, ref_rope=None, gate_mode="none", scale=shape.head_dim**-0.5,
        needs_grad=ctx.direction == "backward", rows=shape.n, keys=shape.n,
    )  # fmt: skip
    if backend != "flash" or gk.supports(backend, call) is not None:
        return ""
    return flash.chosen(call).package


def _contender(
    label: str, ctx: Context, part: Part, truth: Callable[[], Truth], pair: Pair | None
) -> Contender:
    """The side of a pair that the case is about."""
    if pair is None:
        return Contender(label, reason=ctx.reason)
    beside = sum(x.numel() * x.element_size() for x in pair.beside)
    if ctx.direction == "forward":
        return Contender(
            label, pair.forward, lambda: {"out": part.of(_tokens_first(pair, pair.forward()))},
            truth, beside=beside, kernel=pair.kernel,
        )  # fmt: skip
    if pair.backward is None:
        return Contender(label, reason="has no backward pass", kernel=pair.kernel)
    backward = _Backward(ctx, part, pair)
    return Contender(
        label, backward.run, backward.results, truth, beside=beside, kernel=pair.kernel,
        turn=backward.turn,
    )  # fmt: skip


class _Backward:
    """A pair's backward pass, for an upstream gradient in the layout of the pair's own output."""

    def __init__(self, ctx: Context, part: Part, pair: Pair) -> None:
        self._ctx, self._part, self._pair = ctx, part, pair
        self._upstream: Tensor | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the forward pass, and a gradient that is random everywhere."""
        if self._upstream is not None:  # within a turn already
            yield
            return
        with self._pair.turn() as out:
            self._upstream = self._laid_out(self._ctx.upstream, out)
            try:
                yield
            finally:
                self._upstream = None

    def run(self) -> Sequence[Tensor]:
        """The timed call."""
        if self._upstream is None:
            with self.turn():
                return self.run()
        return self._gradients(self._upstream)

    def results(self) -> Results:
        """Gradients of the part; the upstream one is zero outside it, so that it decides all."""
        with self._pair.turn() as out:
            upstream = self._laid_out(spread_upstream(self._ctx, self._part), out)
            grads = [_tokens_first(self._pair, g) for g in self._gradients(upstream)]
        found = joined_gradients(grads)
        found["dq"] = self._part.of(found["dq"])
        return found | {key: found[key].index_select(2, self._part.heads) for key in ("dk", "dv")}

    def _gradients(self, upstream: Tensor) -> Sequence[Tensor]:
        assert self._pair.backward is not None
        return self._pair.backward(upstream)

    def _laid_out(self, x: Tensor, out: Tensor | None) -> Tensor:
        like = self._pair.forward() if out is None else out.detach()
        return torch.empty_like(like).copy_(x.transpose(1, 2) if self._pair.heads_first else x)


def _tokens_first(pair: Pair, x: Tensor) -> Tensor:
    return x.transpose(1, 2) if pair.heads_first else x
