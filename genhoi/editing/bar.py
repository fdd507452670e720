"""The bar that an edit in Python shows, as diffusers' pipelines do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from genhoi.editing.run import Progress
from genhoi.extras import needed_for

__all__ = ["shown"]

Callback = Callable[[Progress], object]


@contextmanager
def shown(callback: Callback | None, *, windows: int, steps: int, bar: bool) -> Iterator[Callback]:
    """Give a callback that moves a bar on standard error, and then calls the one given.

    Args:
        callback: or None.
        windows, steps: of the edit.
        bar: whether to show one.
    """
    with needed_for("a progress bar"):
        from tqdm.auto import tqdm

    with tqdm(total=windows * steps, desc="edit", unit="step", disable=not bar) as line:

        def moved(progress: Progress) -> None:
            if windows > 1:
                line.set_description(f"window {progress.window + 1} of {windows}", refresh=False)
            line.update(progress.window * steps + progress.step - line.n)
            if callback is not None:
                callback(progress)

        yield moved
