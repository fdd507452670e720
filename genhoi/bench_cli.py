"""The command `genhoi bench`; the suite itself is in the repository's folder benchmarks/."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from genhoi.cli_common import PATH, plain_errors

__all__ = ["bench", "import_suite"]

_WIDTH, _STATIC_WIDTH = 150, 200  # of tables that go into a file
_FEWEST_ROUNDS = 1


@click.command()
@click.option(
    "--suite",
    "suites",
    multiple=True,
    help="attention, fused, norm_rope, block, sweeps, shapes, all, quick; may be repeated.  "
    "[default: all but shapes]",
)
@click.option("--shapes", multiple=True, help="Named shape; may be repeated.  [default: suite's]")
@click.option("--peers", multiple=True, help="Peer of the bare attention; may be repeated.")
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
    --shapes, --dtype and --device, and writes choices.json in the cache folder ($GENHOI_CACHE, or
    the platform's), which decides what later calls without a backend's name run on.
    """
    with plain_errors():
        import_suite()
        if options["static"]:
            _bench_static(options["out"])
            return
        if options["tune"]:
            _tune(options["shapes"], options["dtypes"], options["device"])
            return
        from benchmarks.runner import Budget
        from benchmarks.suites import DEFAULT_SUITES, Selection, select

        selection = Selection(
            device=_device(options["device"]),
            threads=options["threads"] or torch.get_num_threads(),
            shapes=options["shapes"],
            peers=options["peers"] or None,
            dtypes=options["dtypes"],
            steps=options["steps"],
        )
        cases = select(options["suites"] or DEFAULT_SUITES, selection)
        budget = Budget(options["rounds"], options["seconds"], options["minutes"])
        options["out"].mkdir(parents=True, exist_ok=True)
        finished = _run(cases, selection, budget, options["out"])
    if not finished:
        sys.exit(130)


def import_suite() -> None:
    """Find the folder benchmarks/, which is not installed.

    Raises:
        ImportError: it is not beside the package, nor importable.
    """
    root = Path(__file__).resolve().parent.parent
    if (root / "benchmarks" / "runner.py").exists() and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        importlib.import_module("benchmarks.runner")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "benchmarks":
            raise
        raise ImportError(
            "the benchmark suite is not part of the installed package: run this command in a "
            "checkout of the repository, which has it in the folder benchmarks/"
        ) from error


def _bench_static(out: Path) -> None:
    """Compile, count, print and write."""
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


def _tune(shapes: tuple[str, ...], dtypes: tuple[str, ...], device_name: str | None) -> None:
    """Measure, and write the user's table of choices.

    Raises:
        ValueError: no such shape, dtype or device, or no GPU.
    """
    from benchmarks.shapes import SHAPES
    from benchmarks.suites import Selection, select
    from benchmarks.tune import Question, gpu_backends, tune
    from genhoi_kernels import choices

    device = _device(device_name)
    if device.type != "cuda":
        raise ValueError("--tune: on a CPU there is nothing to choose between, wanted a GPU")
    selection = Selection(device, torch.get_num_threads(), shapes, None, dtypes)
    select((), selection)  # refuses unknown dtypes
    names = gpu_backends()
    if len(names) < 2:
        usable = names[0] if names else "none"
        click.echo(f"Nothing to choose between: of the GPU backends {usable} is usable.")
        return
    questions = [
        Question(shape, dtype, training, device)
        for dtype in selection.given_dtypes()
        for shape in selection.given_or(list(SHAPES.values()))
        for training in (False, True)
    ]
    found = tune(questions, names, say=click.echo)
    click.echo(f"Choices: {choices.table_path()} ({len(found)} measured)")


def _device(name: str | None) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: got {name!r}, wanted cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: got {name!r}, wanted cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: got {name!r}, but torch finds no CUDA device; wanted cpu")
    return device


def _run(cases: Any, selection: Any, budget: Any, out: Path) -> bool:
    """Measure, print and write; whether it came to its end."""
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
            for finished in run_cases(cases, machine, budget, show):
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
