"""The report's folder: at most eight files, each written whole, rows as they come."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import append_rows
from genhoi_kernels.files import whole_file

__all__ = [
    "CHECKS",
    "CHOICES",
    "CONFIGS",
    "COUNTERS",
    "ENVIRONMENT",
    "FILES",
    "LOG",
    "REPORT",
    "RESULTS",
    "TUNING",
    "add_rows",
    "read_json",
    "read_rows",
    "write_json",
]

REPORT = "report.json"
"""Machine, versions, ceilings, and how each stage ended."""
CHECKS = "checks.csv"
"""Errors against float64, and the tests that failed."""
RESULTS = "results.csv"
"""Times, as `genhoi bench` writes them."""
TUNING = "tuning.csv"
"""The time of every candidate of every Triton kernel."""
CONFIGS = "triton-configs.json"
"""The fastest of them, as GENHOI_AUTOTUNE=1 keeps it."""
CHOICES = "choices.json"
"""Which backend to try first, as `genhoi tune` writes it."""
COUNTERS = "counters.csv"
"""Hardware counters of the main kernels."""
LOG = "log.txt"
"""What every stage printed."""
ENVIRONMENT = "environment.json"
"""In the work folder: the stage's part of the report."""
FILES = (REPORT, CHECKS, RESULTS, TUNING, CONFIGS, CHOICES, COUNTERS, LOG)

Row = dict[str, Any]


def add_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a CSV file that several processes may write to."""
    with _locked(path):
        append_rows(path, rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; an empty one if there is no file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    assert isinstance(content, dict)
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object into a file, which is replaced as a whole."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the folder for writing within the block. The folder is the lock: no file is left."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
