"""Compiles the variants that a command asks for, with a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.static.architectures import ARCHITECTURES
from benchmarks.static.compile import Compiled
from benchmarks.static.pool import compile_all, list_variants
from benchmarks.static.variant import Variant

__all__ = ["SUBSETS", "Build", "build"]


def _everything(variant: Variant) -> bool:
    return True


def _ci(variant: Variant) -> bool:
    """A minute's worth: where the main loop matters most."""
    return (
        variant.arch in ("sm_80", "sm_90") and variant.dtype == "bf16" and variant.head_dim == 128
    )


SUBSETS: dict[str, Callable[[Variant], bool]] = {"all": _everything, "ci": _ci}


@dataclass(frozen=True)
class Build:
    """What was compiled, in the list's order, of how many."""

    done: list[Compiled]
    wanted: int

    @property
    def is_complete(self) -> bool:
        return len(self.done) == self.wanted


def build(source: str, archs: Sequence[str], subset: str, console: Console) -> Build:
    """Compile the variants of some architectures, all if none is named. Ctrl-C ends it early.

    Raises:
        ValueError: an unknown architecture, or nothing to compile.
        ImportError: triton or the list's module is missing.
    """
    for arch in archs:
        if arch not in ARCHITECTURES:
            raise ValueError(f"--arch: got {arch!r}, wanted one of {', '.join(ARCHITECTURES)}")
    variants = list_variants(source)
    places = [
        place
        for place, variant in enumerate(variants)
        if (not archs or variant.arch in archs) and SUBSETS[subset](variant)
    ]
    if not places:
        raise ValueError(
            f"nothing to compile: {source} has {len(variants)} variants, none of these"
        )
    done: dict[int, Compiled] = {}
    with _progress(console) as bar:
        task = bar.add_task("compiling", total=len(places))
        try:
            for place, compiled in compile_all(source, places):
                done[place] = compiled
                bar.update(task, advance=1, description=compiled.title)
        except KeyboardInterrupt:
            pass
    return Build([done[place] for place in sorted(done)], len(places))


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    )
