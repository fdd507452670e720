"""Stage: the project's GPU tests on this machine, failures written as they come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.gpu_report.folder import CHECKS
from benchmarks.gpu_report.pytest_rows import VARIABLE
from benchmarks.gpu_report.stage import SECONDS, is_emulated, say, stage_options

_FIRST = (
    "kernels/test_gpu.py",
    "kernels/test_cuda.py",
    "kernels/test_cuda_backward.py",
    "kernels/test_cuda_norm_rope.py",
    "kernels/test_flash_hardware.py",
    "kernels/test_flash.py",
    "kernels/test_flash_versions.py",
    "kernels/test_descriptors.py",
    "models/test_gpu_wan.py",
    "models/test_gpu_wan_tools.py",
)
_MORE = (
    "kernels/test_norm_rope.py",
    "kernels/test_attention.py",
    "kernels/test_properties.py",
    "kernels/test_torch.py",
    "kernels/test_modules.py",
    "kernels/test_mask_gate.py",
    "kernels/test_errors.py",
)
_MOST_WORKERS = 12
_TO_END, _LEAST = 12.0, 5.0
"""Seconds before the stage's limit at which no further test is begun; and at least."""


@click.command()
@stage_options
@click.option("--more", is_flag=True, help="Tests that go through every backend.")
def main(out: Path, work: Path, tiny: bool, more: bool) -> None:
    """Run pytest in several processes."""
    folder = Path("tests")
    files = [str(folder / name) for name in (_MORE if more else _FIRST)]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        "-p",
        "benchmarks.gpu_report.pytest_rows",
        "--timeout",
        "150",
        "-q",
        "--tb=short",
        "-rfE",
    ]
    workers = min(os.cpu_count() or 1, _MOST_WORKERS)
    if workers > 1 and not tiny:
        command += ["-n", str(workers), "--dist", "worksteal"]
    if is_emulated():
        command += ["-p", "emugpu.pytest_plugin"]
    if tiny:
        one = "test_all_or_nothing" if more else "test_two_runs_are_the_same_bits"
        command += ["-k", one, "-x"]
    if SECONDS in os.environ:  # it stops between two tests, and its totals are written
        left = max(_LEAST, float(os.environ[SECONDS]) - _TO_END)
        command += ["--session-timeout", f"{left:.0f}"]
    say(" ".join(command), *files)
    environment = os.environ | {VARIABLE: str((out / CHECKS).resolve())}
    raise SystemExit(subprocess.run([*command, *files], env=environment).returncode)


if __name__ == "__main__":
    main()
