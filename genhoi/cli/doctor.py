"""The command `genhoi doctor`."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import cloup
from rich.table import Table

from genhoi.cli.output import Output, with_output

__all__ = ["doctor"]


@cloup.command()
@with_output
def doctor(output: Output) -> None:
    """Say what is installed, and what runs here.

    Lists versions, the GPU and the CPU that torch sees, and every backend of the kernels with the
    reason where it is not usable.
    """
    from genhoi_kernels import backends

    versions = dict(_versions())
    table = Table(show_header=False, title="Installation", title_justify="left")
    for name, value in versions.items():
        table.add_row(name, value)
    output.show(table)
    table = Table(title="Backends, in the order in which they are tried", title_justify="left")
    for column in ("name", "usable", "about"):
        table.add_column(column)
    found = list(backends())
    for status in found:
        table.add_row(status.name, "yes" if status.usable else "no", status.reason)
    output.show(table)
    output.finish(
        {
            "installation": versions,
            "backends": [
                {"name": s.name, "usable": bool(s.usable), "about": s.reason} for s in found
            ],
        }
    )


def _versions() -> Iterator[tuple[str, str]]:
    import torch

    import genhoi_kernels

    yield "genhoi", genhoi_kernels.__version__
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    for package in ("triton", "flash-attn", "diffusers"):
        yield package, _installed(package)
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "GPU", _gpu()
    info = genhoi_kernels.build_info()
    yield "CPU", info["cpu"]
    yield "compiled kernels", "yes" if info["native"] else info["reason"]
    labels = {
        "compiler": "compiled by",
        "compiled_isas": "instruction sets built",
        "usable_isas": "usable on this CPU",
        "isa": "in use",
        "cpu_features": "CPU features",
    }
    for key, label in labels.items():
        if key in info:
            yield label, _text(info[key])


def _gpu() -> str:
    """Name the GPU, or say why torch has none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch is built for CPUs alone"
    return "none: torch finds no GPU, or no driver that fits it"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _text(value: object) -> str:
    """Write a value of `build_info` as text: flags by name, lists with commas."""
    if isinstance(value, dict):
        return ", ".join(key for key, on in value.items() if on) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
