"""The command `genhoi bench`; the suite itself is in the repository's folder benchmarks/."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

__all__ = ["bench"]

_SUITE = (
    "import sys; from benchmarks.cli import bench; "
    "bench(prog_name=sys.argv.pop(1), help_option_names=['-h', '--help'])"
)


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Time the op beside its peers.

    Also says how far both are from what the machine allows.
    """
    checkout = _checkout()
    if checkout is None:
        raise click.ClickException(
            "the benchmark suite is not part of the installed package: run this command in a "
            "checkout of the repository, which has it in the folder benchmarks/"
        )
    # The suite takes this process's place, and with it the terminal, Ctrl-C and the exit code. -P:
    # nothing that lies in the current folder is taken for one of its modules.
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-P", "-c", _SUITE, context.command_path, *arguments]
    os.execve(sys.executable, command, _environment(checkout))


def _checkout() -> Path | None:
    """Find the checkout that this package is imported from, else the one in the current folder."""
    for folder in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (folder / "benchmarks" / "cli.py").is_file():
            return folder
    return None


def _environment(checkout: Path) -> dict[str, str]:
    """Give this process's environment, with the checkout in front of all places of modules."""
    places = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}
