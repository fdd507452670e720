"""Compiles every shipped Triton configuration ahead of time; fails if one spills or does not fit.

python -m benchmarks.static.compile_table [--arch sm_80 ..] [--subset ci] [--out FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from benchmarks.static.architectures import ARCHITECTURES
from benchmarks.static.build import SUBSETS, build
from benchmarks.static.pool import SHIPPED
from benchmarks.static.table import compiled_row, print_compiled, write_rows
from benchmarks.static.violations import violations
from genhoi.cli.common import PATH, plain_errors

__all__ = ["CSV_NAME", "main"]

CSV_NAME = "compiled.csv"
_WIDTH = 170  # of tables that go into a file


@click.command()
@click.option(
    "--arch", "archs", multiple=True, help=f"{', '.join(ARCHITECTURES)}; may be repeated."
)
@click.option("--subset", default="all", show_default=True, type=click.Choice(list(SUBSETS)))
@click.option(
    "--variants", default=SHIPPED, show_default=True, help="MODULE:FUNCTION that gives the list."
)
@click.option(
    "--out", default="results/gpu-compile", show_default=True, type=PATH, help="Folder of the CSV."
)
def main(archs: tuple[str, ...], subset: str, variants: str, out: Path) -> None:
    """Compile the Triton kernels for each GPU they are shipped for; no GPU is needed.

    Writes compiled.csv. The exit status is 1 if a variant does not compile, spills, takes more
    shared memory than there is, or has a main loop without tensor cores or pipelining.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    with plain_errors():
        result = build(variants, archs, subset, console)
        print_compiled(console, result.done)
        if not result.is_complete:
            click.echo(f"Interrupted after {len(result.done)} of {result.wanted}; nothing written.")
            sys.exit(130)
        write_rows(out / CSV_NAME, [compiled_row(compiled) for compiled in result.done])
        click.echo(f"Rows: {out / CSV_NAME}")
    sys.exit(any(violations(compiled) for compiled in result.done))


if __name__ == "__main__":
    main()
