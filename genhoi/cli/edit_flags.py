"""The flags of `genhoi edit`, in groups, and the command line that repeats an edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import cloup

from genhoi.cli.common import DTYPES, PATH, repeat_command
from genhoi.editing.gpus import GPU_NAMES

__all__ = ["edit_flags", "edit_that_repeats"]

_GROUPS = (
    cloup.option_group(
        "What goes in",
        cloup.option(
            "--video",
            required=True,
            type=PATH,
            help="The clip: a video, a GIF, or a folder of images, of any size.",
        ),
        cloup.option(
            "--mask",
            "masks",
            required=True,
            multiple=True,
            type=PATH,
            help="White where to generate, hand and object; black elsewhere. A video, a folder, or "
            "one image for all frames. One for each --object. `genhoi mask` makes one.",
        ),
        cloup.option(
            "--object",
            "objects",
            required=True,
            multiple=True,
            type=PATH,
            help="A picture of the object. Repeat --mask and --object for more objects.",
        ),
        cloup.option(
            "--strength",
            "strengths",
            multiple=True,
            type=float,
            help="The factor on the weight of an object's tokens, one for each --object.  "
            "[default: 1]",
        ),
        cloup.option(
            "--first-frame",
            type=PATH,
            help="Frame 0, finished.  [default: frame 0 is generated too, unlike in the authors' "
            "release]",
        ),
        cloup.option("--last-frame", type=PATH, help="The last frame, finished."),
        cloup.option("--prompt", default="", help="What the result shows."),
        cloup.option("--negative-prompt", default="", help="What it does not show."),
        cloup.option(
            "--frames", type=int, help="Edit only so many frames from the start.  [default: all]"
        ),
    ),
    cloup.option_group(
        "Where to edit, and what stays",
        cloup.option(
            "--crop",
            type=click.Choice(["auto", "none"]),
            help="auto edits a box around the masks at the base's own size, and pastes it back: on "
            "the tiny base always, on others where the box is under a third of the frame. none "
            "edits the whole frame.  [default: auto]",
        ),
        cloup.option(
            "--size",
            help="WIDTHxHEIGHT that the model works at, multiples of 16, of Wan 2.2 TI2V of 32. "
            "The result has the clip's own size all the same.  [default: the base's own, 832x480; "
            "TI2V 1280x704; tiny 128x128]",
        ),
        cloup.option(
            "--keep-background/--no-keep-background",
            default=None,
            help="Put the source's own pixels back outside the masks, with a soft edge; or show "
            "all that the model made.  [default: keep]",
        ),
    ),
    cloup.option_group(
        "The model",
        cloup.option(
            "--base",
            default="tiny",
            show_default=True,
            help="tiny (a demonstration, no download), mosaic-untrained, the folder of a mosaic "
            "base, or the folder or Hub name of a diffusers Wan pipeline: image-to-video, VACE or "
            "text-to-video, of Wan 2.1 or 2.2.",
        ),
        cloup.option(
            "--adapter",
            "adapters",
            multiple=True,
            help="The folder or Hub name of an adapter that was trained on the base. Of Wan 2.2 "
            "with two transformers, one for both, or two, that for high noise first.  [default: "
            "tiny's own; the base's folder adapter/, and adapter_2/]",
        ),
        cloup.option(
            "--transformer",
            type=PATH,
            help="Folder of a transformer of the same sizes, as genhoi convert writes it, or a "
            "GGUF file of one, in the place of the base's own.  [default: the base's]",
        ),
        cloup.option(
            "--untrained-adapter",
            is_flag=True,
            help="Go on with an adapter that was not trained, though it adds nothing.",
        ),
        cloup.option(
            "--video-lora",
            type=PATH,
            help="Folder of low-rank weights for the base itself, as genhoi train --video-rank "
            "writes it.",
        ),
        cloup.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="[high=|low=]FILE[:WEIGHT]",
            help="A LoRA file for the base's transformer, as diffusers loads it, and the factor on "
            "it; of two transformers for both, or for the one of high or low noise. May be "
            "repeated.  [default: none; weight 1]",
        ),
        cloup.option(
            "--preset",
            type=click.Choice(["paper", "release"]),
            help="Gates and schedule.  [default: the adapter's; a fresh one's is paper]",
        ),
        cloup.option(
            "--schedule",
            help="Where each head places the object: paper, release, or one frame for all heads.  "
            "[default: the preset's]",
        ),
    ),
    cloup.option_group(
        "Sampling",
        cloup.option(
            "--few-steps",
            is_flag=True,
            help="4 steps, guidance 1 and shift 5 where these are not given: for a --lora that was "
            "made for few steps.",
        ),
        cloup.option(
            "--steps",
            type=int,
            help="Denoising steps.  [default: 50; Wan 2.2 A14B 40; tiny 25]",
        ),
        cloup.option(
            "--guidance",
            type=float,
            help="Weight of the prompt; 1 is none.  [default: 5; Wan 2.2 I2V-A14B 3.5, T2V-A14B "
            "4; tiny 1]",
        ),
        cloup.option(
            "--guidance-2",
            type=float,
            help="The same of a second transformer, for low noise.  [default: as --guidance; "
            "T2V-A14B 3]",
        ),
        cloup.option(
            "--shift",
            type=float,
            help="Of noise levels towards noise.  [default: 5; T2V-A14B 12; tiny 3]",
        ),
        cloup.option(
            "--seed", default=0, show_default=True, help="The same seed gives the same clip."
        ),
        cloup.option(
            "--mask-rule",
            type=click.Choice(["release", "any"]),
            help="When a token may see the object: mostly masked, or touched at all.  [default: "
            "release; tiny any]",
        ),
    ),
    cloup.option_group(
        "Long clips",
        cloup.option(
            "--window",
            type=int,
            help="Frames made at once, 1 + 4 n.  [default: 81; TI2V 121; tiny 49]",
        ),
        cloup.option(
            "--overlap",
            type=int,
            help="Frames that windows have in common and fade over, 1 + 4 n.  [default: 1]",
        ),
        cloup.option(
            "--match-colour/--no-match-colour",
            default=None,
            help="Give every window the source's colours outside the masks.  [default: no]",
        ),
    ),
    cloup.option_group(
        "Where to compute",
        cloup.option(
            "--device",
            help="cpu, cuda, or one GPU such as cuda:1; with --dry-run also one that is not here: "
            f"{', '.join(GPU_NAMES)}.  [default: cuda, else cpu]",
        ),
        cloup.option(
            "--dtype",
            type=click.Choice(list(DTYPES)),
            help="The type of the weights.  [default: bfloat16 on a GPU, else float32]",
        ),
        cloup.option(
            "--offload",
            default="none",
            show_default=True,
            type=click.Choice(["none", "model", "group"]),
            help="Keep on the GPU only one component, or one block of the transformer.",
        ),
    ),
    cloup.option_group(
        "Results",
        cloup.option(
            "--out",
            default="genhoi-edit",
            show_default=True,
            type=PATH,
            help="Folder for the results.",
        ),
        cloup.option(
            "--force", is_flag=True, help="Overwrite results, discard another unfinished edit."
        ),
        cloup.option(
            "--dry-run",
            is_flag=True,
            help="Only say what it would take, for which the base's configurations are enough: "
            "memory, time, and the --offload that fits. Draw preview.png: clip, masks, the box "
            "that is edited, and what the model sees.",
        ),
    ),
)
_PAIRS = ("keep_background", "match_colour")


def edit_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of `genhoi edit`, in this order in its help."""
    for group in reversed(_GROUPS):
        command = group(command)
    return command


def edit_that_repeats(options: dict[str, Any]) -> str:
    """Write the command line that does again what these options asked for."""
    flags = {"masks": "mask", "objects": "object", "strengths": "strength"}
    flags |= {"adapters": "adapter", "loras": "lora"}
    options = options | {f"no_{name}": True for name in _PAIRS if options[name] is False}
    return repeat_command("edit", options, left_out=("force", "dry_run"), flags=flags)
