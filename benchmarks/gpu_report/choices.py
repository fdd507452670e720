"""Stage: which backend to try first on this GPU, from the times that the stages before found."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import torch

from benchmarks.bare_attention import backend_of
from benchmarks.gpu_report.folder import CHOICES, RESULTS, read_rows
from benchmarks.gpu_report.stage import DEVICE, say, stage_options
from genhoi_kernels.backends import preferences
from genhoi_kernels.tune.measure import Answer, Question
from genhoi_kernels.tune.shapes import find_shape
from genhoi_kernels.tune.table import choose

_ORDINARY = ("", "tuned blocks")
"""Settings under which a call without a backend's name would run."""

Times = dict[tuple[str, str], dict[str, float]]


@click.command()
@stage_options
def main(out: Path, work: Path, tiny: bool) -> None:
    """Write the table that `genhoi tune` would write."""
    answers = questions(fastest(read_rows(out / RESULTS)))
    for answer in answers:
        say(f"{answer.question.title}: {answer.summary}")
    preferences.write_table(choose(answers), out / CHOICES)


def fastest(rows: list[dict[str, str]]) -> Times:
    """Give the seconds of each backend at its best setting, by shape and direction."""
    times: Times = defaultdict(dict)
    for row in rows:
        name = backend_of(row["contender"])
        if row["suite"] != "attention" or name is None or row["reason"]:
            continue
        if row["setting"] not in _ORDINARY:
            continue
        of_case = times[row["shape"], row["direction"]]
        of_case[name] = min(float(row["ms"]) / 1e3, of_case.get(name, float("inf")))
    return times


def questions(times: Times) -> list[Answer]:
    """Ask about inference, the forward pass, and about training, both."""
    answers = []
    for shape in dict.fromkeys(shape for shape, _ in times):
        forward, backward = times[shape, "forward"], times[shape, "backward"]
        both = {name: s + backward[name] for name, s in forward.items() if name in backward}
        for training, seconds in ((False, forward), (True, both)):
            if seconds:
                question = Question(find_shape(shape), torch.bfloat16, training, DEVICE)
                answers.append(Answer(question, dict(seconds), {}))
    return answers


if __name__ == "__main__":
    main()
