"""What `genhoi eval` shows: a table of means, and what counts in none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.table import Table
from torch import Tensor

from genhoi.cli.output import Output
from genhoi.evaluation import Evaluation
from genhoi.evaluation.columns import COLUMNS, REGIONS
from genhoi.evaluation.metrics import PSNR_CAP
from genhoi.evaluation.summary import Summary, over_cases, summarise

__all__ = ["show_evaluation"]

_NOTES = 12


def show_evaluation(output: Output, evaluation: Evaluation) -> None:
    """Show the table, and sentences on what was not measured or left out."""
    output.show(_table(evaluation))
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
        psnr = summarise(f"psnr_{name}", curves[f"psnr_{name}"])
        total = psnr.frames + psnr.empty
        if psnr.empty:
            yield f"{region}: empty in {psnr.empty} of {total} frames, which are in no mean."
        if psnr.capped:
            yield (
                f"{region}: identical in {psnr.capped} of {total} frames, whose infinite PSNR "
                f"counts as {PSNR_CAP:g} dB."
            )
        if name == "frame" and psnr.capped == total:
            break
    if "texture" in curves:
        inside = summarise("psnr_object", curves["psnr_object"])
        thin = summarise("texture", curves["texture"]).empty - inside.empty
        if thin:
            yield f"texture: the object's region is too thin for it in {thin} frames."
