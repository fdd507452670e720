"""A pytest plugin: each test that fails is a row of the report's checks, at once; totals are one.

Given by ``-p``, with the file's name in GENHOI_REPORT_CHECKS. With pytest-xdist only the process
that hands out the tests writes.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu_report.folder import add_rows

VARIABLE = "GENHOI_REPORT_CHECKS"
_counts: Counter[str] = Counter()


def _writes(config: pytest.Config) -> bool:
    return VARIABLE in os.environ and not hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Only where rows are wanted."""
    if _writes(config):
        config.pluginmanager.register(_Rows(Path(os.environ[VARIABLE])))


class _Rows:
    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure of any part of a test; or one that passed or was skipped, counted."""
        if report.failed:
            lines = str(report.longrepr).strip().splitlines() or [""]
            errors = [line[1:].strip() for line in lines if line.startswith("E ")] or lines[-1:]
            _counts["failed"] += 1
            self._add(report.nodeid, "failed", errors[0][:300])
        elif report.when == "call" or report.skipped:
            _counts["skipped" if report.skipped else "passed"] += 1

    def pytest_sessionfinish(self) -> None:
        """Totals."""
        words = ", ".join(f"{count} {name}" for name, count in sorted(_counts.items()))
        self._add("all", "failed" if _counts["failed"] else "passed", words)

    def _add(self, name: str, outcome: str, words: str) -> None:
        row = {"what": "test", "form": name, "outcome": outcome, "words": words}
        add_rows(self.path, [row])
