"""What `genhoi train` shows while it runs: lines, a bar, the way out by Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

from genhoi.cli.progress import progress_bar

if TYPE_CHECKING:
    from accelerate import Accelerator

    from genhoi.training.config import TrainConfig

__all__ = ["Screen", "StepsShown"]


class Screen:
    """Shows what the main process says; the others are silent."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._main = accelerator.is_main_process
        self._console = Console(quiet=not self._main)
        self._bar: Progress | None = None

    def line(self, text: str) -> None:
        """Write a line, not wrapped to the terminal's width, so that paths can be copied."""
        if self._main:
            click.echo(text)

    def log(self, text: str) -> None:
        """Write a line into a file or a pipe, where no bar is seen."""
        if not self._console.is_terminal:
            self.line(text)

    def notice(self) -> None:
        """Say that the run is to stop."""
        text = "Stopping after this step; Ctrl-C once more stops at once, without a checkpoint."
        if self._main and self._bar is not None:
            self._bar.console.print(text)

    @contextmanager
    def bar(self) -> Iterator[Progress]:
        """Show a progress bar within the block, on a terminal."""
        with progress_bar(self._console, disable=not self._console.is_terminal) as bar:
            self._bar = bar
            yield bar
        self._bar = None

    @contextmanager
    def stopping(self, text: str) -> Iterator[None]:
        """Let Ctrl-C in the block end the program, with this line and code 130."""
        try:
            yield
        except KeyboardInterrupt:
            if text:
                self.line(text)
            sys.exit(130)


class StepsShown:
    """Shows a training's steps, on a bar or in lines; to be called with each.

    Args:
        bar: of the screen.
        screen: for the lines.
        config: of the run.
        step: that the run goes on from.
    """

    def __init__(self, bar: Progress, screen: Screen, config: TrainConfig, step: int) -> None:
        self._bar, self._screen, self._config = bar, screen, config
        self._task = bar.add_task("", total=config.steps, completed=step)

    def __call__(self, progress: Any) -> None:
        """Show one step."""
        from genhoi.training.trainer import SMOOTHED_STEPS

        left = time.strftime("%H:%M:%S", time.gmtime(progress.seconds_left % 86400))
        days = int(progress.seconds_left // 86400)
        text = (
            f"step {progress.step} of {progress.steps}, "
            f"loss {progress.loss_smoothed:.4f} (mean of the last {SMOOTHED_STEPS} steps), "
            f"{progress.clips_per_second:.3g} clips/s, {f'{days} d ' if days else ''}{left} left"
        )
        self._bar.update(self._task, completed=progress.step, description=text)
        if progress.step % self._config.log_every == 0:
            self._screen.log(text)
