"""The command `genhoi inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup
from rich.console import Console

from genhoi.cli.common import (
    DTYPES,
    PATH,
    free_targets,
    parse_size,
    plain_errors,
    progress_bar,
)
from genhoi.cli.device import chosen_device
from genhoi.extras import need

if TYPE_CHECKING:
    from genhoi.conditioning.masks import MaskRule
    from genhoi.inspection.inspect import Inspection

__all__ = ["inspect"]

_MOST_FRAMES = 81
_LONG_SIDE = 480


@cloup.command()
@cloup.option_group(
    "Inputs",
    cloup.option("--video", required=True, type=PATH, help="Clip: video, GIF, or image folder."),
    cloup.option(
        "--mask",
        required=True,
        type=PATH,
        help="White where hand and object are: video, folder or image.",
    ),
    cloup.option("--object", "object_", required=True, type=PATH, help="Picture of the object."),
)
@cloup.option_group(
    "Settings",
    cloup.option(
        "--frames",
        type=click.IntRange(5),
        help="Frames from the start, 1 + 4 n.  [default: all, at most 81]",
    ),
    cloup.option(
        "--size",
        help="WIDTHxHEIGHT, multiples of 16.  [default: the clip's, at most 480 on the long side]",
    ),
    cloup.option(
        "--mask-rule",
        default="release",
        show_default=True,
        type=click.Choice(["release", "any"]),
        help="When a token counts as masked: mostly inside, or touched at all.",
    ),
    cloup.option(
        "--heads",
        default=12,
        show_default=True,
        type=click.IntRange(1),
        help="How many attention heads.",
    ),
    cloup.option(
        "--head-dim",
        default=64,
        show_default=True,
        type=click.IntRange(2),
        help="How many values a head has, even.",
    ),
)
@cloup.option_group(
    "Computing",
    cloup.option(
        "--device", default="cpu", show_default=True, help="Where to compute: cpu, cuda, cuda:1."
    ),
    cloup.option(
        "--dtype",
        default="float32",
        show_default=True,
        type=click.Choice(list(DTYPES)),
        help="What is computed in.",
    ),
    cloup.option(
        "--backend", help="One that `genhoi doctor` lists.  [default: the first that fits]"
    ),
)
@cloup.option_group(
    "Results",
    cloup.option(
        "--out",
        default="genhoi-inspect",
        show_default=True,
        type=PATH,
        help="Folder for the results.",
    ),
    cloup.option("--force", is_flag=True, help="Overwrite existing results."),
)
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
    """Show where a clip looks at an object.

    Draws, frame by frame, which of its tokens look at the object's picture, and times the op.
    Writes inspect.png and inspect.json. No model is loaded: the clip's own colours stand for its
    features.
    """
    console = Console()
    with plain_errors():
        from genhoi.editing.inputs import read_clip_and_masks
        from genhoi.inspection.figure import draw_inspection
        from genhoi.inspection.inspect import inspect_clip
        from genhoi.inspection.summary import write_summary
        from genhoi.media import read_image

        need("matplotlib", "drawing")
        where = chosen_device(device)
        picture, numbers = free_targets(out, "inspect.png", "inspect.json", force=force)
        with console.status("Reading the clip"):
            clip, (inside,) = read_clip_and_masks(
                video,
                [mask],
                frames=frames,
                most_frames=_MOST_FRAMES,
                size=None if size is None else parse_size(size),
                long_side=_LONG_SIDE,
            )
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
                device=str(where),
                progress=show,
            )
            bar.update(task, description="drawing")
            draw_inspection(picture, inspection, overwrite=force)
            write_summary(numbers, inspection, overwrite=force)
    _report(console, inspection)
    # Not wrapped to the terminal's width, so that paths can be copied.
    click.echo(f"Picture: {picture}\nNumbers: {numbers}")


def _report(console: Console, inspection: Inspection) -> None:
    from genhoi.inspection.summary import summary_table

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
