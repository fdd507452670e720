"""After a kernel's fault a GPU answers its process no more: pytest-xdist shall start another."""

import os

import torch


def pytest_runtest_logfinish() -> None:
    """End a worker of pytest-xdist whose GPU has faulted.

    Else every later test of the process would fail. The test at hand is reported twice: as it
    failed, and as the one during which its worker ended.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized() and not answers():
        os._exit(1)


def answers() -> bool:
    """No kernel of this process has faulted."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
