"""What a command says: text for people, one JSON object for programs, and a log file."""

from __future__ import annotations

import functools
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import cloup
from rich.console import Console, RenderableType
from rich.progress import Progress

from genhoi.cli.common import PATH, plain_errors
from genhoi.cli.progress import progress_bar

__all__ = ["Output", "with_output"]

_LOGGED_WIDTH = 100


class Output:
    """Says what a command has to say, to people or to a program.

    Args:
        as_json: text goes to standard error; standard output has one JSON object, from `finish`.
        log_file: everything that is said is appended to it, each line with date and time.

    Attributes:
        console: for what rich draws.

    Raises:
        OSError: the log file cannot be written.

    Example:
        >>> output = Output()
        >>> output.say("Reading")
        Reading
        >>> output.finish({"frames": 49})
    """

    def __init__(self, *, as_json: bool = False, log_file: Path | None = None) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, markup=False)  # an extra, [wan], is no markup
        # Not one of logging's own tree: nothing else writes into it, and it stays silent elsewhere.
        self._log = logging.Logger("genhoi")
        if log_file is not None:
            try:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                handler = logging.FileHandler(log_file, encoding="utf-8")
            except OSError as error:
                raise OSError(f"--log-file: {log_file} cannot be written: {error}") from error
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            self._log.addHandler(handler)

    def say(self, text: str) -> None:
        """Write text, not wrapped to the terminal's width, so that paths can be copied."""
        click.echo(text, err=self.as_json)
        self.log(text)

    def warn(self, text: str) -> None:
        """Write text to standard error."""
        click.echo(text, err=True)
        self.log(text)

    def show(self, drawn: RenderableType) -> None:
        """Draw a table, or whatever else rich can draw."""
        self.console.print(drawn)
        if self._log.handlers:
            plain = Console(file=io.StringIO(), width=_LOGGED_WIDTH, markup=False)
            plain.print(drawn)
            self.log(plain.file.getvalue())  # type: ignore[attr-defined]

    def log(self, text: str) -> None:
        """Write text into the log file only."""
        for line in text.splitlines():
            if line.strip():
                self._log.info("%s", line.rstrip())

    def progress(self, *fields: str) -> Progress:
        """Make the bar of `progress_bar`, whose lines are logged too."""
        shows_bar = self.console.is_terminal
        if shows_bar and not self._log.handlers:
            return progress_bar(self.console, *fields)
        return progress_bar(self.console, *fields, line=self.log if shows_bar else self.warn)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show on a terminal that something is under way within the block."""
        self.log(text)
        with self.console.status(text):
            yield

    def stop(self, text: str, *, code: int) -> NoReturn:
        """End the program with a last line that is no error of the user, such as after Ctrl-C."""
        raise _Stopped(text, code)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write the result for programs, if they asked for one.

        Args:
            record: what JSON knows, and paths, which become text. What is not finite becomes null.
        """
        if self.as_json:
            click.echo(json.dumps(_plain(record), allow_nan=False))

    def close(self) -> None:
        """Close the log file."""
        for handler in self._log.handlers:
            handler.close()


class _Stopped(click.ClickException):
    """Ends the program with a line and an exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code  # type: ignore[misc]

    def show(self, file: Any = None) -> None:
        """Write the line, without the word Error."""
        click.echo(self.message, err=True)


def with_output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags --json and --log-file, and an `Output` as its first argument.

    What bad input raises becomes one sentence and exit code 1 (`plain_errors`); with --json the
    group writes it as {"error": ...}.
    """

    @functools.wraps(command)
    def run(*, as_json: bool, log_file: Path | None, **options: Any) -> Any:
        with plain_errors():
            output = Output(as_json=as_json, log_file=log_file)
        context = click.get_current_context(silent=True)
        output.log(f"{context.command_path if context else 'genhoi'}: started")
        try:
            with plain_errors():
                result = command(output, **options)
        except click.ClickException as error:
            output.log(f"Error: {error.format_message()}")
            raise
        except KeyboardInterrupt:
            output.log("Interrupted.")
            raise
        finally:
            output.close()
        return result

    return _FLAGS(run)


_FLAGS = cloup.option_group(
    "For programs",
    cloup.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Write one JSON object to standard output, and text for people to standard error.",
    ),
    cloup.option(
        "--log-file",
        type=PATH,
        help="Append everything that is said to this file, each line with its time.",
    ),
)


def _plain(value: Any) -> Any:
    """Turn paths, tuples and what is not finite into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
