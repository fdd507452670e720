"""The command `genhoi convert`."""

from __future__ import annotations

import json
from pathlib import Path

import click
import cloup

from genhoi.cli.common import PATH, plain_errors

__all__ = ["convert"]


@cloup.command()
@cloup.option_group(
    "Inputs",
    cloup.option(
        "--weights",
        required=True,
        multiple=True,
        type=PATH,
        help="The release's weights: files of safetensors or torch.save under any name, an "
        "index.json, or a folder; may be repeated.",
    ),
    cloup.option(
        "--config", type=PATH, help="The release's settings, JSON.  [default: told by the weights]"
    ),
)
@cloup.option_group(
    "Results",
    cloup.option("--out", required=True, type=PATH, help="Folder for transformer/ and adapter/."),
    cloup.option("--force", is_flag=True, help="Overwrite existing results."),
)
def convert(weights: tuple[Path, ...], config: Path | None, out: Path, force: bool) -> None:
    """Convert the authors' weights.

    They become a diffusers Wan transformer and a GenHOI adapter. Nothing is cast. Weights are
    mapped into memory, not loaded.
    """
    with plain_errors():
        from genhoi.convert import from_official, load_weights

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
