"""What several commands share: kinds of options, refusals in one sentence, texts for people."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from genhoi.conditioning.grid import STRIDES
from genhoi.extras import needed_for
from genhoi.media import check_target

__all__ = [
    "DTYPES",
    "PATH",
    "bytes_text",
    "free_targets",
    "parse_size",
    "plain_errors",
    "progress_bar",
    "repeat_command",
    "time_text",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PATH = click.Path(path_type=Path)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what bad input raises into one sentence and exit code 1."""
    try:
        with needed_for("this command"):
            yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error


def progress_bar(console: Console, *fields: str, disable: bool = False) -> Progress:
    """Make a bar with its share, the time so far, the description, and more fields of the task."""
    return Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        *(TextColumn(f"{{task.fields[{field}]}}") for field in fields),
        console=console,
        transient=True,
        disable=disable,
    )


def free_targets(folder: Path, *names: str, force: bool) -> tuple[Path, ...]:
    """Say where results go, after checking that they can: before the long work, not after.

    Raises:
        IsADirectoryError: a folder has the name of a result.
        FileExistsError: there is a result, and `force` is False.
    """
    targets = tuple(folder / name for name in names)
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(f"--out: {target} is a folder, want a free file name")
        if target.exists() and not force:
            raise FileExistsError(f"--out: {target} exists already; --force overwrites it")
        check_target(target, overwrite=force)
    return targets


def parse_size(size: str) -> tuple[int, int]:
    """Read (height, width) from "WIDTHxHEIGHT".

    Raises:
        ValueError: it is not of that form, or a side is no positive multiple of 16.
    """
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size: got {size!r}, want WIDTHxHEIGHT, for example 480x272")
    sides = int(height), int(width)
    if 0 in sides or not STRIDES.fits(*sides):
        raise ValueError(f"--size: got {size}, want both sides multiples of {STRIDES.token}")
    return sides


def repeat_command(
    command: str,
    options: Mapping[str, Any],
    *,
    left_out: Collection[str],
    flags: Mapping[str, str] | None = None,
) -> str:
    """Write a command line that does it again, with every default written out.

    Args:
        command: its name.
        options: of the command, by the names of their parameters.
        left_out: options that do not belong in it.
        flags: name of a parameter -> that of its option, where they differ.
    """
    arguments: list[str] = []
    for name, value in options.items():
        if name in left_out or value is None or value is False:
            continue
        flag = "--" + (flags or {}).get(name, name).replace("_", "-")
        for item in value if isinstance(value, tuple) else (value,):
            arguments += [flag] if item is True else [flag, str(item)]
    return shlex.join(["genhoi", command, *arguments])


def bytes_text(count: float) -> str:
    """Write a number of bytes with three digits and a unit."""
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"


def time_text(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
