"""Compiled variants as a table on the screen and as rows of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.static.compile import Compiled
from benchmarks.static.violations import violations
from genhoi.media.media import atomic_path

__all__ = ["DASH", "Row", "compiled_row", "print_compiled", "write_rows"]

DASH = "-"

Row = dict[str, Any]


def compiled_row(compiled: Compiled) -> Row:
    """The columns of the CSV file."""
    architecture = compiled.architecture
    known: Row = {
        "variant": compiled.variant,
        "arch": compiled.arch,
        "dtype": compiled.dtype,
        "head_dim": compiled.head_dim,
        "tile": "x".join(map(str, compiled.tile)) if compiled.tile else "",
        "warps": compiled.num_warps,
        "stages": compiled.num_stages,
        "registers": compiled.registers,
        "spilled": compiled.spilled,
        "shared": compiled.shared,
        "shared_limit": architecture.shared_of_cta,
        "ctas_per_sm": architecture.resident_ctas(
            max(compiled.registers, 1), compiled.shared, compiled.num_warps
        ),
        "tensor": compiled.tensor,
        "pipelined": compiled.pipelined,
    }
    if compiled.failure:
        known |= dict.fromkeys(list(known)[7:])
    return known | {
        "constants": _constants(compiled),
        "how": compiled.how,
        "triton": compiled.triton,
        "seconds": round(compiled.seconds, 2),
        "violations": "; ".join(violations(compiled)),
    }


_COLUMNS = {
    "variant": "kernel",
    "arch": "arch",
    "dtype": "dtype",
    "head_dim": "D",
    "tile": "tile",
    "warps": "warps",
    "stages": "stages",
    "registers": "registers",
    "spilled": "spilled",
    "shared": "shared",
    "ctas_per_sm": "CTAs",
    "tensor": "tensor",
    "pipelined": "pipelined",
}
_LEFT = ("variant", "arch", "dtype", "tile", "tensor")


def print_compiled(console: Console, compiled: Sequence[Compiled]) -> None:
    """The table of all variants, and below it what is wrong with them."""
    table = Table(title="Triton kernels, compiled ahead of time", title_justify="left")
    for name, heading in _COLUMNS.items():
        table.add_column(heading, justify="left" if name in _LEFT else "right")
    for each in compiled:
        row = compiled_row(each)
        style = "red" if row["violations"] else None
        table.add_row(*(_cell(row[name]) for name in _COLUMNS), style=style)
    console.print(table)
    console.print(
        "spilled: bytes a thread, on AMD registers. shared: bytes of a CTA. CTAs: resident on an "
        "SM. pipelined: the main loop copies ahead of its products.",
        highlight=False,
    )
    wrong = [each for each in compiled if violations(each)]
    for each in wrong:
        for violation in violations(each):
            console.print(
                f"{each.title} [{_constants(each)}] {violation}", markup=False, highlight=False
            )
    console.print(
        f"{len(compiled)} variants, {len(wrong) or 'none'} with violations", highlight=False
    )


def _constants(compiled: Compiled) -> str:
    """Those that say something: an argument that isn't there is constant None."""
    said = ((name, value) for name, value in compiled.constants.items() if value != "None")
    return ", ".join(f"{name}={value}" for name, value in said)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file of all the rows' columns, which replaces an earlier one as a whole."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path, overwrite=True) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
