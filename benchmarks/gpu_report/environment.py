"""Stage: what machine this is, which packages and backends it has, and its ceilings."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import torch

import genhoi_kernels
from benchmarks.gpu_report.folder import ENVIRONMENT, write_json
from benchmarks.gpu_report.stage import DEVICE, is_emulated, say, stage_options
from benchmarks.limits import measure_limits
from genhoi_kernels.backends import native

_PACKAGES = (
    "torch", "triton", "numpy", "diffusers", "av", "accelerate", "transformers", "pytest",
    "pytest-xdist", "hypothesis", "expecttest", "ninja", "pybind11", "flash-attn", "flash-attn-4",
    "fa3-fwd", "nvidia-cudnn-cu13", "xformers", "sageattention",
)  # fmt: skip
_SMI = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


@click.command()
@stage_options
def main(out: Path, work: Path, tiny: bool) -> None:
    """Look around, then measure a large copy and a large matrix product."""
    found = about_machine()
    found["backends"] = {b.name: "usable" if b.usable else b.reason for b in _backends()}
    write_json(work / ENVIRONMENT, found)
    for name, value in found.items():
        say(f"{name}: {value}")
    measured = measure_limits(torch.bfloat16, DEVICE, quick=tiny or is_emulated())
    found["limits"] = dataclasses.asdict(measured)
    say(f"bf16 {measured.flops / 1e12:.0f} TFLOP/s, copy {measured.bandwidth / 1e12:.2f} TB/s")
    write_json(work / ENVIRONMENT, found)


def _backends() -> tuple[genhoi_kernels.BackendStatus, ...]:
    return genhoi_kernels.backends()


def about_machine() -> dict[str, Any]:
    """Hardware and versions."""
    gpu = torch.cuda.get_device_properties(DEVICE)
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "l2_mib": gpu.L2_cache_size >> 20,
        "nvidia_smi": _nvidia_smi(),
        "cpu": native.build_info()["cpu"],
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvcc": _first_line("nvcc", "--version", last=True),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, str]:
    line = _first_line("nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader")
    return dict(zip(_SMI.split(","), (word.strip() for word in line.split(",")), strict=False))


def _first_line(*command: str, last: bool = False) -> str:
    """Of what a program prints; "" if there is none."""
    if shutil.which(command[0]) is None:
        return ""
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    lines = found.stdout.strip().splitlines() or [""]
    return lines[-1 if last else 0]


if __name__ == "__main__":
    main()
