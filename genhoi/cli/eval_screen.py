"""What `genhoi eval` shows: a table of means, and what counts in none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from genhoi.cli.output import Output
from genhoi.evaluation import Evaluation
from genhoi.evaluation.columns import COLUMNS, REGIONS
from genhoi.evaluation.metrics import PSNR_CAP
from genhoi.evaluation.record import HOW_TO_READ
from genhoi.evaluation.summary import Summary, over_cases, summarise

__all__ = ["show_evaluation"]

_NOTES = 12
# Of the columns, what a result is compared in with its baselines.
_COMPARED = ("edges_mask", "ssim_mask", "lpips_mask", "colour", "clip", "drift", "psnr_background")


def show_evaluation(output: Output, evaluation: Evaluation) -> None:
    """Show the tables, how to read them, and what was not measured or left out."""
    output.show(_table(evaluation))
    if evaluation.baselines:
        output.show(_beside_baselines(evaluation))
    output.show(Text(HOW_TO_READ))
    for metric, reason in evaluation.not_measured.items():
        output.say(f"{metric}: {reason}")
    notes: dict[str, list[str]] = {}
    for case in evaluation.cases:
        for note in (*case.notes, *_left_out(case.curves)):
            notes.setdefault(note, []).append(case.name)
    for note, names in list(notes.items())[:_NOTES]:
        output.say(note if len(evaluation.cases) == 1 else f"{_some(names)}: {note}")
    if len(notes) > _NOTES:
        output.say(f"... and {len(notes) - _NOTES} more such sentences; eval.json has the numbers.")


def _some(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def _table(evaluation: Evaluation) -> Table:
    cases = evaluation.cases
    one = len(cases) == 1
    title = f"{cases[0].name}: means over frames"
    if not one:
        title = f"Means over {len(cases)} cases ± standard error"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for head in ("", "of"):
        table.add_column(head, no_wrap=True)
    for head in ("all", "first\nthird", "middle\nthird", "last\nthird", "worst"):
        table.add_column(head, justify="right", no_wrap=True)
    if one:
        table.add_column("its\nframe", justify="right", no_wrap=True)
    before = ""
    for name, column in COLUMNS.items():
        summaries = [summarise(name, case.curves[name]) for case in cases if name in case.curves]
        if not summaries or (name.endswith("_object") and not any(c.object_mask for c in cases)):
            continue
        if column.title != before and before:
            table.add_row()
        title = "" if column.title == before else column.title
        table.add_row(title, column.where, *_cells(column.digits, summaries, one))
        before = column.title
    if evaluation.fvd is not None:
        table.add_row()
        table.add_row("FVD", "all clips", f"{evaluation.fvd:.1f}")
    return table


def _beside_baselines(evaluation: Evaluation) -> Table:
    """Set the result beside the baselines: means over frames."""
    case = evaluation.cases[0]
    table = Table(
        title="Beside baselines: means over frames",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("")
    names = [name for name in _COMPARED if name in case.curves]
    for name in names:
        region = name.rpartition("_")[2]
        head = f"{COLUMNS[name].title} {REGIONS.get(region, '')}"
        # One word a line, so that all columns fit into a narrow terminal.
        table.add_column("\n".join(head.split()), justify="right", no_wrap=True)
    for row in (case, *evaluation.baselines):
        means = (summarise(name, row.curves[name]).mean for name in names)
        digits = (COLUMNS[name].digits for name in names)
        cells = ("-" if x is None else f"{x:.{n}f}" for x, n in zip(means, digits, strict=True))
        table.add_row(row.name, *cells)
    return table


def _cells(digits: int, summaries: list[Summary], one: bool) -> list[str]:
    cells = []
    for part in ("mean", "first", "middle", "last", "worst"):
        spread = over_cases(getattr(summary, part) for summary in summaries)
        cells.append("-" if spread is None else f"{spread.mean:.{digits}f}")
        if part == "mean" and spread is not None and spread.standard_error is not None:
            cells[-1] += f" ± {spread.standard_error:.{digits}f}"
    if one and summaries[0].worst_frame is not None:
        cells.append(str(summaries[0].worst_frame))
    return cells


def _left_out(curves: Mapping[str, Tensor]) -> Iterator[str]:
    """Say which frames count in no mean, or with a capped value."""
    for name, region in REGIONS.items():
        found = summarise(f"ssim_{name}", curves[f"ssim_{name}"])
        total = found.frames + found.empty
        if found.empty:
            yield f"{region}: empty in {found.empty} of {total} frames, which are in no mean."
        if f"psnr_{name}" not in curves:
            continue
        capped = summarise(f"psnr_{name}", curves[f"psnr_{name}"]).capped
        if capped:
            yield (
                f"{region}: identical in {capped} of {total} frames, whose infinite PSNR "
                f"counts as {PSNR_CAP:g} dB."
            )
        if name == "frame" and capped == total:
            break
