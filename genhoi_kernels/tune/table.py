"""Makes the user's table of choices (backends/preferences.py) of what was measured.

The registry reads it before the built-in one. It is written after every question, with all that was
measured till then.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from genhoi_kernels.backends import preferences, registry
from genhoi_kernels.backends.preferences import Choice
from genhoi_kernels.tune.measure import Answer, Question, ranked

Measure = Callable[[Question, Sequence[str]], Answer]

_DISTRIBUTIONS = ("torch", "triton", "flash-attn", "flash-attn-4", "fa3-fwd")


def tune(
    questions: Sequence[Question],
    names: Sequence[str],
    *,
    measure: Measure,
    say: Callable[[str], None] = lambda line: None,
) -> list[Choice]:
    """Measure everything, and give what was added to the user's table.

    The table is written after each question: what comes later may end badly.
    """
    answers: list[Answer] = []
    old, new = preferences.user_table(), list[Choice]()
    for question in questions:
        answers.append(measure(question, names))
        say(f"{question.title}: {answers[-1].summary}")
        new = choose(answers)
        preferences.write_table(preferences.updated(old, new), preferences.table_path())
    return new


def choose(answers: Sequence[Answer]) -> list[Choice]:
    """Make entries: between two measured lengths the one nearer by ratio decides."""
    groups: dict[tuple[torch.dtype, int, bool], list[Answer]] = defaultdict(list)
    for answer in answers:
        question = answer.question
        if answer.seconds:
            groups[question.dtype, question.shape.head_dim, question.training].append(answer)
    return [choice for group in groups.values() for choice in _choices(group)]


def _choices(group: Sequence[Answer]) -> list[Choice]:
    """Make the entries of one dtype, head dim and use."""
    by_rows: dict[int, list[Answer]] = defaultdict(list)
    for answer in group:
        by_rows[answer.question.shape.n].append(answer)
    lengths = sorted(by_rows)
    entries = []
    for i, rows in enumerate(lengths):
        first = 0 if i == 0 else math.isqrt(lengths[i - 1] * rows) + 1
        last = None if i == len(lengths) - 1 else math.isqrt(rows * lengths[i + 1])
        entries.append(_choice(by_rows[rows], (first, last)))
    return entries


def _choice(answers: Sequence[Answer], rows: tuple[int, int | None]) -> Choice:
    """Make an entry of all that was measured at one length, with more or fewer heads."""
    asked = registry.question(answers[0].question.call())
    everywhere = [
        name for name in answers[0].seconds if all(name in answer.seconds for answer in answers)
    ]
    # Of several shapes each counts alike, however long it takes.
    products = {name: math.prod(x.seconds[name] for x in answers) for name in everywhere}
    measured = "; ".join(f"{x.question.shape.name}: {x.summary}" for x in answers)
    return Choice(
        arch=asked.arch,
        dtypes=(asked.dtype,),
        head_dims=(asked.head_dim,),
        rows=rows,
        training=asked.training,
        order=tuple(name for name, _ in ranked(products)),
        basis="measured",
        how=f"{_setting()}: {measured}",
        flash=(asked.flash or 0,),
        device=asked.device,
    )


def _setting() -> str:
    """Say how, when and with which versions."""
    versions = []
    for name in _DISTRIBUTIONS:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"genhoi tune, {datetime.date.today()}, {', '.join(versions)}"
