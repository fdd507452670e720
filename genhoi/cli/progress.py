"""Progress of long work: a bar on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from genhoi.cli.texts import time_text

__all__ = ["progress_bar"]

_SECONDS = 10.0  # between two lines


def progress_bar(
    console: Console,
    *fields: str,
    disable: bool = False,
    line: Callable[[str], object] | None = None,
    seconds: float = _SECONDS,
) -> Progress:
    """Show how far work is, how long it took, and how long it will take.

    On a terminal this is a bar with its share, the time so far, the description, and more fields
    of the task. Elsewhere it is a line every few seconds, with share, time and time left.

    Args:
        console: where the bar is shown, if it is a terminal.
        fields: of the task, shown behind its description.
        disable: show nothing.
        line: takes each line; None: standard error, and only where no bar is seen. A log file is
            given lines beside the bar too.
        seconds: from one line to the next.

    Returns:
        rich's progress, to be used in a `with` block. `add_task` and `update` drive both.

    Example:
        >>> from rich.console import Console
        >>> with progress_bar(Console()) as bar:
        ...     task = bar.add_task("reading", total=2)
        ...     bar.update(task, completed=1, description="frame 1 of 2")
    """
    columns: list[ProgressColumn] = [
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        *(TextColumn(f"{{task.fields[{field}]}}") for field in fields),
    ]
    if line is None and not console.is_terminal:
        line = _to_stderr
    return _Lines(
        *columns,
        line=None if disable else line,
        seconds=seconds,
        console=console,
        transient=True,
        disable=disable or not console.is_terminal,
    )


class _Lines(Progress):
    """A bar that also says in lines how far it is."""

    def __init__(
        self,
        *columns: ProgressColumn,
        line: Callable[[str], object] | None,
        seconds: float,
        **how: Any,
    ) -> None:
        super().__init__(*columns, **how)
        self._line, self._seconds = line, seconds
        self._next = time.monotonic() + seconds

    def update(self, task_id: TaskID, *args: Any, **state: Any) -> None:
        """Take a task's new state, and write a line if it is time for one."""
        super().update(task_id, *args, **state)
        now = time.monotonic()
        if self._line is not None and now >= self._next:
            self._next = now + self._seconds
            with self._lock:
                text = _line_of(self._tasks[task_id])
            self._line(text)


def _line_of(task: Task) -> str:
    """Write a task's share, time and time left, and what it is at."""
    seconds = task.elapsed or 0.0
    share = task.percentage / 100
    parts = [f"{share:.0%}", time_text(seconds)]
    if share:
        parts.append(f"{time_text(seconds / share * (1 - share))} left")
    return ", ".join(parts) + (f": {task.description}" if task.description else "")


def _to_stderr(text: str) -> None:
    click.echo(text, err=True)
