"""`genhoi bench --tune`: times the op's GPU backends and writes which to try first.

The table is the user's own (backends/preferences.py), for this GPU: the registry reads it before
the built-in one. Measured is bare attention with the mask gate at the named shapes: forward for
inference, forward and backward for training. A backend whose results are wrong, or which raises, is
not chosen. The table is written after every question, with all that was measured till then.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import genhoi_kernels as gk
from benchmarks import checks
from benchmarks.apart import DiedError, Progress, call_apart
from benchmarks.bare_attention import build_attention, op_label
from benchmarks.case import Case, Contender, Direction, first_line
from benchmarks.shapes import SHAPES, Shape
from benchmarks.timing import Timings, interleave
from genhoi_kernels.backends import preferences as choices
from genhoi_kernels.backends import registry
from genhoi_kernels.backends.preferences import Choice
from genhoi_kernels.spec import AttentionCall

__all__ = [
    "DEFAULT_SHAPES",
    "Found",
    "Question",
    "choose",
    "gpu_backends",
    "measure",
    "measure_apart",
    "tune",
]

ROUNDS, SECONDS = 9, 20.0
QUESTION_SECONDS = 600.0
"""After which no further backend of a question is begun."""

DEFAULT_SHAPES = tuple(name for name in SHAPES if name != "wan14b-480p-401f")
"""The longest takes minutes, and says what the second longest says."""

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


def measure(question: Question, names: Sequence[str], seconds: float = QUESTION_SECONDS) -> Found:
    """Check and time the named backends on the question's device.

    Args:
        question: what to measure.
        names: of backends; what one raises is why it is not chosen.
        seconds: after which no further backend is begun.
    """
    end = time.monotonic() + seconds
    refusals = {}
    for name in names:
        reason = gk.supports(name, question.call())
        if reason is not None:
            refusals[name] = reason
    taken: dict[str, float] = {name: 0.0 for name in names if name not in refusals}
    directions: tuple[Direction, ...] = (
        ("forward", "backward") if question.training else ("forward",)
    )
    for direction in directions:
        for name, timings in _time(question, direction, list(taken), refusals, end).items():
            if timings.clean:
                taken[name] += timings.median()
            else:
                refusals[name] = timings.error or f"its {direction} pass was always contended"
        taken = {name: s for name, s in taken.items() if name not in refusals}
    return Found(question, taken, refusals)


def measure_apart(
    question: Question, names: Sequence[str], seconds: float = QUESTION_SECONDS
) -> Found:
    """The same in a process of its own, killed after twice the time: of which nothing is known."""
    try:
        found: Found = call_apart(
            _measure, question, names, seconds, seconds=2 * seconds, progress=lambda words: None
        )
        return found
    except (DiedError, ValueError, RuntimeError) as error:
        return Found(question, {}, dict.fromkeys(names, first_line(error)))


def _measure(question: Question, names: Sequence[str], seconds: float, progress: Progress) -> Found:
    progress(question.title)
    return measure(question, names, seconds)


def _time(
    question: Question,
    direction: Direction,
    names: Sequence[str],
    refusals: dict[str, str],
    end: float,
) -> dict[str, Timings]:
    """Timings of the backends that are right; why not, of the others, goes to `refusals`."""
    if not names:
        return {}
    threads = torch.get_num_threads()
    case = Case(
        "attention", question.shape, question.dtype, direction, question.device, threads, (),
        build_attention, backends=names,
    )  # fmt: skip
    by_name = {c.name: c for c in build_attention(case).contenders}
    running: dict[str, Contender] = {}
    for name in names:
        contender = by_name[op_label(name)]
        reason = contender.reason
        if not reason and time.monotonic() > end:
            reason = "there was no time"
        reason = reason or _wrong(contender, direction)
        if reason:
            refusals[name] = reason
        else:
            running[name] = contender
    timed = interleave(
        [c.run for c in running.values() if c.run is not None],
        device=question.device,
        rounds=ROUNDS,
        seconds=min(SECONDS, max(0.0, end - time.monotonic())),
        turns=[c.turn for c in running.values()],
        keep_going=True,
    )
    return dict(zip(running, timed, strict=True))


def _wrong(contender: Contender, direction: Direction) -> str:
    """Why a backend's results can't be used, or ""."""
    try:
        good = checks.compare(contender).good
    except Exception as error:  # whatever it raises is why it can't be chosen
        return first_line(error)
    return "" if good else f"its {direction} pass keeps no error budget"


def tune(
    questions: Sequence[Question],
    names: Sequence[str],
    *,
    measure: Measure = measure,
    say: Callable[[str], None] = lambda words: None,
) -> list[Choice]:
    """Measure everything, and return what was added to the user's table.

    The table is written after each question: what comes later may end badly.
    """
    found: list[Found] = []
    old, new = choices.user_table(), list[Choice]()
    for question in questions:
        found.append(measure(question, names))
        say(f"{question.title}: {found[-1].words}")
        new = choose(found)
        choices.write_table(choices.updated(old, new), choices.table_path())
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
