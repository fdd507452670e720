"""Numbers written for people, and command lines that can be repeated."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["bytes_text", "repeat_command", "time_text"]


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
