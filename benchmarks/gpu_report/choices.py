"""Stage: which backend to try first on this GPU, from the times that the stages before found."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import click
import torch

from benchmarks.bare_attention import backend_of
from benchmarks.gpu_report.folder import CHOICES, RESULTS, read_rows
from benchmarks.gpu_report.stage import DEVICE, say, stage_options
from benchmarks.shapes import find_shape
from benchmarks.tune import Found, Question, choose
from genhoi_kernels.backends import preferences as choices

_ORDINARY = ("", "tuned blocks")
"""Settings under which a call without a backend's name would run."""

Times = dict[tuple[str, str], dict[str, float]]


@click.command()
@stage_options
def main(out: Path, work: Path, tiny: bool) -> None:
    """Write the table that `genhoi bench --tune` would write."""
    found = questions(fastest(read_rows(out / RESULTS)))
    for one in found:
        say(f"{one.question.title}: {one.words}")
    choices.write_table(choose(found), out / CHOICES)


def fastest(rows: list[dict[str, str]]) -> Times:
    """Seconds by shape and direction, of each backend at its best setting."""
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


def questions(times: Times) -> list[Found]:
    """Inference: the forward pass; training: both."""
    found = []
    for shape in dict.fromkeys(shape for shape, _ in times):
        forward, backward = times[shape, "forward"], times[shape, "backward"]
        both = {name: s + backward[name] for name, s in forward.items() if name in backward}
        for training, seconds in ((False, forward), (True, both)):
            if seconds:
                question = Question(find_shape(shape), torch.bfloat16, training, DEVICE)
                found.append(Found(question, dict(seconds), {}))
    return found


if __name__ == "__main__":
    main()
