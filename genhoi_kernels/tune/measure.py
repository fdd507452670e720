"""Checks and times the op's GPU backends on one question: a shape, for inference or for training.

Measured is bare attention with the mask gate: forward for inference, forward and backward for
training. A backend whose results are wrong, or which raises, is not among the answers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from genhoi_kernels.backends import registry
from genhoi_kernels.spec import AttentionCall
from genhoi_kernels.tune import accuracy
from genhoi_kernels.tune.accuracy import Part, Results
from genhoi_kernels.tune.apart import DiedError, Progress, call_apart
from genhoi_kernels.tune.problem import Contestant, Direction, Problem
from genhoi_kernels.tune.shapes import Shape
from genhoi_kernels.tune.timing import Timings, first_line, interleave

ROUNDS, SECONDS = 9, 20.0
QUESTION_SECONDS = 600.0
"""After which no further backend of a question is begun."""


@dataclass(frozen=True)
class Question:
    """One thing to measure: a shape, for inference or for training."""

    shape: Shape
    dtype: torch.dtype
    training: bool
    device: torch.device

    @property
    def title(self) -> str:
        """Name it in one line."""
        use = "training" if self.training else "inference"
        return f"{self.shape.name}, {str(self.dtype).removeprefix('torch.')}, {use}"

    def call(self) -> AttentionCall:
        """Give the call that the registry is asked about."""
        shape = self.shape
        return AttentionCall(
            device=self.device,
            dtype=self.dtype,
            head_dim=shape.head_dim,
            ref_lengths=(shape.m,),
            rope=None,
            ref_rope=None,
            gate_mode="none",
            scale=shape.head_dim**-0.5,
            needs_grad=self.training,
            rows=shape.n,
            keys=shape.n,
        )


@dataclass(frozen=True)
class Answer:
    """The seconds of each backend that takes the call and is right; why not, of the others."""

    question: Question
    seconds: dict[str, float]
    refusals: dict[str, str]

    @property
    def summary(self) -> str:
        """List the times in one line, the fastest first, then the refusals."""
        times = [f"{name} {s * 1e3:.3g} ms" for name, s in ranked(self.seconds)]
        return ", ".join(times + [f"{name}: {why}" for name, why in self.refusals.items()])


def ranked(seconds: dict[str, float]) -> list[tuple[str, float]]:
    """Sort backends by their times, the fastest first."""
    return sorted(seconds.items(), key=lambda item: item[1])


def gpu_backends() -> list[str]:
    """List the usable backends that there is a choice between on a GPU."""
    return [b.name for b in registry.backends() if b.usable and b.name not in ("cpu", "eager")]


def measure(question: Question, names: Sequence[str], seconds: float = QUESTION_SECONDS) -> Answer:
    """Check and time the named backends on the question's device.

    Args:
        question: what to measure.
        names: of backends; what one raises is why it is not chosen.
        seconds: after which no further backend is begun.
    """
    end = time.monotonic() + seconds
    refusals = {}
    for name in names:
        reason = registry.supports(name, question.call())
        if reason is not None:
            refusals[name] = reason
    times: dict[str, float] = {name: 0.0 for name in names if name not in refusals}
    directions: tuple[Direction, ...] = (
        ("forward", "backward") if question.training else ("forward",)
    )
    for direction in directions:
        for name, timings in _time(question, direction, list(times), refusals, end).items():
            if timings.clean:
                times[name] += timings.median()
            else:
                refusals[name] = timings.error or f"its {direction} pass was always contended"
        times = {name: s for name, s in times.items() if name not in refusals}
    return Answer(question, times, refusals)


def measure_apart(
    question: Question, names: Sequence[str], seconds: float = QUESTION_SECONDS
) -> Answer:
    """Measure in a process of its own, killed after twice the time: then nothing is known."""
    try:
        answer: Answer = call_apart(
            _measure, question, names, seconds, seconds=2 * seconds, progress=lambda title: None
        )
        return answer
    except (DiedError, ValueError, RuntimeError) as error:
        return Answer(question, {}, dict.fromkeys(names, first_line(error)))


def _measure(
    question: Question, names: Sequence[str], seconds: float, progress: Progress
) -> Answer:
    progress(question.title)
    return measure(question, names, seconds)


def _time(
    question: Question,
    direction: Direction,
    names: Sequence[str],
    refusals: dict[str, str],
    end: float,
) -> dict[str, Timings]:
    """Time the backends that are right; ``refusals`` gets why the others are not."""
    if not names:
        return {}
    problem = Problem(question.shape, question.dtype, direction, question.device)
    part = accuracy.choose_part(problem)
    truth = functools.cache(functools.partial(accuracy.attention_truth, problem, part, masked=True))
    running: dict[str, Contestant] = {}
    for name in names:
        if time.monotonic() > end:
            refusals[name] = "there was no time"
            continue
        contestant = Contestant(problem, name)
        try:
            good = accuracy.compare(_results(contestant, problem, part), truth()).good
        except Exception as error:  # whatever it raises is why it can't be chosen
            refusals[name] = first_line(error)
            continue
        if good:
            running[name] = contestant
        else:
            refusals[name] = f"its {direction} pass keeps no error budget"
    timed = interleave(
        [contestant.run for contestant in running.values()],
        device=question.device,
        rounds=ROUNDS,
        seconds=min(SECONDS, max(0.0, end - time.monotonic())),
        turns=[contestant.turn for contestant in running.values()],
        keep_going=True,
    )
    return dict(zip(running, timed, strict=True))


def _results(contestant: Contestant, problem: Problem, part: Part) -> Results:
    """Run once, for what ``accuracy.attention_truth`` gives."""
    if problem.direction == "forward":
        return {"out": part.of(contestant.forward())}
    upstream = accuracy.spread_upstream(problem, part)
    return accuracy.gradients_of_part(contestant.gradients(upstream), part)
