"""Compiles many variants at once, in processes of their own."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from benchmarks.static.compile import Compiled, compile_variant, describe
from benchmarks.static.variant import Variant

__all__ = ["SHIPPED", "WORKERS", "compile_all", "list_variants"]

SHIPPED = "benchmarks.static.shipped:variants"
WORKERS = 2
_INTERPRET = "TRITON_INTERPRET"


def list_variants(source: str) -> list[Variant]:
    """List the variants that "module:function" gives.

    Raises:
        ImportError: the module or triton is not there.
    """
    module, _, function = source.partition(":")
    try:
        return list(getattr(importlib.import_module(module), function or "variants")())
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise ImportError(
            "compiling needs triton (pip install 'genhoi-kernels[triton]')"
        ) from error


def compile_all(
    source: str, places: Sequence[int], workers: int = WORKERS
) -> Iterator[tuple[int, Compiled]]:
    """Compile the variants at some places of a list; each is yielded with its place when done.

    A compiler that crashes takes its process along: those that were being compiled then are
    tried again, one by one, so that the culprit is known.
    """
    waiting = list(places)
    while waiting:
        crashed = False
        for place, compiled in _compile_some(source, waiting, workers):
            if compiled is None:
                crashed = True
                break
            waiting.remove(place)
            yield place, compiled
        if not crashed:
            return
        suspects, waiting = waiting[:workers], waiting[workers:]
        for place in suspects:
            yield place, _compile_alone(source, place)


def _compile_alone(source: str, place: int) -> Compiled:
    ((_, compiled),) = _compile_some(source, [place], 1)
    if compiled is not None:
        return compiled
    return Compiled(**describe(list_variants(source)[place]), failure="the compiler crashed")


def _compile_some(
    source: str, places: Sequence[int], workers: int
) -> Iterator[tuple[int, Compiled | None]]:
    """Yield places with what was compiled there; None, at last, if a process died."""
    with _without_interpreter():
        executor = ProcessPoolExecutor(
            min(workers, len(places)),
            multiprocessing.get_context("spawn"),
            initializer=_ignore_interrupts,
        )
        try:
            futures: dict[Future[Compiled], int] = {
                executor.submit(_compile_one, source, place): place for place in places
            }
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except BrokenProcessPool:
                    yield futures[future], None
                    return
        finally:
            _stop(executor)


def _stop(executor: ProcessPoolExecutor) -> None:
    """Stop an executor without waiting for what is being compiled, which may be interrupted."""
    processes = list((executor._processes or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C, which reaches all processes of a terminal: the parent stops this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _compile_one(source: str, place: int) -> Compiled:
    return compile_variant(_variants(source)[place])


_known: dict[str, list[Variant]] = {}


def _variants(source: str) -> list[Variant]:
    if source not in _known:
        _known[source] = list_variants(source)
    return _known[source]


@contextmanager
def _without_interpreter() -> Iterator[None]:
    """Let processes started in the block compile kernels, even if this one interprets them."""
    value = os.environ.pop(_INTERPRET, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[_INTERPRET] = value
