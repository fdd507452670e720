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

from .bench import chosen_backends
from .folder import COUNTERS, add_rows
from .stage import is_emulated, say, stage_options

_KERNELS = "regex:attention|gradient|gate|cudnn|flash|sm90"
_SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "WarpStateStats", "SchedulerStats",
             "Occupancy", "LaunchStats", "MemoryWorkloadAnalysis")  # fmt: skip
# Name in the table -> counter, or several of which the first that is there counts.
_COUNTERS = {
    "ms": ("gpu__time_duration.sum",),
    "tensor_pipe_percent": (
        "sm__inst_executed_pipe_tensor_op_gmma.avg.pct_of_peak_sustained_active",
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    ),
    "sm_percent": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "memory_percent": ("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",),
    "dram_percent": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
                     "dram__throughput.avg.pct_of_peak_sustained_elapsed"),
    "l2_hit_percent": ("lts__t_sector_hit_rate.pct",),
    "issue_percent": ("smsp__issue_active.avg.pct",
                      "sm__inst_issued.avg.pct_of_peak_sustained_active"),
    "warps_per_scheduler": ("smsp__warps_active.avg.per_cycle_active",),
    "registers": ("launch__registers_per_thread",),
    "shared_kib": ("launch__shared_mem_per_block",),
    "blocks_per_sm": ("launch__occupancy_limit_registers",),
    "bank_conflicts": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",),
}  # fmt: skip
_STALL = re.compile(r"smsp__average_warps?_issue_stalled_(\w+?)_per_issue_active\.ratio|"
                    r"smsp__average_warp_latency_issue_stalled_(\w+)\.ratio")  # fmt: skip
_STALLS = 4


@click.command()
@stage_options
@click.option("--backend", "backends", multiple=True, help="[default: all that are right]")
def main(out: Path, work: Path, tiny: bool, backends: tuple[str, ...]) -> None:
    """Each backend under Nsight Compute, whose clocks are left as they are."""
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
    """What Nsight Compute prints, as CSV with a column a counter."""
    command = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none",
               "--kernel-name", _KERNELS, "--target-processes", "all"]  # fmt: skip
    for section in _SECTIONS:
        command += ["--section", section]
    program = [sys.executable, "-m", "benchmarks.gpu_report.counted", "--backend", backend]
    found = subprocess.run(
        [*command, *program, *(["--tiny"] if tiny else [])], capture_output=True, text=True,
        env=os.environ | {"GENHOI_AUTOTUNE": "0"}, check=False,
    )  # fmt: skip
    if found.returncode:
        say(found.stdout[-500:], found.stderr[-500:])
    return found.stdout


def kernels(text: str) -> Iterator[dict[str, Any]]:
    """One row a kernel, the last time that it ran: the first was its warm-up."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return
    table = list(csv.DictReader(io.StringIO("\n".join(lines[first:]))))[1:]  # units come first
    last = {f"{row['Kernel Name']} {row.get('Grid Size', '')}": row for row in table}
    for row in last.values():
        yield {"kernel": _short(row["Kernel Name"]), **_counted(row), "stalls": _stalls(row)}


def _counted(row: dict[str, str]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for name, counters in _COUNTERS.items():
        value = next((_number(row[c]) for c in counters if row.get(c)), None)
        found[name] = "" if value is None else value
    if isinstance(found["ms"], float):
        found["ms"] /= 1e6  # nanoseconds
    if isinstance(found["shared_kib"], float):
        found["shared_kib"] /= 1024
    return found


def _stalls(row: dict[str, str]) -> str:
    """The largest reasons why warps waited, in warps a cycle of issue."""
    reasons = []
    for name, value in row.items():
        found, number = _STALL.fullmatch(name or ""), _number(value)
        if found and number:
            reasons.append((number, found[1] or found[2]))
    return ", ".join(
        f"{reason} {number:.2f}" for number, reason in sorted(reasons)[: -_STALLS - 1 : -1]
    )


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def _short(name: str) -> str:
    """A kernel's name without what its template was given."""
    return re.sub(r"^.*\b(?=cudnn)", "", name)[:60] if "cudnn" in name else name.split("(")[0][:90]


if __name__ == "__main__":
    main()
