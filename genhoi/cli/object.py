"""The command `genhoi object`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloup

from genhoi.cli.common import PATH, free_targets, parse_size
from genhoi.cli.output import Output, with_output

__all__ = ["object_command"]


@cloup.command("object")
@cloup.argument("photo", type=PATH)
@cloup.option_group(
    "What is cut out",
    cloup.option(
        "--box",
        metavar="X,Y,W,H",
        help="A rectangle around the object, tight, in pixels of the upright photograph.  "
        "[default: all but a margin; not needed where the photograph has transparency]",
    ),
)
@cloup.option_group(
    "The preview",
    cloup.option("--base", default="tiny", show_default=True, help="The base, as in genhoi edit."),
    cloup.option(
        "--size",
        help="WIDTHxHEIGHT that the model works at, multiples of 16.  [default: the base's own]",
    ),
)
@cloup.option_group(
    "Results",
    cloup.option(
        "--out",
        default="object.png",
        show_default=True,
        type=PATH,
        help="The picture to write, .png.",
    ),
    cloup.option("--force", is_flag=True, help="Overwrite existing results."),
)
@with_output
def object_command(output: Output, photo: Path, **options: Any) -> None:
    """Cut an object out of a PHOTO, onto the model's grey.

    Writes the picture for `genhoi edit --object` and, beside it, NAME-preview.png: what the model
    sees of it.
    """
    from genhoi.bases.load import base_settings
    from genhoi.cli.cue_flags import numbers
    from genhoi.masking import cut_out
    from genhoi.media import fit_image, write_image
    from genhoi.media.image import read_image_with_alpha

    out, force = options["out"], options["force"]
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: got {out}, want a name ending in .png")
    names = out.name, f"{out.stem}-preview.png"
    picture, preview = free_targets(out.parent, *names, force=force)
    box = None
    if options["box"] is not None:
        x, y, w, h = numbers("--box", options["box"], ("x", "y", "w", "h"))
        box = x, y, w, h
    size = options["size"]
    seen = base_settings(options["base"]).defaults.size if size is None else parse_size(size)
    pixels, alpha = read_image_with_alpha(photo)
    found = cut_out(pixels, alpha=alpha, box=box)
    write_image(picture, found.image, overwrite=force)
    write_image(preview, fit_image(found.image, seen), overwrite=force)
    for note in found.notes:
        output.warn(f"Warning: {note}")
    height, width = found.image.shape[:2]
    share = float(found.mask.float().mean())
    output.say(
        f"Object: {picture}, {width}x{height} pixels, {share:.1%} of the photograph\n"
        f"As the model sees it, {seen[1]}x{seen[0]}: {preview}"
    )
    output.finish({"object": picture, "preview": preview, "share": share, "notes": found.notes})
