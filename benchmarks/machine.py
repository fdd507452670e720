"""Describes the machine that a number was measured on."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

import genhoi_kernels

__all__ = ["Machine", "describe_machine", "find_device"]


@dataclass(frozen=True)
class Machine:
    """Device, versions and date of a run; `threads` is a case's own.

    cuda, cudnn and driver are of runs on a GPU, "" where there is none or it can't be told.
    """

    date: str
    device: str
    isa: str
    genhoi: str
    torch: str
    python: str
    triton: str = ""
    cuda: str = ""
    cudnn: str = ""
    driver: str = ""

    def words(self, threads: int | None) -> str:
        """Describe the machine in one line, for tables and plots."""
        cores = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
        isa = f", {self.isa}" if self.isa else ""
        return f"{self.device}{cores}{isa}; torch {self.torch}, genhoi {self.genhoi}"


def find_device(name: str | None, *, option: str) -> torch.device:
    """Return the device of a name; without a name CUDA's if there is one, else the CPU.

    Raises:
        ValueError: no such device; `option` is what the message names.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{option}: got {name!r}, wanted cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{option}: got {name!r}, wanted cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{option}: got {name!r}, but torch finds no CUDA device; wanted cpu")
    return device


def describe_machine(device: torch.device) -> Machine:
    """Describe the machine of a device."""
    info = genhoi_kernels.build_info()
    on_gpu = device.type == "cuda"
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=torch.cuda.get_device_name(device) if on_gpu else info["cpu"],
        isa="" if on_gpu else str(info.get("isa", "not compiled")),
        genhoi=genhoi_kernels.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        triton=_version("triton"),
        cuda=(torch.version.cuda or "") if on_gpu else "",
        cudnn=str(torch.backends.cudnn.version() or "") if on_gpu else "",
        driver=_driver() if on_gpu else "",
    )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _driver() -> str:
    """Return the version of NVIDIA's driver, which all GPUs of a machine share."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip().partition("\n")[0]
