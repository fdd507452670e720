"""Stage: a suite's cases at named shapes, on backends that were found right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

import genhoi_kernels as gk
from benchmarks.case import Case
from benchmarks.gpu_report.folder import (
    CHECKS,
    ENVIRONMENT,
    RESULTS,
    add_rows,
    read_json,
    read_rows,
)
from benchmarks.gpu_report.stage import DEVICE, say, stage_options
from benchmarks.gpu_report.table import row_words
from benchmarks.limits import Limits
from benchmarks.machine import describe_machine
from benchmarks.runner import Budget, Finished, run_cases
from benchmarks.suites import Selection, select

_TINY = {"grid": (2, 8, 16), "ref_grid": (8, 8), "heads": 1}


@click.command()
@stage_options
@click.option("--suite", default="attention")
@click.option("--shape", "shapes", multiple=True, required=True)
@click.option("--backend", "backends", multiple=True, help="[default: all that are right]")
@click.option("--peer", "peers", multiple=True)
@click.option("--setting", default="", help="What is special, for the column of this name.")
@click.option("--rounds", default=15, type=click.IntRange(1))
@click.option("--seconds", default=8.0, help="Of a case's rounds, about.")
def main(out: Path, work: Path, **options: Any) -> None:
    """Time the cases, and add the rows of each when it is done."""
    tiny = options["tiny"]
    names = chosen_backends(out, options["backends"])
    if not names:
        say("no backend to time: none that was asked for is usable and right")
        return
    measured = read_json(work / ENVIRONMENT).get("limits")
    known = {(torch.bfloat16, torch.get_num_threads()): Limits(**measured)} if measured else {}
    budget = Budget(1 if tiny else options["rounds"], 0.0 if tiny else options["seconds"])
    selection = Selection(
        device=DEVICE,
        threads=torch.get_num_threads(),
        shapes=options["shapes"],
        peers=options["peers"],
        dtypes=("bfloat16",),
        backends=tuple(names),
        steps=1 if tiny else 2,
    )
    cases = [small(case) if tiny else case for case in select([options["suite"]], selection)]
    for finished in run_cases(cases, describe_machine(DEVICE), budget, say, known=known):
        rows = [row | {"setting": options["setting"]} for row in finished.rows]
        add_rows(out / RESULTS, rows)
        _print(finished, rows)


def _print(finished: Finished, rows: Sequence[dict[str, Any]]) -> None:
    for line in (*finished.notes, *map(row_words, rows)):
        say(line)


def chosen_backends(out: Path, wanted: Sequence[str]) -> list[str]:
    """List the named or all usable backends without those that a check found wrong."""
    wrong = {
        row["backend"]
        for row in read_rows(out / CHECKS)
        if row["what"] == "check"
        and row["dtype"] == "bfloat16"  # as all that is timed
        and row["outcome"] not in ("right", "refused")
    }
    usable = [b.name for b in gk.backends() if b.usable and b.name not in ("cpu", "eager")]
    for name in sorted(wrong & set(usable)):
        say(f"{name} is left out: a check found it wrong")
    return [name for name in usable if name not in wrong and name in (wanted or usable)]


def small(case: Case) -> Case:
    """Return the case at the size of a dry run, under its name."""
    return dataclasses.replace(case, shape=dataclasses.replace(case.shape, **_TINY))


if __name__ == "__main__":
    main()
