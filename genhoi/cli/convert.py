"""The command `genhoi convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup

from genhoi.cli.common import PATH, plain_errors

if TYPE_CHECKING:
    from genhoi.bases.converted import Surroundings

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
    cloup.option(
        "--pipeline",
        help="The folder or Hub name of the diffusers pipeline whose other components are taken: "
        "OUT is then a whole pipeline, for --base.",
    ),
)
@cloup.option_group(
    "Results",
    cloup.option("--out", required=True, type=PATH, help="Folder for transformer/ and adapter/."),
    cloup.option(
        "--copy",
        is_flag=True,
        help="Copy the pipeline's other components.  [default: link to them]",
    ),
    cloup.option("--force", is_flag=True, help="Replace existing results."),
)
def convert(
    weights: tuple[Path, ...],
    config: Path | None,
    pipeline: str | None,
    out: Path,
    copy: bool,
    force: bool,
) -> None:
    """Convert the authors' weights.

    They become a diffusers Wan transformer and a GenHOI adapter; with --pipeline, a whole pipeline
    that `genhoi edit --base OUT` takes. Nothing is cast. Weights are mapped into memory, not
    loaded.
    """
    with plain_errors(base="pipeline", transformer="weights"):
        from genhoi.bases.converted import Surroundings, check_out, save_converted
        from genhoi.convert import from_official, load_weights

        if copy and pipeline is None:
            raise ValueError("copy: got it without --pipeline, wanted both")
        surroundings = None if pipeline is None else Surroundings(pipeline)
        check_out(out, force=force, surroundings=surroundings)
        sizes = None if config is None else json.loads(config.read_text(encoding="utf-8"))
        transformer, adapter = from_official(load_weights(weights), sizes)
        linked = save_converted(out, transformer, adapter, surroundings, copy=copy)
    click.echo(f"Transformer: {out / 'transformer'}\nAdapter: {out / 'adapter'}")
    if surroundings is not None:
        click.echo(_whole(surroundings, out, linked=linked, copy=copy))


def _whole(surroundings: Surroundings, out: Path, *, linked: bool, copy: bool) -> str:
    """Say what the pipeline was made of, and what to do with it."""
    names = ", ".join(surroundings.components)
    if linked:
        how = f"Links, to be kept where they lead: {names} -> {surroundings.folder}"
    else:
        how = f"Copies{'' if copy else ', for links are impossible here'}: {names}"
    return f"{how}\nPipeline: {out}, for genhoi edit --base {out}"
