"""`genhoi bench --static`: the compiled main loops beside those of other attention kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.static.architectures import ARCHITECTURES
from benchmarks.static.build import build
from benchmarks.static.chart import draw_chart
from benchmarks.static.peers import find_cuda_torch, read_peers, read_torch
from benchmarks.static.performance import Extra, aims_met, compare_extras, our_row, peer_row
from benchmarks.static.pool import SHIPPED
from benchmarks.static.table import DASH, Row, write_rows

__all__ = ["CSV_NAME", "PICTURE_NAME", "Report", "make_report", "print_report", "write_report"]

CSV_NAME, PICTURE_NAME = "static.csv", "static.png"
NOTE = "A model of the compiled code, not a measurement: no kernel was run."


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        rows: our kernels and others'.
        extras: what gate and reference cost the video's loop.
        notes: what a reader has to know besides.
        is_complete: not interrupted.
    """

    rows: list[Row]
    extras: list[Extra]
    notes: list[str]
    is_complete: bool = True


def make_report(
    console: Console,
    *,
    source: str = SHIPPED,
    archs: Sequence[str] = (),
    subset: str = "all",
    library: Path | None = None,
) -> Report:
    """Compile our kernels and count them and others.

    Args:
        console: for the progress bar.
        source: "module:function" that gives the variants.
        archs: some architectures only; all if none is named.
        subset: of the variants.
        library: of a CUDA torch, to read FlashAttention-2 from; looked for if None.
    """
    result = build(source, archs, subset, console)
    ours = [our_row(compiled) for compiled in result.done]
    others = [peer_row(row) for row in read_peers()]
    notes = []
    if not result.is_complete:
        notes.append(f"interrupted: {len(result.done)} of {result.wanted} variants compiled")
    else:
        read, note = _read_installed(library or find_cuda_torch(), console)
        others += read
        notes.append(note)
    seen = [row for row in others if not archs or row["arch"] in archs]
    extras = compare_extras(result.done, ours)
    if not extras:
        notes.append("no kernel was compiled both with and without gate and reference")
    return Report([*ours, *seen], extras, notes, result.is_complete)


def _read_installed(library: Path | None, console: Console) -> tuple[list[Row], str]:
    """FlashAttention-2's rows in a CUDA torch, and what to say about it."""
    if library is None:
        return [], "no CUDA torch is installed: FlashAttention-2 as stored, not read anew"
    try:
        with console.status("reading FlashAttention-2 out of the installed torch"):
            rows = [peer_row(row) for row in read_torch(library)]
    except (RuntimeError, OSError) as error:
        return [], f"FlashAttention-2 could not be read from the installed torch: {error}"
    if not rows:
        return [], "the installed CUDA torch has no FlashAttention-2 under a known name"
    return rows, "FlashAttention-2 was also read from the installed CUDA torch (without fast math)"


_SHARED = ("LDSM", "LDS", "STS", "STSM")
_COPIES = ("LDGSTS", "UTMALDG", "LDG", "STG", "RED")
_ALU = ("FMNMX", "IALU", "CVT")
_REST = ("SHFL", "BAR", "SYNCS", "UNIF", "SPILL", "CTRL", "OTHER")
_COLUMNS: dict[str, str | tuple[str, ...]] = {
    "tile": "tile",
    "warps": "warps",
    "regs": "regs",
    "spilled": "spilled",
    "shared": "smem",
    "CTAs": "ctas_per_sm",
    "loop": "loop_ins",
    "MMA": ("HMMA", "HGMMA"),
    "smem": _SHARED,
    "copy": _COPIES,
    "fp32": ("FP32",),
    "mufu": ("MUFU",),
    "alu": _ALU,
    "imad": ("IMAD",),
    "rest": _REST,
    "bound": "bound",
    "max": "eff_max",
    "phase": "eff_phase",
    "sum": "eff_sum",
    "issued": "issued",
    "/FA2": "to_fa2",
}


def print_report(console: Console, report: Report) -> None:
    """Tables, one an architecture, and what they say about the aims."""
    console.print(NOTE, style="bold")
    console.print(
        "loop: instructions of a warp in a pass of the main loop; MMA .. rest: those by class. "
        "max, phase, sum: share of the tensor cores' peak that the loop can reach if everything, "
        "only products, or nothing overlaps. issued: instructions of all warps for 128 queries x "
        "64 keys; /FA2: over FlashAttention-2's on sm_80 for as many matrix products. Loops are "
        "bounded for sm_80 and sm_90, in 16 bits, only.\n",
        highlight=False,
        markup=False,
    )
    for arch in ARCHITECTURES:
        rows = [row for row in report.rows if row["arch"] == arch]
        if any(row["ours"] for row in rows):
            console.print(_table(arch, rows))
    for line in aims_met(report.rows):
        console.print(line, highlight=False)
    for extra in report.extras:
        console.print(f"loop over the video's keys, {extra.words}", highlight=False, markup=False)
    for note in report.notes:
        console.print(note, highlight=False, markup=False)


def _table(arch: str, rows: Sequence[Row]) -> Table:
    table = Table(title=f"{arch}: main loops, counted", title_justify="left")
    table.add_column("kernel")
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        if "in-loop" in row["kernel"]:  # early attempts; the CSV has them
            continue
        style = "bold" if row["ours"] else "dim"
        cells = [_cell(row, column) for column in _COLUMNS.values()]
        table.add_row(_name(row), *cells, style=style)
    return table


def _name(row: Row) -> str:
    return f"{row['kernel']} {row['dtype']} D{row['head_dim']}" if row["ours"] else row["kernel"]


def _cell(row: Row, column: str | tuple[str, ...]) -> str:
    if isinstance(column, tuple):
        return str(sum(row[name] for name in column)) if column[0] in row else DASH
    value: Any = row.get(column)
    if value is None or value == "":
        return DASH
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_report(folder: Path, report: Report) -> list[Path]:
    """The CSV of all rows and the chart, in place of earlier ones: the files written."""
    write_rows(folder / CSV_NAME, report.rows)
    picture = draw_chart(folder / PICTURE_NAME, report.rows, NOTE)
    return [folder / CSV_NAME, *([picture] if picture else [])]
