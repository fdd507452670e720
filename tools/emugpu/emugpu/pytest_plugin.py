"""pytest plugin: ``EMULATED_GPU=80 pytest -p emugpu.pytest_plugin ...``.

Inactive without the variable. A launch that failed fails the test that made it, whatever C++ did
with the error code. ``@pytest.mark.emulated(racecheck="raise", ...)`` sets emulator options for one
test. The fixture ``launches`` lists a test's launches.
"""

import collections
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

import emugpu
from emugpu import libraries
from emugpu.build import BUILD

ACTIVE = bool(os.environ.get("EMULATED_GPU"))


def _restart(config: pytest.Config) -> NoReturn:
    """torch is already here: start over with the stand-in libraries preloaded."""
    if os.environ.get("EMUGPU_RESTARTED"):
        raise RuntimeError("emugpu: LD_PRELOAD had no effect")
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture:
        capture.stop_global_capturing()
    preload = [os.environ.get("LD_PRELOAD"), emugpu.preload()]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(filter(None, preload)),
        "EMUGPU_RESTARTED": "1",
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


if ACTIVE:
    # Kernels for a device that is none do not belong in the user's own cache.
    os.environ.setdefault("TRITON_CACHE_DIR", str(BUILD / "triton"))
    if "torch" not in sys.modules or "libemugpu.so" in Path("/proc/self/maps").read_text():
        emugpu.install()


def pytest_configure(config: pytest.Config) -> None:
    """The marker; and a restart if the emulated GPU could not be installed in time."""
    config.addinivalue_line("markers", "emulated(**options): options of the emulated GPU")
    if ACTIVE and not emugpu.installed():
        _restart(config)


def pytest_report_header() -> list[str]:
    """Which GPU this is."""
    if not ACTIVE:
        return []
    import torch

    count = torch.cuda.device_count()
    devices = "" if count == 1 else f" ({count} devices)"
    return [f"emulated GPU sm_{libraries.compute_capability}{devices}, not hardware"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Each test with its options; a failed launch that nobody saw fails it."""
    if not ACTIVE:
        return (yield)
    settings: dict[str, Any] = {}
    for marker in item.iter_markers("emulated"):
        settings = {**marker.kwargs, **settings}  # the closest marker comes first
    emugpu.clear()
    emugpu.launches.clear()
    with emugpu.checks(**settings), emugpu.exact_errors():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, Any, Any]:
    """The device works again before fixtures are torn down."""
    if ACTIVE:
        emugpu.clear()
    return (yield)


@pytest.fixture
def launches() -> "collections.deque[dict[str, Any]]":
    """This test's launches: dicts of kernel, device, grid, block, smem, stream, report, seconds."""
    return emugpu.launches


@pytest.fixture(params=["lockstep", "warp-asc", "warp-desc"])
def warp_schedule(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs with all warps in step, then with one warp at a time, in either order."""
    with emugpu.checks(schedule=request.param):
        yield request.param
