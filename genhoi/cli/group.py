"""The `genhoi` command."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

import genhoi_kernels
from genhoi.cli.bench import bench
from genhoi.cli.common import (
    DTYPES,
    PATH,
    free_targets,
    need_matplotlib,
    plain_errors,
    progress_bar,
    read_inputs,
)
from genhoi.cli.edit import edit
from genhoi.cli.eval import eval_command
from genhoi.cli.train import train
from genhoi.conditioning.masks import MaskRule
from genhoi.inspection.figure import draw_inspection
from genhoi.inspection.inspect import Inspection, inspect_clip, summary_table, write_summary
from genhoi.media.media import read_image

__all__ = ["main"]


@click.group()
@click.version_option(genhoi_kernels.__version__, prog_name="genhoi")
def main() -> None:
    """Video editing with hand-object interaction (GenHOI): tools around the kernels."""


main.add_command(edit)
main.add_command(eval_command)
main.add_command(bench)
main.add_command(train)


@main.command()
@click.option("--video", required=True, type=PATH, help="Clip: video, GIF, or folder of images.")
@click.option(
    "--mask",
    required=True,
    type=PATH,
    help="White where hand and object are: video, folder or image.",
)
@click.option("--object", "object_", required=True, type=PATH, help="Picture of the object.")
@click.option(
    "--out", default="genhoi-inspect", show_default=True, type=PATH, help="Folder for the results."
)
@click.option(
    "--heads", default=12, show_default=True, type=click.IntRange(1), help="Attention heads."
)
@click.option(
    "--head-dim", default=64, show_default=True, type=click.IntRange(2), help="Values a head, even."
)
@click.option(
    "--frames",
    type=click.IntRange(5),
    help="Frames from the start, 1 + 4 n.  [default: all, at most 81]",
)
@click.option(
    "--size",
    help="WIDTHxHEIGHT, multiples of 16.  [default: the clip's, at most 480 on the long side]",
)
@click.option(
    "--mask-rule",
    default="release",
    show_default=True,
    type=click.Choice(["release", "any"]),
    help="When a token counts as masked: mostly inside, or touched at all.",
)
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(list(DTYPES)),
    help="Computed in.",
)
@click.option("--backend", help="One that `genhoi doctor` lists.  [default: the first that fits]")
@click.option("--device", default="cpu", show_default=True, help="Where to compute, e.g. cuda.")
@click.option("--force", is_flag=True, help="Overwrite existing results.")
def inspect(
    video: Path,
    mask: Path,
    object_: Path,
    out: Path,
    heads: int,
    head_dim: int,
    frames: int | None,
    size: str | None,
    mask_rule: MaskRule,
    dtype: str,
    backend: str | None,
    device: str,
    force: bool,
) -> None:
    """Show where a clip looks at the object's picture, frame by frame, and what the op costs.

    Writes inspect.png and inspect.json. No model is loaded: the clip's own colours stand for its
    features.
    """
    console = Console()
    with plain_errors():
        need_matplotlib()
        picture, numbers = free_targets(out, "inspect.png", "inspect.json", force=force)
        with console.status("Reading the clip"):
            clip, inside = read_inputs(video, mask, frames, size)
            image = read_image(object_)
        with progress_bar(console) as bar:
            task = bar.add_task("")

            def show(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total, description=what)

            inspection = inspect_clip(
                clip,
                inside,
                image,
                heads=heads,
                head_dim=head_dim,
                dtype=DTYPES[dtype],
                backend=backend,
                mask_rule=mask_rule,
                device=device,
                progress=show,
            )
            bar.update(task, description="drawing")
            draw_inspection(picture, inspection, overwrite=force)
            write_summary(numbers, inspection, overwrite=force)
    _report(console, inspection)
    # Not wrapped to the terminal's width, so that paths can be copied.
    click.echo(f"Picture: {picture}\nNumbers: {numbers}")


@main.command()
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


@main.command()
@click.option(
    "--weights",
    required=True,
    multiple=True,
    type=PATH,
    help="The release's: .safetensors or .pth, an index.json, or a folder; may be repeated.",
)
@click.option("--config", type=PATH, help="The release's, JSON.  [default: told by the weights]")
@click.option("--out", required=True, type=PATH, help="Folder for transformer/ and adapter/.")
@click.option("--force", is_flag=True, help="Overwrite existing results.")
def convert(weights: tuple[Path, ...], config: Path | None, out: Path, force: bool) -> None:
    """Convert the authors' weights into a diffusers Wan transformer and a GenHOI adapter.

    Nothing is cast. Weights are mapped into memory, not loaded.
    """
    with plain_errors():
        from genhoi.models.wan.convert import from_official, load_weights

        folders = out / "transformer", out / "adapter"
        for folder in folders:
            if folder.exists() and not force:
                raise FileExistsError(f"--out: {folder} exists already; --force overwrites it")
        sizes = None if config is None else json.loads(config.read_text(encoding="utf-8"))
        transformer, adapter = from_official(load_weights(weights), sizes)
        # Writing copies one shard at a time.
        transformer.save_pretrained(folders[0], max_shard_size="5GB")
        adapter.save_pretrained(folders[1])
    click.echo(f"Transformer: {folders[0]}\nAdapter: {folders[1]}")


# -------------------------------------------------------------------------------------- for inspect


def _report(console: Console, inspection: Inspection) -> None:
    console.print(summary_table(inspection))
    timing, about = inspection.timing, inspection.environment
    if timing is not None:
        console.print(
            f"One call on rotated inputs, heads: {timing.heads}, median of {timing.repeats}: "
            f"this op {timing.op:.3f} s, PyTorch SDPA with a dense mask {timing.sdpa:.3f} s. "
            f"The op with its own rotation: {timing.op_with_rotation:.3f} s.\n"
            f"{about['device']}, {about['threads']} threads, backend {about['backend']}, "
            f"torch {about['torch']}.",
            highlight=False,
        )


# --------------------------------------------------------------------------------------- for doctor


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
            yield label, _words(info[key])


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _words(value: object) -> str:
    """A value of `build_info` as text: flags by name, lists with commas."""
    if isinstance(value, dict):
        return ", ".join(key for key, on in value.items() if on) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)


if __name__ == "__main__":
    main()
