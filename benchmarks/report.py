"""What a run found: tables on the screen, rows in a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.machine import Machine
from benchmarks.runner import Finished
from genhoi_kernels.files import whole_file

__all__ = ["CSV_NAME", "append_rows", "print_case", "print_legend", "read_numbers"]

CSV_NAME = "results.csv"
DASH = "-"

Row = dict[str, Any]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to a CSV file, which is replaced as a whole, so that it is never half written.

    Columns that only the file or only the rows have are kept, and left empty elsewhere.
    """
    old: list[Row] = []
    columns: list[str] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            old, columns = list(reader), list(reader.fieldnames or ())
    new = [{name: _plain(value) for name, value in row.items()} for row in rows]
    for row in new:
        columns += [name for name in row if name not in columns]
    with whole_file(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows([*old, *new])


def read_numbers(path: Path) -> list[Row]:
    """Rows of a CSV file, cells that are numbers as such; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def print_legend(console: Console, machine: Machine, threads: int | None) -> None:
    """What was measured on, and what the columns say."""
    console.print(machine.words(threads), highlight=False)
    console.print(
        "ms: median [quartiles] of the uncontended samples. TFLOP/s: on useful pairs only. GB/s: "
        "bytes that have to move at least. limit: share of what the arithmetic peak and the memory "
        "bandwidth, measured in this run, allow. extra MiB: peak memory of a call beyond its "
        "inputs, its results included. beside MiB: masks, joined keys and values, made beforehand. "
        "error: largest, relative to the largest float64 value. /op, /strongest: time relative to "
        "this op and to the strongest peer, medians of the ratios of a round. In brackets: which "
        "kernel of its library a peer ran.\n",
        highlight=False,
        markup=False,
    )


def print_case(console: Console, finished: Finished) -> None:
    """The table of one case; what could not run stands below it with the reason."""
    table = Table(title=finished.case.title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in (
        "ms", "TFLOP/s", "GB/s", "limit", "extra MiB", "beside MiB", "error", "/op", "/strongest",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in finished.rows:
        table.add_row(*_cells(row))
    console.print(table)
    for note in (*finished.notes, *_limit_notes(finished.rows), *_reasons(finished.rows)):
        console.print(f"  {note}", highlight=False, markup=False)
    console.print()


def _cells(row: Row) -> list[str]:
    def number(name: str, digits: str, factor: float = 1.0) -> str:
        value = row[name]
        return format(value * factor, digits) if isinstance(value, (int, float)) else DASH

    if row["reason"]:
        return [row["contender"], *[DASH] * 9]
    kernel = f" ({row['kernel']})" if row["kernel"] else ""
    return [
        row["contender"] + kernel,
        f"{row['ms']:.4g} [{row['ms_q1']:.4g}, {row['ms_q3']:.4g}]",
        number("tflops", ".3f"),
        number("gbs", ".3g"),
        f"{number('limit_share', '.1f', 100)} %",
        number("extra_mib", ".1f"),
        number("beside_mib", ".1f"),
        number("error", ".1e"),
        number("ratio_to_op", ".2f"),
        number("ratio_to_strongest", ".2f"),
    ]


def _limit_notes(rows: Sequence[Row]) -> list[str]:
    for row in rows:
        if row["limit"]:
            return [
                f"limit by {row['limit']}: {row['peak_tflops']:.3g} TFLOP/s ({row['peak_source']}),"
                f" {row['bandwidth_gbs']:.3g} GB/s; checked: {row['checked']}"
            ]
    return []


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Contenders that share a reason share a line."""
    by: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            by.setdefault(row["reason"], []).append(row["contender"])
    return [f"{DASH} {', '.join(names)}: {reason}" for reason, names in by.items()]
