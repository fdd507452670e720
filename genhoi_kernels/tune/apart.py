"""Calls in a process of their own: one that dies, or poisons its GPU, takes nobody with it."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Progress = Callable[[str], None]
_POLL = 0.2  # seconds; a process that ends is noticed at once
_GRACE = 10.0  # seconds for a process to end that has answered, or was killed


class DiedError(RuntimeError):
    """The process gave no answer; the message says how it ended and what it was doing."""


def call_apart(
    function: Callable[..., Any], *arguments: Any, seconds: float, progress: Progress
) -> Any:
    """Call ``function(*arguments, progress)`` in a new process and give its result.

    Args:
        function: of a module, as are all that the arguments hold: they are pickled.
        seconds: after which the process is killed.
        progress: told what the process tells its own.

    Raises:
        DiedError: the process ended without an answer, or was killed.
        Exception: what the call itself raises.
    """
    context = multiprocessing.get_context("spawn")  # a process with CUDA must not be forked
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    deadline, doing = time.monotonic() + seconds, "starting"
    process.start()
    theirs.close()
    try:
        while True:
            if time.monotonic() > deadline:
                raise DiedError(f"ended after {seconds:g} s, while {doing}")
            if not ours.poll(_POLL):
                continue
            try:
                kind, what = ours.recv()
            except EOFError:
                process.join(_GRACE)
                raise DiedError(f"its process {_ending(process.exitcode)}, while {doing}") from None
            if kind == "result":
                process.join(_GRACE)
                return what
            if kind == "error":
                raise what
            doing = what
            progress(what)
    finally:
        process.kill()
        process.join(_GRACE)  # one that a driver holds may never end
        ours.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which kills this one
    try:
        result = function(*arguments, lambda doing: pipe.send(("progress", doing)))
    except Exception as error:
        pipe.send(("error", _plain(error)))
    else:
        pipe.send(("result", result))


def _plain(error: Exception) -> Exception:
    """Return an exception that can be pickled, which some of torch's cannot."""
    for kind in (ValueError, ImportError):
        if isinstance(error, kind):
            return kind(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")
