"""Writes one of the held-out flat clips, which the mosaic model that ships learnt to edit.

python -m benchmarks.ablation.flat --index 3 --out DIR
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.ablation.flat import FlatHOI
from genhoi.data.synthetic import write_sample


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write into.")
@click.option("--index", default=0, show_default=True, type=click.IntRange(0), help="Which clip.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def main(out: Path, index: int, force: bool) -> None:
    """Write video.mp4, mask.mp4, object.png and object_mask.mp4."""
    try:
        write_sample(out, FlatHOI("test", clips=index + 1)[index], overwrite=force)
    except (OSError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Wrote video.mp4, mask.mp4, object.png and object_mask.mp4 to {out}")


if __name__ == "__main__":
    main()
