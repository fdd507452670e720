"""The suite's command: `genhoi bench`, or `python -m benchmarks` where the model layer is missing.

It needs torch, click and rich; the suite `block` and `--static` need what `genhoi` needs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.options import PATH, plain_errors

if TYPE_CHECKING:
    import torch

__all__ = ["bench"]

_WIDTH, _STATIC_WIDTH = 170, 200  # of tables that go into a file
_FEWEST_ROUNDS = 1


@click.command()
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help="attention, fused, norm_rope, reference_frames, block, sweeps, shapes, all, quick; may be "
    "repeated.  [default: all but reference_frames and shapes]",
)
@click.option("--shapes", multiple=True, help="Named shape; may be repeated.  [default: suite's]")
@click.option("--peers", multiple=True, help="Peer of the bare attention; may be repeated.")
@click.option("--backends", multiple=True, help="Of the op; may be repeated.  [default: usable]")
@click.option("--dtype", "dtypes", multiple=True, help="May be repeated.  [default: bfloat16]")
@click.option("--device", help="Where to compute.  [default: cuda if there is one, else cpu]")
@click.option("--threads", type=click.IntRange(1), help="On a CPU.  [default: torch's]")
@click.option(
    "--rounds",
    default=7,
    show_default=True,
    type=click.IntRange(_FEWEST_ROUNDS),
    help="Uncontended samples wanted of everyone.",
)
@click.option("--seconds", default=20.0, show_default=True, help="Of a case's rounds, about.")
@click.option(
    "--case-seconds",
    default=600.0,
    show_default=True,
    help="Of a case in a process of its own, or of a question of --tune.",
)
@click.option(
    "--apart/--together",
    default=None,
    help="Each case in a process of its own, or all in this one.  [default: apart on a GPU]",
)
@click.option("--minutes", default=float("inf"), help="Begin no case after.  [default: no limit]")
@click.option(
    "--steps",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Denoising steps of the suite block.",
)
@click.option(
    "--static",
    is_flag=True,
    help="Time nothing: compile the Triton kernels and bound them by their instructions.",
)
@click.option(
    "--tune",
    is_flag=True,
    help="Time this GPU's backends at --shapes, and remember which is the fastest.",
)
@click.option(
    "--out", default="genhoi-bench", show_default=True, type=PATH, help="Folder for the results."
)
def bench(**options: Any) -> None:
    """Time the op beside its peers, and say how far both are from what the machine allows.

    Appends to results.csv, and draws ratios.png, roofline.png and sweeps.png. With --static, needs
    no GPU, takes only --out, and writes static.csv and static.png instead. With --tune, takes only
    --shapes, --dtype, --device and --case-seconds, and does what `genhoi tune` does.
    """
    with plain_errors():
        if options["static"]:
            _bench_static(options["out"])
            return
        if options["tune"]:
            _tune(options)
            return
        import torch

        from benchmarks.machine import find_device
        from benchmarks.runner import Budget
        from benchmarks.suites import DEFAULT_SUITES, Selection, select

        selection = Selection(
            device=find_device(options["device"], option="--device"),
            threads=options["threads"] or torch.get_num_threads(),
            shapes=options["shapes"],
            peers=options["peers"] or None,
            dtypes=options["dtypes"],
            steps=options["steps"],
            backends=options["backends"],
        )
        cases = select(options["suites"] or DEFAULT_SUITES, selection)
        budget = Budget(
            options["rounds"], options["seconds"], options["minutes"], options["case_seconds"]
        )
        options["out"].mkdir(parents=True, exist_ok=True)
        apart = _is_apart(options["apart"], selection.device)
        finished = _run(cases, selection, budget, options["out"], apart)
    if not finished:
        sys.exit(130)


def _is_apart(given: bool | None, device: torch.device) -> bool:
    """Choose whether cases run apart: an emulated GPU exists in this process alone."""
    from genhoi_kernels.tune.timing import is_hardware

    return is_hardware(device) if given is None else given


def _bench_static(out: Path) -> None:
    """Compile the kernels, count their instructions, print and write the result."""
    from benchmarks.static.report import make_report, print_report, write_report

    console = Console()
    if not console.is_terminal:
        console = Console(width=_STATIC_WIDTH)
    report = make_report(console)
    print_report(console, report)
    for path in write_report(out, report):
        click.echo(f"{'Picture' if path.suffix == '.png' else 'Rows'}: {path}")
    if not report.is_complete:
        sys.exit(130)


def _tune(options: dict[str, Any]) -> None:
    """Do what `genhoi tune` does."""
    from genhoi_kernels.tune import command

    command.tune(
        shapes=options["shapes"],
        dtypes=options["dtypes"],
        device=options["device"],
        case_seconds=options["case_seconds"],
        say=click.echo,
    )


def _run(cases: Any, selection: Any, budget: Any, out: Path, apart: bool) -> bool:
    """Measure, print and write the cases. Returns whether all were run."""
    from benchmarks.machine import describe_machine
    from benchmarks.plots import draw_plots
    from benchmarks.report import CSV_NAME, append_rows, print_case, print_legend
    from benchmarks.runner import run_cases

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    machine = describe_machine(selection.device)
    threads = selection.threads if selection.device.type == "cpu" else None
    print_legend(console, machine, threads)
    rows: list[dict[str, Any]] = []
    ended, done = True, 0
    with _progress(console) as bar:
        task = bar.add_task("", done=f"0/{len(cases)}")

        def show(what: str) -> None:
            bar.update(task, description=what, done=f"{done}/{len(cases)}")

        try:
            for finished in run_cases(cases, machine, budget, show, apart=apart):
                append_rows(out / CSV_NAME, finished.rows)
                rows += finished.rows
                done += 1
                print_case(console, finished)
        except KeyboardInterrupt:
            ended = False
    if not ended:
        click.echo(f"Interrupted after {done} of {len(cases)} cases; their rows are kept.")
    pictures = draw_plots(out, rows, f"{machine.words(threads)}; {machine.date}")
    # Not wrapped to the terminal's width, so that paths can be copied.
    if rows:
        click.echo(f"Rows: {out / CSV_NAME}")
    for picture in pictures:
        click.echo(f"Picture: {picture}")
    return ended


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    )
