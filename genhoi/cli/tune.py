"""The command `genhoi tune`."""

from __future__ import annotations

from typing import Any

import click
import cloup

from genhoi.cli.common import plain_errors

__all__ = ["tune"]


# The texts and the default are those of genhoi_kernels.tune.command, which imports torch;
# tests/app/test_cli.py compares them.
@cloup.command()
@cloup.option_group(
    "What to time",
    cloup.option(
        "--shapes",
        multiple=True,
        help="Named shape, or video tokens as FxHxW; may be repeated.  [default: the named ones]",
    ),
    cloup.option(
        "--dtype",
        "dtypes",
        multiple=True,
        help="bfloat16, float16 or float32; may be repeated.  [default: bfloat16]",
    ),
    cloup.option("--device", help="Which GPU, such as cuda:1.  [default: cuda]"),
    cloup.option(
        "--case-seconds",
        default=600.0,
        help="Of a shape and use, after which no further backend is begun.  [default: 600]",
    ),
)
def tune(**options: Any) -> None:
    """Time this GPU's backends, and remember the fastest.

    Writes choices.json in the cache folder ($GENHOI_CACHE, or the platform's), by which later calls
    without a backend's name choose.
    """
    with plain_errors():
        from genhoi_kernels.tune import command

        command.tune(**options, say=click.echo)
