"""Stage: the compiled part, built in place for this Python and this GPU, unless it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import torch

from benchmarks.gpu_report.stage import DEVICE, say, stage_options

_MOST_JOBS = 16

_LOADS = """
from genhoi_kernels.backends import cuda, native
assert native.module is not None, native.missing_reason
problem = cuda.unavailable()
assert problem is None, problem
"""


@click.command()
@stage_options
def main(out: Path, work: Path, tiny: bool) -> None:
    """Build the compiled part, and try to load it."""
    if _loads():
        say("the compiled part is there already")
        return
    major, minor = torch.cuda.get_device_capability(DEVICE)
    given = {
        "GENHOI_BUILD_CPU": "1",
        "GENHOI_BUILD_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
        "MAX_JOBS": str(min(os.cpu_count() or 1, _MOST_JOBS)),
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, env={**os.environ, **given}, check=True)
    if not _loads():
        sys.exit("it was built, and does not load")


def _loads() -> bool:
    """Say whether the compiled part loads, in a new process: this one cannot load it twice."""
    result = subprocess.run([sys.executable, "-c", _LOADS], capture_output=True, text=True)
    if result.returncode:
        say(result.stderr.strip().splitlines()[-1])
    return result.returncode == 0


if __name__ == "__main__":
    main()
