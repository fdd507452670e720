"""Opt-in: GENHOI_AUTOTUNE=1 times the candidates of a kernel on the GPU at hand, once.

The first large call of a kind (architecture, kernel, size of a value, head dim) tries every
candidate on its own tensors and keeps the fastest, here and in a file of the user's cache folder
that later processes read. A kernel may be run again and again for it: none reads what it writes.
A candidate that doesn't compile, or asks for more than the GPU has, is left out. Each is timed for
some 40 ms, or three launches; one that takes twice the best so far is timed once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from genhoi_kernels.backends import preferences as choices
from genhoi_kernels.backends.triton.launch import Launch
from genhoi_kernels.backends.triton.tuning.candidates import candidates
from genhoi_kernels.backends.triton.tuning.configs import (
    Config,
    Key,
    adopt,
    entries_of,
    parse_entries,
    trying,
)
from genhoi_kernels.files import whole_file

FILE = "triton-configs.json"
MINIMUM_ROWS = 1024
"""Smaller calls say nothing of a configuration, and are not timed."""

BUDGET_MS = 40.0
MINIMUM_SAMPLES, MAXIMUM_SAMPLES = 3, 200

Seen = Callable[[Config, float | None], None]
"""Told each candidate and its milliseconds, None where it did not run."""

Listener = Callable[[Key, Config, float | None], None]
"""As Seen, of any kernel."""

_tuned: set[Key] = set()
_listeners: list[Listener] = []


def enabled() -> bool:
    """GENHOI_AUTOTUNE=1 is set; read at every call."""
    return os.environ.get("GENHOI_AUTOTUNE", "0") == "1"


@contextlib.contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Within it, the listener is told of every candidate that is timed."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tune(key: Key, make: Callable[[], Launch]) -> None:
    """See to it that a kernel's configuration is a measured one, for all later calls of its kind.

    make: the call's launch, with the configuration that the tables give when it is called. The
    file is extended before this returns: a process that ends later loses nothing.
    """
    if key in _tuned:
        return
    path = table_path()
    known = read(path).get(key)
    if known is None:

        def launch(candidate: Config) -> Launch:
            with trying(key, candidate):
                return make()

        def seen(candidate: Config, taken: float | None) -> None:
            for listener in _listeners:
                listener(key, candidate, taken)

        known = fastest(candidates(key.kernel, key.arch), launch, seen=seen)
        if known is not None:
            write(path, {key: known})
    _tuned.add(key)
    if known is not None:
        adopt({key: known})


def table_path() -> Path:
    """The file of found configurations: they hold for the GPUs of one name and one Triton."""
    import triton

    name = torch.cuda.get_device_name().replace(" ", "-")
    return choices.cache_folder() / f"{name}-triton-{triton.__version__}-{FILE}"


def read(path: Path) -> dict[Key, Config]:
    """What was found before; nothing, and a warning that names the file, if it is malformed."""
    if not path.exists():
        return {}
    try:
        return parse_entries(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is malformed and ignored: {error}", stacklevel=2)
        return {}


def write(path: Path, found: dict[Key, Config]) -> None:
    """Add to what is there; the file is replaced whole or not at all."""
    entries = entries_of(read(path) | found)
    with whole_file(path) as temporary, temporary.open("w") as file:
        json.dump({"made_by": "GENHOI_AUTOTUNE=1", "entries": entries}, file, indent=1)


def fastest(
    candidates: Sequence[Config],
    launch: Callable[[Config], Launch],
    *,
    time: Callable[[Launch, float], float] | None = None,
    seen: Seen | None = None,
) -> Config | None:
    """The candidate whose launch takes least time; None if none of them runs.

    time: milliseconds of a launch, given the best so far. seen: told of every candidate.
    """
    clock = _milliseconds if time is None else time
    best, chosen = math.inf, None
    for candidate in candidates:
        taken = None
        try:
            taken = clock(launch(candidate), best)
        except Exception as error:  # compilers and drivers raise whatever they like
            warnings.warn(f"autotuning: {candidate} left out: {error}", stacklevel=2)
        if seen is not None:
            seen(candidate, taken)
        if taken is not None and taken < best:
            best, chosen = taken, candidate
    if chosen is None:
        return None
    how = f"measured: {best:.3g} ms, the fastest of {len(candidates)} candidates"
    return replace(chosen, how=how)


def _milliseconds(launch: Launch, best: float) -> float:
    """Median time; the first launch, which compiles, is not counted."""
    device = launch.device()
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        launch.run()
        torch.cuda.synchronize()
        return median_of(lambda: _sample(launch), best)


def median_of(sample: Callable[[], float], best: float) -> float:
    """Of milliseconds: as many samples as the budget allows, one of what is far from the best."""
    samples = [sample()]
    if samples[0] > 2 * best:
        return samples[0]
    while len(samples) < MINIMUM_SAMPLES or (
        sum(samples) < BUDGET_MS and len(samples) < MAXIMUM_SAMPLES
    ):
        samples.append(sample())
    return statistics.median(samples)


def _sample(launch: Launch) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    launch.run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
