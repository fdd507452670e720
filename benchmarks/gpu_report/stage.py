"""What the programs of all stages share: their options, what they print, what an error says."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from genhoi_kernels.tune.timing import is_hardware

__all__ = ["DEVICE", "SECONDS", "is_emulated", "say", "stage_options"]

DEVICE = torch.device("cuda", 0)
SECONDS = "GENHOI_STAGE_SECONDS"
"""Environment variable: how long the stage may take, for those that end in good order before."""

_START = time.monotonic()


def stage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every stage has: ``out``, ``work`` and ``tiny``."""
    work = click.option(
        "--work",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help="Folder for what is not part of the report.",
    )
    out = click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help="The report's folder.",
    )
    tiny = click.option("--tiny", is_flag=True, help="Sizes of a dry run: nothing is worth timing.")

    @functools.wraps(function)
    def with_folders(out: Path, work: Path, **options: Any) -> Any:
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        return function(out=out, work=work, **options)

    return out(work(tiny(with_folders)))


def say(*words: object) -> None:
    """Print a line of the log, with the seconds since this program began."""
    print(f"[{time.monotonic() - _START:6.1f} s]", *words, flush=True)


def is_emulated() -> bool:
    """Say whether the GPU is an emulated one, whose times say nothing."""
    return not is_hardware(DEVICE)
