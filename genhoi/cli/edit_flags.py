"""The flags of `genhoi edit`, and the command line that repeats an edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from genhoi.cli.common import DTYPES, PATH, repeat_command

__all__ = ["edit_flags", "edit_that_repeats"]

_FLAGS = (
    click.option(
        "--video", required=True, type=PATH, help="Clip: video, GIF, or folder of images."
    ),
    click.option(
        "--mask",
        "masks",
        required=True,
        multiple=True,
        type=PATH,
        help="White where to generate, one for each --object: video, folder or image.",
    ),
    click.option(
        "--object",
        "objects",
        required=True,
        multiple=True,
        type=PATH,
        help="Picture of an object; may be repeated.",
    ),
    click.option(
        "--first-frame",
        type=PATH,
        help="Frame 0, finished.  [default: frame 0 is generated too, unlike in the authors' "
        "release]",
    ),
    click.option("--last-frame", type=PATH, help="The last frame, finished."),
    click.option("--prompt", default="", help="What the result shows."),
    click.option("--negative-prompt", default="", help="What it does not show."),
    click.option(
        "--base",
        default="tiny",
        show_default=True,
        help="tiny (small, no download), tiny-untrained, folder of a tiny base, or folder or Hub "
        "name of a diffusers Wan2.1 I2V pipeline.",
    ),
    click.option("--adapter", help="Folder or Hub name.  [default: tiny's own; else untrained]"),
    click.option(
        "--video-lora",
        type=PATH,
        help="Folder of low-rank weights for the base itself, as genhoi train --video-rank "
        "writes it.",
    ),
    click.option(
        "--preset",
        type=click.Choice(["paper", "release"]),
        help="Gates and schedule.  [default: the adapter's; a fresh one's is paper]",
    ),
    click.option(
        "--schedule", help="paper, release, or one frame for all heads.  [default: preset's]"
    ),
    click.option(
        "--strength",
        "strengths",
        multiple=True,
        type=float,
        help="Factor on the weight of an object's tokens, one for each --object.  [default: 1]",
    ),
    click.option("--steps", type=int, help="Denoising steps.  [default: 50; tiny 25]"),
    click.option("--guidance", type=float, help="On the text; 1 is none.  [default: 5; tiny 1]"),
    click.option(
        "--shift", type=float, help="Of noise levels towards noise.  [default: 5; tiny 3]"
    ),
    click.option("--seed", default=0, show_default=True, help="The same seed gives the same clip."),
    click.option("--frames", type=int, help="From the start, 1 + 4 n.  [default: all]"),
    click.option("--window", type=int, help="Frames at once, 1 + 4 n.  [default: 81; tiny 49]"),
    click.option(
        "--size",
        help="WIDTHxHEIGHT, multiples of 16.  [default: the clip's; long side at most 832, "
        "tiny 96]",
    ),
    click.option(
        "--mask-rule",
        type=click.Choice(["release", "any"]),
        help="When a token may see the object: mostly masked, or touched at all.  [default: "
        "release; tiny any]",
    ),
    click.option(
        "--keep-background",
        is_flag=True,
        help="Put the source's own pixels back outside the masks, with a soft edge.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(list(DTYPES)),
        help="Computed in.  [default: bfloat16 on a GPU, else float32]",
    ),
    click.option("--device", help="Where to compute.  [default: cuda if there is one, else cpu]"),
    click.option(
        "--offload",
        default="none",
        show_default=True,
        type=click.Choice(["none", "model", "group"]),
        help="Keep on the GPU only one component, or one block of the transformer.",
    ),
    click.option(
        "--out", default="genhoi-edit", show_default=True, type=PATH, help="Folder for the results."
    ),
    click.option(
        "--force", is_flag=True, help="Overwrite results, discard another unfinished edit."
    ),
    click.option("--dry-run", is_flag=True, help="Only say what it would take."),
)


def edit_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of `genhoi edit`, in this order in its help."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command


def edit_that_repeats(options: dict[str, Any]) -> str:
    """Write the command line that does again what these options asked for."""
    flags = {"masks": "mask", "objects": "object", "strengths": "strength"}
    return repeat_command("edit", options, left_out=("force", "dry_run"), flags=flags)
