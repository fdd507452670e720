"""The command `genhoi convert`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
        "OUT is then a whole pipeline, for --base. Of the VACE version it gives the trunk too.",
    ),
    cloup.option(
        "--gates-from",
        type=click.Choice(["base", "lora"]),
        help="Of the VACE version: whose gates count where the LoRA file has some too.  [default: "
        "base, as in the authors' code]",
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
    gates_from: Literal["base", "lora"] | None,
    copy: bool,
    force: bool,
) -> None:
    """Convert the authors' weights.

    Those of their Wan or their VACE version become a diffusers transformer and a GenHOI adapter;
    with --pipeline, a whole pipeline that `genhoi edit --base OUT` takes. Nothing is cast or
    merged. Weights are mapped into memory, not loaded.
    """
    with plain_errors(base="pipeline", transformer="weights"):
        from genhoi.bases.converted import Surroundings, check_out, save_converted

        if copy and pipeline is None:
            raise ValueError("copy: got it without --pipeline, wanted both")
        surroundings = None if pipeline is None else Surroundings(pipeline)
        check_out(out, force=force, surroundings=surroundings)
        sizes = None if config is None else json.loads(config.read_text(encoding="utf-8"))
        transformer, adapter = _convert(weights, sizes, surroundings, gates_from)
        linked = save_converted(out, transformer, adapter, surroundings, copy=copy)
    click.echo(f"Transformer: {out / 'transformer'}\nAdapter: {out / 'adapter'}")
    if surroundings is not None:
        click.echo(_whole(surroundings, out, linked=linked, copy=copy))


def _convert(
    paths: tuple[Path, ...],
    sizes: dict[str, Any] | None,
    surroundings: Surroundings | None,
    gates_from: Literal["base", "lora"] | None,
) -> tuple[Any, Any]:
    """Make transformer and adapter; warnings become lines for people."""
    from genhoi.convert import (
        GatesWarning,
        from_official,
        is_vace_release,
        join_files,
        load_weights,
    )

    files = [load_weights([path]) for path in paths]
    if not is_vace_release(files):
        if gates_from is not None:
            raise ValueError("gates_from: got it with weights of the Wan version, wanted none")
        return from_official(load_weights(paths), sizes)
    if surroundings is None:
        parts = join_files(files)
    else:
        parts = join_files(files, load_weights(surroundings.own_weights) or None)
        known = {"vace_layers": surroundings.config.get("vace_layers")}
        sizes = {name: x for name, x in known.items() if x is not None} | (sizes or {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GatesWarning)
        converted = from_official(
            parts.state_dict, sizes, lora=parts.lora, gates_from=gates_from or "base"
        )
    for warning in caught:
        click.echo(f"Note: {warning.message}")
    return converted


def _whole(surroundings: Surroundings, out: Path, *, linked: bool, copy: bool) -> str:
    """Say what the pipeline was made of, and what to do with it."""
    names = ", ".join(surroundings.components)
    if linked:
        how = f"Links, to be kept where they lead: {names} -> {surroundings.folder}"
    else:
        how = f"Copies{'' if copy else ', for links are impossible here'}: {names}"
    return f"{how}\nPipeline: {out}, for genhoi edit --base {out}"
