"""What each part of the method does in the tiny model: it is left out, on the same held-out clips.

    python -m benchmarks.tiny_model.parts --base results/tiny/leg-3/pipeline --out results/parts

Nothing is trained again, so the numbers say what this model makes of a part, not what another one
would have learnt without it. Writes parts.csv and README.md. Killed and started again it goes on
with the next edit.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.ablation.results import mean_error
from benchmarks.tiny_model.measure_clip import Condition, TestClips, edit, object_psnr
from benchmarks.tiny_model.measure_files import Rows, base_digest
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi_kernels.files import whole_file

__all__ = ["VARIANTS", "Variant", "measure_parts", "table"]

_THIRDS = ("first", "middle", "last")


@dataclass(frozen=True)
class Variant:
    """A way to put the adapter to work.

    Args:
        name: for people.
        options: of `GenHOIPipeline.from_pretrained`.
        reference: whether the object has weight.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: bool = True


# The first one is what the others are compared with.
VARIANTS = (
    Variant("everything"),
    Variant("no sliding: all heads at frame 0", {"schedule": 0.0}),
    Variant("no sliding: all heads at frame -1", {"schedule": -1.0}),
    Variant("the release's schedule", {"schedule": "release"}),
    Variant("no mask gate", {"mask_gate": False}),
    Variant("no flow gate", {"flow_gate": None}),
    Variant("no reference", reference=False),
)


def measure_parts(
    base: Path,
    clips: TestClips,
    condition: Condition,
    *,
    steps: int | None,
    rows: Rows,
) -> dict[str, np.ndarray]:
    """Measure all variants.

    Args:
        base: folder of the model.
        clips: the held-out clips.
        condition: what edits are given.
        steps: of Euler's method; None for the base's own.
        rows: where rows are kept.

    Returns:
        The object's PSNR of every variant by name, [clips, 3], dB by thirds; NaN where it is not
        seen.
    """
    results = {}
    for number, variant in enumerate(VARIANTS):
        pipeline = GenHOIPipeline.from_pretrained(base, **variant.options)
        listed = []
        for i in range(clips.clips):
            row = rows.get(
                f"{condition}-{number}-{i:03}",
                lambda i=i, pipeline=pipeline, variant=variant: _row(
                    pipeline, clips, condition, variant, index=i, steps=steps
                ),
            )
            listed.append(row["object_psnr"])
        results[variant.name] = np.array(listed, dtype=float)
        mean = mean_error(np.nanmean(results[variant.name], 1))[0]
        click.echo(f"{variant.name}: object PSNR {mean:.2f} dB")
    return results


def _row(
    pipeline: GenHOIPipeline,
    clips: TestClips,
    condition: Condition,
    variant: Variant,
    *,
    index: int,
    steps: int | None,
) -> dict[str, Any]:
    sample = clips.sample(index, condition.mask)
    edited = edit(
        pipeline, sample, condition, index=index, steps=steps, reference=variant.reference
    )
    return {"object_psnr": object_psnr(sample, edited)}


def table(results: Mapping[str, np.ndarray]) -> str:
    """Write the means and, clip by clip, the differences to the first variant, as Markdown.

    Args:
        results: of `measure_parts`.
    """
    whole = next(iter(results.values()))
    lines = ["| model | first third | middle | last third |", "| --- | --- | --- | --- |"]
    for name, values in results.items():
        cells = []
        for mine, theirs in zip(values.T, whole.T, strict=True):
            mean, _ = mean_error(mine)
            difference, error = mean_error(mine - theirs)
            beside = "" if values is whole else f" ({difference:+.2f} ± {error:.2f})"
            cells.append(f"{mean:.2f}{beside}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_parts(
    out: Path, results: Mapping[str, np.ndarray], *, command: str, about: Sequence[str]
) -> None:
    """Write parts.csv, a line for each clip, and README.md.

    Args:
        out: the folder.
        results: of `measure_parts`.
        command: that measured them.
        about: sentences on clips and condition.
    """
    with whole_file(out / "parts.csv") as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "clip", *_THIRDS])
            for name, values in results.items():
                for clip, row in enumerate(values):
                    writer.writerow([name, clip, *("" if np.isnan(x) else f"{x:.4f}" for x in row)])
    text = f"""# What each part does in the tiny model

`{command}`:
{" ".join(about)}

Object PSNR, dB: the mean over clips; in brackets the difference to the first row and its standard
error, clip by clip. Parts are left out of the trained model; nothing was trained again.

{table(results)}
"""
    with whole_file(out / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


@click.command()
@click.option("--base", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the result.")
@click.option(
    "--work",
    default="results/tiny-parts",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the rows that are measured already.",
)
@click.option("--clips", default=32, show_default=True, help="Held-out clips.")
@click.option("--frames", default=49, show_default=True, help="Of each clip.")
@click.option("--steps", type=int, help="Of Euler's method.  [default: the base's own]")
@click.option("--condition", default="none-tight", show_default=True)
def main(
    base: Path, out: Path, work: Path, clips: int, frames: int, steps: int | None, condition: str
) -> None:
    """Measure the model in a folder with each part left out."""
    try:
        given = Condition.parse(condition)
        names = [variant.name for variant in VARIANTS]
        job = {"model": base_digest(base), "frames": frames, "steps": steps, "models": names}
        rows = Rows(work, job)
    except (ValueError, FileExistsError) as error:
        raise click.ClickException(str(error)) from error
    results = measure_parts(base, TestClips(clips, frames), given, steps=steps, rows=rows)
    frame = "the first frame" if given.given == "first" else "no frame"
    about = [
        f"{clips} held-out clips of {frames} frames (test split, seed 0), {frame} given,",
        f"masks of kind {given.mask}; torch {torch.__version__}.",
    ]
    command = " ".join(["python -m benchmarks.tiny_model.parts", *sys.argv[1:]])
    write_parts(out, results, command=command, about=about)
    click.echo(table(results))


if __name__ == "__main__":
    main()
