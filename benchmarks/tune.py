"""`genhoi bench --tune`: times the op's GPU backends and writes which to try first.

The table is the user's own (genhoi_kernels/choices.py), for this GPU: the registry reads it before
the built-in one. Measured is bare attention with the mask gate at the named shapes: forward for
inference, forward and backward for training. A backend whose results are wrong is not chosen.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import genhoi_kernels as gk
from genhoi_kernels import choices, registry
from genhoi_kernels.call import AttentionCall
from genhoi_kernels.choices import Choice

from . import checks
from .bare_attention import build_attention, op_label
from .case import Case, Direction
from .shapes import Shape
from .timing import interleave

__all__ = ["Found", "Question", "choose", "gpu_backends", "measure", "tune"]

ROUNDS, SECONDS = 9, 20.0
_DISTRIBUTIONS = ("torch", "triton", "flash-attn", "flash-attn-4", "fa3-fwd")


@dataclass(frozen=True)
class Question:
    """One thing to measure: a shape, for inference or for training."""

    shape: Shape
    dtype: torch.dtype
    training: bool
    device: torch.device

    @property
    def title(self) -> str:
        """In one line."""
        use = "training" if self.training else "inference"
        return f"{self.shape.name}, {_name(self.dtype)}, {use}"

    def call(self) -> AttentionCall:
        """As the registry is asked."""
        shape = self.shape
        return AttentionCall(
            device=self.device, dtype=self.dtype, head_dim=shape.head_dim,
            ref_lengths=(shape.m,), rope=None, ref_rope=None, gate_mode="none",
            scale=shape.head_dim**-0.5, needs_grad=self.training, rows=shape.n, keys=shape.n,
        )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Seconds of each backend that can take the call and was right; why not, of the others."""

    question: Question
    seconds: dict[str, float]
    refusals: dict[str, str]

    @property
    def words(self) -> str:
        """In one line, the fastest first."""
        times = [f"{name} {s * 1e3:.3g} ms" for name, s in _ranked(self.seconds)]
        return ", ".join(times + [f"{name}: {why}" for name, why in self.refusals.items()])


Measure = Callable[[Question, Sequence[str]], Found]


def gpu_backends() -> list[str]:
    """Usable backends that there is a choice between on a GPU."""
    return [b.name for b in gk.backends() if b.usable and b.name not in ("cpu", "eager")]


def measure(question: Question, names: Sequence[str]) -> Found:
    """Check and time the named backends on the question's device."""
    seconds: dict[str, float] = {}
    refusals = {}
    for name in names:
        reason = gk.supports(name, question.call())
        if reason is not None:
            refusals[name] = reason
    able = [name for name in names if name not in refusals]
    directions: tuple[Direction, ...] = (
        ("forward", "backward") if question.training else ("forward",)
    )
    for direction in directions:
        threads = torch.get_num_threads()
        case = Case(
            "attention", question.shape, question.dtype, direction, question.device, threads, (),
            build_attention,
        )  # fmt: skip
        by_name = {c.name: c for c in build_attention(case).contenders}
        runs = {}
        for name in able:
            contender = by_name[op_label(name)]
            if contender.run is None:
                refusals[name] = contender.reason
            elif not checks.compare(contender).good:
                refusals[name] = f"its {direction} pass keeps no error budget"
            else:
                runs[name] = contender.run
        able = list(runs)
        timed = interleave(
            list(runs.values()), device=question.device, rounds=ROUNDS, seconds=SECONDS
        )
        for name, timings in zip(able, timed, strict=True):
            seconds[name] = seconds.get(name, 0.0) + timings.median()
    return Found(question, {name: seconds[name] for name in able}, refusals)


def tune(
    questions: Sequence[Question],
    names: Sequence[str],
    *,
    measure: Measure = measure,
    say: Callable[[str], None] = lambda words: None,
) -> list[Choice]:
    """Measure everything, write the user's table, and return what was added to it."""
    found = []
    for question in questions:
        found.append(measure(question, names))
        say(f"{question.title}: {found[-1].words}")
    new = choose(found)
    choices.write_table(choices.updated(choices.user_table(), new), choices.table_path())
    return new


def choose(found: Sequence[Found]) -> list[Choice]:
    """Entries: between two measured lengths the one nearer by ratio decides."""
    groups: dict[tuple[str, int, bool], list[Found]] = defaultdict(list)
    for one in found:
        q = one.question
        if one.seconds:
            groups[_name(q.dtype), q.shape.head_dim, q.training].append(one)
    return [choice for group in groups.values() for choice in _choices(group)]


def _choices(group: Sequence[Found]) -> list[Choice]:
    """Entries of one dtype, head dim and use."""
    by_rows: dict[int, list[Found]] = defaultdict(list)
    for one in group:
        by_rows[one.question.shape.n].append(one)
    lengths = sorted(by_rows)
    entries = []
    for i, rows in enumerate(lengths):
        first = 0 if i == 0 else math.isqrt(lengths[i - 1] * rows) + 1
        last = None if i == len(lengths) - 1 else math.isqrt(rows * lengths[i + 1])
        entries.append(_choice(by_rows[rows], (first, last)))
    return entries


def _choice(found: Sequence[Found], rows: tuple[int, int | None]) -> Choice:
    """An entry from all that was measured at one length, with more or fewer heads."""
    asked = registry.question(found[0].question.call())
    everywhere = [n for n in found[0].seconds if all(n in one.seconds for one in found)]
    # Of several shapes each counts alike, however long it takes.
    means = {n: math.prod(one.seconds[n] for one in found) for n in everywhere}
    return Choice(
        arch=asked.arch,
        dtypes=(asked.dtype,),
        head_dims=(asked.head_dim,),
        rows=rows,
        training=asked.training,
        order=tuple(name for name, _ in _ranked(means)),
        basis="measured",
        how=f"{_setting()}: " + "; ".join(f"{x.question.shape.name}: {x.words}" for x in found),
        flash=(asked.flash or 0,),
        device=asked.device,
    )


def _setting() -> str:
    versions = []
    for name in _DISTRIBUTIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"genhoi bench --tune, {datetime.date.today()}, {', '.join(versions)}"


def _ranked(seconds: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: item[1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
