"""The command `genhoi doctor`."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

import click
import torch
from rich.console import Console
from rich.table import Table

import genhoi_kernels

__all__ = ["doctor"]


@click.command()
def doctor() -> None:
    """Say which versions are installed and which backends run here, or why not."""
    console = Console()
    table = Table(show_header=False, title="Installation", title_justify="left")
    for name, value in _versions():
        table.add_row(name, value)
    console.print(table)
    table = Table(title="Backends, in the order in which they are tried", title_justify="left")
    for column in ("name", "usable", "about"):
        table.add_column(column)
    for status in genhoi_kernels.backends():
        table.add_row(status.name, "yes" if status.usable else "no", status.reason)
    console.print(table)


def _versions() -> Iterator[tuple[str, str]]:
    yield "genhoi", genhoi_kernels.__version__
    yield "python", platform.python_version()
    yield "torch", torch.__version__
    for package in ("triton", "flash-attn", "diffusers"):
        yield package, _installed(package)
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    yield "GPU", gpu
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
