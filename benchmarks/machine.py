"""What a number was measured on."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

import genhoi_kernels

__all__ = ["Machine", "describe_machine"]


@dataclass(frozen=True)
class Machine:
    """Device, versions and date of a run; `threads` is a case's own."""

    date: str
    device: str
    isa: str
    genhoi: str
    torch: str
    python: str

    def words(self, threads: int | None) -> str:
        """In one line, for tables and plots."""
        cores = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
        isa = f", {self.isa}" if self.isa else ""
        return f"{self.device}{cores}{isa}; torch {self.torch}, genhoi {self.genhoi}"


def describe_machine(device: torch.device) -> Machine:
    """The machine that a device is of."""
    info = genhoi_kernels.build_info()
    on_gpu = device.type == "cuda"
    return Machine(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=torch.cuda.get_device_name(device) if on_gpu else info["cpu"],
        isa="" if on_gpu else str(info.get("isa", "not compiled")),
        genhoi=genhoi_kernels.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
    )
