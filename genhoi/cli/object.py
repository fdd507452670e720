"""The command `genhoi object`."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from genhoi.bases.load import base_defaults
from genhoi.cli.common import PATH, free_targets, parse_size, plain_errors
from genhoi.media import fit_image, write_image
from genhoi.media.image import read_image_with_alpha

__all__ = ["object_command"]

_SHAPE = (16, 9)  # of the preview without --size: that of most clips


@click.command("object", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("photo", type=PATH)
@click.option(
    "--out", default="object.png", show_default=True, type=PATH, help="The picture to write, .png."
)
@click.option(
    "--box",
    metavar="X,Y,W,H",
    help="Rectangle around the object, tight, in pixels of the upright photograph.  [default: all "
    "but a margin; not needed where the photograph has transparency]",
)
@click.option("--base", default="tiny", show_default=True, help="As in genhoi edit.")
@click.option(
    "--size",
    help="WIDTHxHEIGHT of the clip, multiples of 16, for the preview.  [default: 16:9, the base's "
    "long side]",
)
@click.option("--force", is_flag=True, help="Overwrite existing results.")
def object_command(
    photo: Path, out: Path, box: str | None, base: str, size: str | None, force: bool
) -> None:
    """Cut an object out of a PHOTO, onto the grey that the model expects around it.

    Writes the picture for `genhoi edit --object` and, beside it, NAME-preview.png: what the model
    sees of it.
    """
    with plain_errors():
        from genhoi.cli.cue_flags import numbers
        from genhoi.masking import cut_out

        if out.suffix.lower() != ".png":
            raise ValueError(f"--out: got {out}, want a name ending in .png")
        names = out.name, f"{out.stem}-preview.png"
        picture, preview = free_targets(out.parent, *names, force=force)
        sides = None
        if box is not None:
            x, y, w, h = numbers("--box", box, ("x", "y", "w", "h"))
            sides = x, y, w, h
        seen = parse_size(size) if size is not None else _usual_size(base)
        pixels, alpha = read_image_with_alpha(photo)
        found = cut_out(pixels, alpha=alpha, box=sides)
        write_image(picture, found.image, overwrite=force)
        write_image(preview, fit_image(found.image, seen), overwrite=force)
    for note in found.notes:
        click.echo(note, err=True)
    height, width = found.image.shape[:2]
    share = float(found.mask.to(torch.float32).mean())
    click.echo(
        f"Object: {picture}, {width}x{height} pixels, {share:.1%} of the photograph\n"
        f"As the model sees it, {seen[1]}x{seen[0]}: {preview}"
    )


def _usual_size(base: str) -> tuple[int, int]:
    """Give (height, width) of a clip of the usual shape that a base takes."""
    from genhoi.conditioning.grid import STRIDES

    long = base_defaults(base).long_side
    return STRIDES.side(long * _SHAPE[1] / _SHAPE[0]), STRIDES.side(long)
