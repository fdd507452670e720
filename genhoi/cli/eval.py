"""The command `genhoi eval`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from genhoi.cli.common import (
    PATH,
    free_targets,
    plain_errors,
    progress_bar,
    repeat_command,
)
from genhoi.evaluation import Case, Evaluation, evaluate
from genhoi.evaluation.case_files import CaseFiles, check_case, read_case, read_table
from genhoi.evaluation.columns import COLUMNS, REGIONS
from genhoi.evaluation.figure import draw_evaluation
from genhoi.evaluation.learned_metrics import Models, load_models
from genhoi.evaluation.metrics import PSNR_CAP
from genhoi.evaluation.record import as_record, write_curves, write_record
from genhoi.evaluation.summary import Summary, over_cases, summarise
from genhoi.extras import need

__all__ = ["eval_command"]

_SINGLE = ("result", "truth", "mask", "object", "object_mask")
_NOTES = 12


@click.command("eval")
@click.option("--result", type=PATH, help="Edited clip: video, GIF, or folder of images.")
@click.option(
    "--truth", type=PATH, help="What it should be: the source's own file, not a recoded copy."
)
@click.option(
    "--mask", type=PATH, help="White where it was generated: video, folder or single image."
)
@click.option("--object", type=PATH, help="Picture of the object, to compare with.")
@click.option(
    "--object-mask",
    type=PATH,
    help="White where the truth shows the object.  [default: the mask stands for it]",
)
@click.option(
    "--cases",
    type=PATH,
    help="CSV of several cases instead: columns result, truth, mask, and as wanted object, "
    "object_mask, name; paths relative to it.",
)
@click.option(
    "--frames",
    help="Compare only so many from the start, or as many as the result has: a number, or result.  "
    "[default: all, and both must have the same number]",
)
@click.option(
    "--fit",
    is_flag=True,
    help="Scale and crop truth and masks to the result's size, as `genhoi edit` does.",
)
@click.option("--lpips-weights", type=PATH, help="State dict of a lpips.LPIPS: measures LPIPS.")
@click.option("--clip-model", type=PATH, help="Folder of a transformers CLIP model: measures it.")
@click.option("--fvd-weights", type=PATH, help="TorchScript I3D: measures FVD, from 2 cases on.")
@click.option("--device", default="cpu", show_default=True, help="Where those three compute.")
@click.option(
    "--out", default="genhoi-eval", show_default=True, type=PATH, help="Folder for the results."
)
@click.option("--force", is_flag=True, help="Overwrite existing results.")
def eval_command(**options: Any) -> None:
    """Measure edited clips against ground truth: PSNR, SSIM and likeness of the object.

    Every frame of the whole picture, of the mask, of the object, and of the background. Writes
    eval.csv (every frame), eval.json (summaries, how to repeat it) and eval.png. A result that is
    an mp4 is measured with what its own coding cost. Nothing is downloaded: what needs trained
    weights is measured where they are given.
    """
    console = Console()
    with plain_errors():
        need("matplotlib", "drawing")
        names = "eval.csv", "eval.png", "eval.json"
        targets = free_targets(options["out"], *names, force=options["force"])
        cases = _cases(options)
        frames = _frames(options["frames"])
        lengths = [check_case(files, frames=frames, fit=options["fit"]) for files in cases]
        models = load_models(
            **{name: options[name] for name in ("lpips_weights", "clip_model", "fvd_weights")},
            device=options["device"],
        )
        with progress_bar(console) as bar:
            evaluation = _evaluate(bar, cases, lengths, models, fit=options["fit"])
            record = as_record(
                evaluation,
                inputs={files.name: files.record() for files in cases},
                repeat=repeat_command("eval", options, left_out=("force",)),
            )
            write_curves(targets[0], evaluation, overwrite=options["force"])
            draw_evaluation(targets[1], evaluation, overwrite=options["force"])
            write_record(targets[2], record, overwrite=options["force"])
    _report(console, evaluation)
    # Not wrapped to the terminal's width, so that paths can be copied.
    click.echo(f"Every frame: {targets[0]}\nPicture: {targets[1]}\nSummary: {targets[2]}")


def _evaluate(
    bar: Progress,
    cases: Sequence[CaseFiles],
    lengths: Sequence[int],
    models: Models,
    *,
    fit: bool,
) -> Evaluation:
    """Read and measure one case after the other, so that only one is in memory."""
    task = bar.add_task("reading", total=sum(lengths))
    done = 0

    def read() -> Iterator[Case]:
        nonlocal done
        for files, length in zip(cases, lengths, strict=True):
            bar.update(task, description=f"reading {files.name}")
            yield read_case(files, frames=length, fit=fit)
            done += length

    def show(name: str, now: int, total: int) -> None:
        bar.update(task, completed=done + now, description=f"{name}: frame {now} of {total}")

    evaluation = evaluate(read(), models=models, progress=show)
    bar.update(task, description="writing")
    return evaluation


# -------------------------------------------------------------------------------------- the options


def _cases(options: dict[str, Any]) -> list[CaseFiles]:
    given = [name for name in _SINGLE if options[name] is not None]
    if options["cases"] is None:
        for name in ("result", "truth", "mask"):
            if name not in given:
                raise ValueError(
                    f"--{name}: got none, want --result, --truth and --mask, or --cases"
                )
        paths = {name: options[name] for name in _SINGLE}
        return [CaseFiles(options["result"].stem or "result", **paths)]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')}: got it beside --cases, want one or the other"
        )
    cases = read_table(options["cases"])
    names = [case.name for case in cases]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"--cases: {options['cases']} has the name {name} twice, want one for each (a "
                "case without a name is called by its result's path)"
            )
    return cases


def _frames(text: str | None) -> int | Literal["result"] | None:
    if text is None:
        return None
    if text == "result":
        return "result"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--frames: got {text}, want a number from 1 on, or result")
    return int(text)


# --------------------------------------------------------------------------------------- the screen


def _report(console: Console, evaluation: Evaluation) -> None:
    console.print(_table(evaluation))
    for metric, reason in evaluation.not_measured.items():
        click.echo(f"{metric}: {reason}")
    notes: dict[str, list[str]] = {}
    for case in evaluation.cases:
        for note in (*case.notes, *_left_out(case.curves)):
            notes.setdefault(note, []).append(case.name)
    for note, names in list(notes.items())[:_NOTES]:
        click.echo(note if len(evaluation.cases) == 1 else f"{_some(names)}: {note}")
    if len(notes) > _NOTES:
        click.echo(f"... and {len(notes) - _NOTES} more such sentences; eval.json has the numbers.")


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
