"""Stage: what limits each main kernel, by the hardware's own counters (Nsight Compute)."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu_report.bench import chosen_backends
from benchmarks.gpu_report.folder import COUNTERS, add_rows
from benchmarks.gpu_report.stage import is_emulated, say, stage_options

_KERNELS = "regex:attention|gradient|bwd|gate|cudnn|flash|sm90"
_ACTIVE = "avg.pct_of_peak_sustained_active"
_ELAPSED = "avg.pct_of_peak_sustained_elapsed"
# Name in the table -> the counter, and what one of its units is worth.
_COUNTERS = {
    "ms": ("gpu__time_duration.sum", 1e-6),
    "tensor_percent": (f"sm__pipe_tensor_cycles_active.{_ACTIVE}", 1),
    "mufu_percent": (f"sm__inst_executed_pipe_xu.{_ACTIVE}", 1),
    "fma_percent": (f"sm__pipe_fma_cycles_active.{_ACTIVE}", 1),
    "alu_percent": (f"sm__pipe_alu_cycles_active.{_ACTIVE}", 1),
    "issue_percent": (f"smsp__issue_active.{_ACTIVE}", 1),
    "dram_percent": (f"gpu__dram_throughput.{_ELAPSED}", 1),
    "l2_percent": (f"lts__throughput.{_ELAPSED}", 1),
    "l2_hit_percent": ("lts__t_sector_hit_rate.pct", 1),
    "warps_per_scheduler": ("smsp__warps_active.avg.per_cycle_active", 1),
    "registers": ("launch__registers_per_thread", 1),
    "shared_kib": ("launch__shared_mem_per_block", 1 / 1024),
}
_SECTIONS = ("WarpStateStats", "LaunchStats")
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
_NO_STALL = ("selected", "not_selected")
_STALLS = 4


@click.command()
@stage_options
@click.option("--backend", "backends", multiple=True, help="[default: all that are right]")
def main(out: Path, work: Path, tiny: bool, backends: tuple[str, ...]) -> None:
    """Profile each backend under Nsight Compute, which leaves the clocks as they are."""
    ncu = shutil.which("ncu")
    if ncu is None or is_emulated():
        say("Nsight Compute (ncu) is not here" if ncu is None else "an emulated GPU counts nothing")
        return
    for backend in chosen_backends(out, backends):
        text = profile(ncu, backend, tiny=tiny)
        rows = [{"backend": backend} | row for row in kernels(text)]
        add_rows(out / COUNTERS, rows)
        for row in rows:
            say(row)


def profile(ncu: str, backend: str, *, tiny: bool) -> str:
    """Return what Nsight Compute prints: CSV with a column for each counter."""
    command = [
        ncu,
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
        "--clock-control",
        "none",
        "--kernel-name",
        _KERNELS,
        "--target-processes",
        "all",
    ]
    command += ["--metrics", ",".join(counter for counter, _ in _COUNTERS.values())]
    for section in _SECTIONS:
        command += ["--section", section]
    program = [sys.executable, "-m", "benchmarks.gpu_report.counted", "--backend", backend]
    result = subprocess.run(
        [*command, *program, *(["--tiny"] if tiny else [])],
        capture_output=True,
        text=True,
        env=os.environ | {"GENHOI_AUTOTUNE": "0"},
        check=False,
    )
    if result.returncode:
        say(result.stdout[-500:], result.stderr[-500:])
    return result.stdout


def kernels(text: str) -> Iterator[dict[str, Any]]:
    """Yield one row for each kernel, of its last run: the first was a warm-up."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return
    table = list(csv.DictReader(io.StringIO("\n".join(lines[first:]))))[1:]  # units come first
    last = {f"{row['Kernel Name']} {row.get('Grid Size', '')}": row for row in table}
    for row in last.values():
        yield {"kernel": _short(row["Kernel Name"]), **_counted(row), "stalls": _stalls(row)}


def _counted(row: dict[str, str]) -> dict[str, float | str]:
    figures: dict[str, float | str] = {}
    for name, (counter, worth) in _COUNTERS.items():
        value = _number(row.get(counter))
        figures[name] = "" if value is None else value * worth
    return figures


def _stalls(row: dict[str, str]) -> str:
    """Name the main reasons why warps waited, in warps waiting for each instruction issued."""
    reasons = []
    for name, value in row.items():
        match, number = _STALL.fullmatch(name or ""), _number(value)
        if match and number:
            reasons.append((number, match[1] or match[2]))
    return ", ".join(
        f"{reason} {number:.2f}" for number, reason in sorted(reasons)[: -_STALLS - 1 : -1]
    )


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def _short(name: str) -> str:
    """Return a kernel's name without its template arguments."""
    return re.sub(r"^.*\b(?=cudnn)", "", name)[:60] if "cudnn" in name else name.split("(")[0][:90]


if __name__ == "__main__":
    main()
