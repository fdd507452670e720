"""pytest plugin: `EMULATED_GPU=80 pytest -p emugpu.pytest_plugin ...` (or pytest_plugins in a conftest); inactive without the variable.

A launch that failed fails the test that made it, whatever C++ did with the error code.
@pytest.mark.emulated(racecheck='raise', ...) sets emulator options for one test. The fixture `launches` lists a test's launches.
"""

import os
import sys

import pytest

CC = os.environ.get("EMULATED_GPU")


def _preloaded():
    return "libemugpu.so" in open("/proc/self/maps").read()


def _reexec(config=None):
    """torch is already here: start over with the stand-in libraries preloaded."""
    import emugpu

    if os.environ.get("EMUGPU_REEXEC"):
        raise RuntimeError("emugpu: LD_PRELOAD had no effect")
    cap = config and config.pluginmanager.getplugin("capturemanager")
    if cap:
        cap.stop_global_capturing()
    env = dict(
        os.environ,
        LD_PRELOAD=" ".join(filter(None, [os.environ.get("LD_PRELOAD"), emugpu.preload()])),
        EMUGPU_REEXEC="1",
    )
    env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)


if CC and ("torch" not in sys.modules or _preloaded()):
    import emugpu

    emugpu.install()


def pytest_configure(config):
    config.addinivalue_line("markers", "emulated(**options): emulator options for this test")
    if CC:
        import emugpu

        if not emugpu._installed:
            _reexec(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not CC:
        return (yield)
    import emugpu

    opts = {}
    for m in item.iter_markers("emulated"):
        opts = {**m.kwargs, **opts}
    emugpu.clear()
    emugpu.launches.clear()
    with emugpu.checks(**opts), emugpu.exact_errors():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    if CC:
        import emugpu

        emugpu.clear()
    return (yield)


@pytest.fixture
def launches():
    import emugpu

    return emugpu.launches
