"""The command `python -m benchmarks.gpu_report`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from benchmarks.gpu_report.plan import plan
from benchmarks.gpu_report.runner import Run
from benchmarks.gpu_report.table import summary

_PATH = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--minutes", default=8.0, show_default=True, help="For everything.")
@click.option(
    "--out", type=_PATH, default="results/gpu-report", show_default=True,
    help="Folder for the report; what an earlier one left there is removed.",
)  # fmt: skip
@click.option("--stages", multiple=True, help="Only these; may be repeated.  [default: all]")
@click.option("--wheels", type=_PATH, help="Folder of wheels to unpack for the stages to import.")
@click.option("--list", "only_list", is_flag=True, help="Name the stages, in order, and end.")
@click.option("--tiny", is_flag=True, help="A dry run: small sizes, one round, times say nothing.")
def main(
    minutes: float, out: Path, stages: tuple[str, ...], wheels: Path | None, only_list: bool,
    tiny: bool,
) -> None:  # fmt: skip
    """Build, check, time and tune this project on the GPU at hand: docs/gpu.md."""
    groups = list(plan(ptxas=shutil.which("ptxas")))
    names = [stage.name for group in groups for stage in group]
    if only_list:
        for group in groups:
            click.echo(", ".join(f"{s.name} (at most {s.seconds:g} s)" for s in group))
        return
    for name in stages:
        if name not in names:
            raise click.UsageError(f"--stages: got {name!r}, wanted one of {', '.join(names)}")
    if not Path("setup.py").exists():
        raise click.UsageError("run it in the root of a checkout of the repository")
    run = Run(out, seconds=60 * minutes, wheels=wheels, tiny=tiny)
    try:
        run.all([tuple(s for s in group if not stages or s.name in stages) for group in groups])
    except KeyboardInterrupt:
        click.echo("Interrupted; what was found is kept.")
    for line in summary(out):
        click.echo(line)
    click.echo(f"Report: {out}")
    sys.exit(0 if run.was_right else 1)


if __name__ == "__main__":
    main()
