"""What several commands share: kinds of options, refusals in one sentence, texts for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from genhoi.cli.progress import progress_bar
from genhoi.cli.texts import bytes_text, repeat_command, time_text
from genhoi.conditioning.grid import STRIDES
from genhoi.extras import needed_for

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "PATH",
    "by_flags",
    "bytes_text",
    "free_targets",
    "parse_size",
    "plain_errors",
    "progress_bar",
    "repeat_command",
    "time_text",
]

PATH = click.Path(path_type=Path)


class _Dtypes(Mapping[str, "torch.dtype"]):
    """The dtypes to compute in, by name; torch is imported for the dtype, not for the names."""

    _NAMES = ("float32", "bfloat16", "float16")

    def __getitem__(self, name: str) -> torch.dtype:
        if name not in self._NAMES:
            raise KeyError(name)
        import torch

        dtype: torch.dtype = getattr(torch, name)
        return dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self._NAMES)

    def __len__(self) -> int:
        return len(self._NAMES)


DTYPES = _Dtypes()


@contextmanager
def plain_errors(**parameters: str) -> Iterator[None]:
    """Turn what bad input raises into one sentence, which names flags, and exit code 1.

    Args:
        parameters: of the command, by the names that lower layers have for them.
    """
    try:
        with needed_for("this command"):
            yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        context = click.get_current_context(silent=True)
        text = str(error)
        if context is not None:
            text = by_flags(text, context.command, **parameters)
        raise click.ClickException(text) from error


def by_flags(text: str, command: click.Command, **parameters: str) -> str:
    """Name a command's flags where a message names its parameters.

    That is at its beginning, and wherever a word with an underscore stands alone: a parameter of
    one word, such as steps, is a word of English too.

    Args:
        text: a message, such as "learning_rate: got -1, wanted a positive number".
        command: whose parameters may be named.
        parameters: of the command, by the names that lower layers have for them.

    Returns:
        "--learning-rate: got -1, wanted a positive number". Other messages are left as they are.
    """
    longest = [(option.name or "", max(option.opts, key=len)) for option in command.params]
    # Also by the flag's own name: --adapter may be given twice, and its parameter is "adapters".
    flags = {flag.lstrip("-").replace("-", "_"): flag for _, flag in longest} | dict(longest)
    flags |= {name: flags[parameter] for name, parameter in parameters.items()}
    text = _named_first(text, flags)
    for name, flag in flags.items():
        if "_" in name.strip("_"):
            text = re.sub(rf"(?<![\w/.\\'\"`=-]){name}(?=[\s,;:)]|\.?$)", flag, text)
    return text


def _named_first(text: str, flags: Mapping[str, str]) -> str:
    """Replace the names before the first colon, if all of them are known."""
    named = re.match(r"(\w+(?:, \w+)*)(?=(?:\[\d+\])?: )", text)
    names = named[1].split(", ") if named else []
    if named is None or not set(names) <= set(flags):
        return text
    return ", ".join(flags[name] for name in names) + text[named.end() :]


def free_targets(folder: Path, *names: str, force: bool) -> tuple[Path, ...]:
    """Say where results go, after checking that they can: before the long work, not after.

    Raises:
        IsADirectoryError: a folder has the name of a result.
        FileExistsError: there is a result, and `force` is False.
    """
    from genhoi.media import check_target

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
