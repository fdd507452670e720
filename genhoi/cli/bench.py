"""The command `genhoi bench`; the suite itself is in the repository's folder benchmarks/."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from genhoi.cli.common import plain_errors

__all__ = ["bench", "import_suite"]


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(context: click.Context, words: tuple[str, ...]) -> None:
    """Time the op beside its peers, and say how far both are from what the machine allows."""
    with plain_errors():
        import_suite()
    # Its options are those of `python -m benchmarks`.
    from benchmarks.cli import bench as suite

    suite.main(list(words), prog_name=context.command_path, standalone_mode=False)


def import_suite() -> None:
    """Find the folder benchmarks/, which is not installed.

    Raises:
        ImportError: it is not beside the package, nor importable.
    """
    root = Path(__file__).resolve().parents[2]
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
