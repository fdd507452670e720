"""The command `genhoi tune`."""

from __future__ import annotations

from typing import Any

import click

from genhoi.cli.common import plain_errors
from genhoi_kernels.tune import command

__all__ = ["tune"]


@click.command(help=command.HELP)
@click.option("--shapes", multiple=True, help=command.OPTIONS["shapes"])
@click.option("--dtype", "dtypes", multiple=True, help=command.OPTIONS["dtype"])
@click.option("--device", help=command.OPTIONS["device"])
@click.option(
    "--case-seconds",
    default=command.CASE_SECONDS,
    type=float,
    help=command.OPTIONS["case-seconds"],
)
def tune(**options: Any) -> None:
    """Time this GPU's backends, and remember which is the fastest."""
    with plain_errors():
        command.tune(**options, say=click.echo)
