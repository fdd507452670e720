"""Opt-in: GENHOI_AUTOTUNE=1 times the candidates of a kernel on the GPU at hand, once.

The first large call of a kind (GPU, kernel, size of a value, head dim) tries every candidate on its
own tensors and keeps the fastest, here and in a file of the user's cache folder that later
processes read: one for each name of a GPU and version of Triton. A kernel may be run again and
again for it: none reads what it writes. A candidate that doesn't compile, or asks for more than the
GPU has, is left out. Each is timed for some 40 ms, or three launches; one that takes twice the best
so far is timed once.
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
from torch import Tensor

from genhoi_kernels.backends.triton.launch import Launch
from genhoi_kernels.backends.triton.tuning import configs
from genhoi_kernels.backends.triton.tuning.candidates import candidates
from genhoi_kernels.backends.triton.tuning.configs import Config, Key
from genhoi_kernels.files import cache_folder, whole_file

FILE = "triton-configs.json"
MINIMUM_ROWS = 1024
"""Smaller calls say nothing of a configuration, and are not timed."""

BUDGET_MS = 40.0
MINIMUM_SAMPLES, MAXIMUM_SAMPLES = 3, 200

Seen = Callable[[Config, float | None], None]
"""Told each candidate and its milliseconds, None where it did not run."""

Listener = Callable[[Key, Config, float | None], None]
"""Told as Seen is, and for which kernel."""

_tuned: set[tuple[str, Key]] = set()
_listeners: list[Listener] = []


def enabled() -> bool:
    """Say whether GENHOI_AUTOTUNE=1 is set; it is read at every call."""
    return os.environ.get("GENHOI_AUTOTUNE", "0") == "1"


@contextlib.contextmanager
def told(listener: Listener) -> Iterator[None]:
    """Tell the listener of every candidate that is timed within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tune_first_call(kernel: str, x: Tensor, make: Callable[[], Launch], *, arch: str) -> None:
    """Tune a kernel before its first large call, where that is asked for.

    x: ``[B, N, H, D]``, one of the call's tensors. make: as in ``tune``.
    """
    if enabled() and x.device.type == "cuda" and x.shape[1] >= MINIMUM_ROWS:
        tune(configs.key_of(arch, kernel, x.element_size(), x.shape[-1]), x.device, make)


def tune(key: Key, device: torch.device, make: Callable[[], Launch]) -> None:
    """Make a configuration measured on this GPU the kernel's, for all later calls.

    make: the call's launch, with the configuration that the tables give when it is called. The
    file is extended before this returns: a process that ends later loses nothing.
    """
    gpu = configs.device_name(device)
    if (gpu, key) in _tuned:
        return
    path = table_path(device)
    fastest_known = read(path).get(key)
    if fastest_known is None:

        def launch(candidate: Config) -> Launch:
            with configs.trying(key, candidate):
                return make()

        def seen(candidate: Config, taken: float | None) -> None:
            for listener in _listeners:
                listener(key, candidate, taken)

        fastest_known = fastest(candidates(key.kernel, key.arch), launch, seen=seen)
        if fastest_known is not None:
            write(path, {key: fastest_known})
    _tuned.add((gpu, key))
    if fastest_known is not None:
        configs.adopt(gpu, {key: fastest_known})


def table_path(device: torch.device) -> Path:
    """Name the file of measured configurations: they hold for GPUs of one name and one Triton."""
    import triton

    name = configs.device_name(device).replace(" ", "-")
    return cache_folder() / f"{name}-triton-{triton.__version__}-{FILE}"


def read(path: Path) -> dict[Key, Config]:
    """Read what was measured before; a malformed file is ignored, with a warning that names it."""
    if not path.exists():
        return {}
    try:
        return configs.parse_entries(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{path} is malformed and ignored: {error}", stacklevel=2)
        return {}


def write(path: Path, measured: dict[Key, Config]) -> None:
    """Add to the entries that the file has; it is replaced whole or not at all."""
    text = configs.text_of("GENHOI_AUTOTUNE=1", read(path) | measured)
    with whole_file(path) as temporary:
        temporary.write_text(text)


def fastest(
    candidates: Sequence[Config],
    launch: Callable[[Config], Launch],
    *,
    time: Callable[[Launch, float], float] | None = None,
    seen: Seen | None = None,
) -> Config | None:
    """Find the candidate whose launch takes least time; None if none of them runs.

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
    """Measure the median time; the first launch, which compiles, is not counted."""
    device = launch.device()
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        launch.run()
        torch.cuda.synchronize()
        return median_of(lambda: _sample(launch), best)


def median_of(sample: Callable[[], float], best: float) -> float:
    """Take as many samples as the budget allows, one of what is far from the best: their median."""
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
