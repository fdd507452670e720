"""The command `genhoi edit`."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
import time
from dataclasses import asdict
from typing import Any

import click
import torch
from rich.console import Console

from genhoi.bases.load import base_config, base_defaults
from genhoi.cli.common import DTYPES, PATH, parse_size, plain_errors, progress_bar
from genhoi.editing.files import EditInputs, Targets, read_inputs, write_results
from genhoi.editing.record import make_record

__all__ = ["edit"]


@click.command()
@click.option("--video", required=True, type=PATH, help="Clip: video, GIF, or folder of images.")
@click.option(
    "--mask",
    "masks",
    required=True,
    multiple=True,
    type=PATH,
    help="White where to generate, one for each --object: video, folder or image.",
)
@click.option(
    "--object",
    "objects",
    required=True,
    multiple=True,
    type=PATH,
    help="Picture of an object; may be repeated.",
)
@click.option(
    "--first-frame",
    type=PATH,
    help="Frame 0, finished.  [default: frame 0 is generated too, unlike in the authors' release]",
)
@click.option("--last-frame", type=PATH, help="The last frame, finished.")
@click.option("--prompt", default="", help="What the result shows.")
@click.option("--negative-prompt", default="", help="What it does not show.")
@click.option(
    "--base",
    default="tiny",
    show_default=True,
    help="tiny (small, no download), tiny-untrained, folder of a tiny base, or folder or Hub name "
    "of a diffusers Wan2.1 I2V pipeline.",
)
@click.option("--adapter", help="Folder or Hub name.  [default: tiny's own; else untrained]")
@click.option(
    "--video-lora",
    type=PATH,
    help="Folder of low-rank weights for the base itself, as genhoi train --video-rank writes it.",
)
@click.option(
    "--preset",
    type=click.Choice(["paper", "release"]),
    help="Gates and schedule.  [default: the adapter's; a fresh one's is paper]",
)
@click.option("--schedule", help="paper, release, or one frame for all heads.  [default: preset's]")
@click.option(
    "--strength",
    "strengths",
    multiple=True,
    type=float,
    help="Factor on the weight of an object's tokens, one for each --object.  [default: 1]",
)
@click.option("--steps", type=int, help="Denoising steps.  [default: 50; tiny 25]")
@click.option("--guidance", type=float, help="On the text; 1 is none.  [default: 5; tiny 1]")
@click.option("--shift", type=float, help="Of noise levels towards noise.  [default: 5; tiny 3]")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same clip.")
@click.option("--frames", type=int, help="From the start, 1 + 4 n.  [default: all]")
@click.option("--window", type=int, help="Frames at once, 1 + 4 n.  [default: 81; tiny 49]")
@click.option(
    "--size",
    help="WIDTHxHEIGHT, multiples of 16.  [default: the clip's; long side at most 832, tiny 96]",
)
@click.option(
    "--mask-rule",
    type=click.Choice(["release", "any"]),
    help="When a token may see the object: mostly masked, or touched at all.  [default: release; "
    "tiny any]",
)
@click.option(
    "--keep-background",
    is_flag=True,
    help="Put the source's own pixels back outside the masks, with a soft edge.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    help="Computed in.  [default: bfloat16 on a GPU, else float32]",
)
@click.option("--device", help="Where to compute.  [default: cuda if there is one, else cpu]")
@click.option(
    "--offload",
    default="none",
    show_default=True,
    type=click.Choice(["none", "model", "group"]),
    help="Keep on the GPU only one component, or one block of the transformer.",
)
@click.option(
    "--out", default="genhoi-edit", show_default=True, type=PATH, help="Folder for the results."
)
@click.option("--force", is_flag=True, help="Overwrite results, discard another unfinished edit.")
@click.option("--dry-run", is_flag=True, help="Only say what it would take.")
def edit(**options: Any) -> None:
    """Put objects into a clip, where the masks are.

    Writes edited.mp4, side_by_side.mp4, sheet.png (some frames of source, mask and result),
    attention.png (where the clip looked at the objects) and edit.json, with everything needed to
    repeat it. An edit that was interrupted goes on after its
    last finished window when the command is repeated.
    """
    console = Console()
    with plain_errors():
        options["device"] = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = options["device"] != "cpu"
        options["dtype"] = options["dtype"] or ("bfloat16" if on_gpu else "float32")
        schedule = _schedule(options["schedule"])
        targets = Targets(options["out"], overwrite=options["force"])
        config = base_config(options["base"])
        for name, value in asdict(base_defaults(options["base"])).items():
            if options.get(name, "") is None:
                options[name] = value
        inputs = _read(options)
        for note in inputs.notes:
            click.echo(note)
        if options["dry_run"]:
            _dry_run(console, options, inputs, config)
            return
        _run(console, options, inputs, targets, schedule)


def _schedule(text: str | None) -> str | float | None:
    if text in (None, "paper", "release"):
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--schedule: got {text!r}, want paper, release, or the frame of all heads, a number"
        ) from None


def _read(options: dict[str, Any]) -> EditInputs:
    size = options["size"]
    return read_inputs(
        options["video"],
        options["masks"],
        options["objects"],
        first_frame=options["first_frame"],
        last_frame=options["last_frame"],
        frames=options["frames"],
        size=None if size is None else parse_size(size),
        long_side=base_defaults(options["base"]).long_side,
    )


def _dry_run(
    console: Console, options: dict[str, Any], inputs: EditInputs, config: dict[str, Any]
) -> None:
    from rich.table import Table

    from genhoi.editing.estimate import estimate_edit
    from genhoi.models.sampling import noise_levels

    noise_levels(options["steps"], options["shift"])  # raises
    clip = inputs.clip
    found = estimate_edit(
        config,
        frames=clip.num_frames,
        size=(clip.height, clip.width),
        objects=len(inputs.objects),
        steps=options["steps"],
        guidance=options["guidance"],
        window=options["window"],
        dtype=DTYPES[options["dtype"]],
        device=torch.device(options["device"]),
    )
    spans = ", ".join(f"{begin}-{end - 1}" for begin, end in found.windows)
    f, h, w = found.grid
    table = Table(show_header=False, title="Dry run: nothing is computed", title_justify="left")
    for row in (
        ("clip", f"{clip.num_frames} frames of {clip.width}x{clip.height}, {float(clip.fps):g}/s"),
        ("windows", f"{len(found.windows)}: frames {spans}"),
        ("tokens", f"{f} x {h} x {w} = {f * h * w:,}, and {found.reference_tokens:,} of objects"),
        ("transformer", f"{found.parameters:,} parameters, {_bytes(found.weight_bytes)}"),
        ("objects' keys and values", _bytes(found.cache_bytes)),
        ("activations", f"about {_bytes(found.working_bytes)}; VAE and encoders not counted"),
        ("work", f"{found.flops:.3g} operations"),
        ("time", f"about {_time(found.seconds)} on {options['device']}, a rough guess from "
                 f"this machine's speed just now; encoding and decoding come on top"),
    ):  # fmt: skip
        table.add_row(*row)
    console.print(table)


def _run(
    console: Console,
    options: dict[str, Any],
    inputs: EditInputs,
    targets: Targets,
    schedule: str | float | None,
) -> None:
    from genhoi.editing.contact_sheet import EditedRow, draw_contact_sheet
    from genhoi.editing.figure import draw_attention, frame_means

    with console.status("Loading the base"):
        from genhoi.editing.pipeline import GenHOIPipeline

        pipeline = GenHOIPipeline.from_pretrained(
            options["base"],
            adapter=options["adapter"],
            video_lora=options["video_lora"],
            device=options["device"],
            dtype=DTYPES[options["dtype"]],
            offload=options["offload"],
            preset=options["preset"],
            schedule=schedule,
        )
    notes = [*inputs.notes, *_notes(pipeline, inputs)]
    for note in notes[len(inputs.notes) :]:
        click.echo(note)
    settings = {
        name: options[name]
        for name in (
            "prompt", "negative_prompt", "steps", "guidance", "shift", "seed", "window",
            "mask_rule",
        )
    }  # fmt: skip
    settings["strengths"] = list(options["strengths"]) or None
    start = time.monotonic()
    first_window: list[int] = []
    attention: dict[int, torch.Tensor] = {}
    with progress_bar(console, "left") as bar:
        task = bar.add_task("preparing", total=1.0, left="")

        def show(progress: Any) -> None:
            first_window.append(progress.window)
            if progress.attention is not None:
                attention[progress.window] = progress.attention
            bar.update(
                task,
                completed=progress.done,
                description=f"window {progress.window + 1} of {progress.windows}, "
                f"step {progress.step} of {progress.steps}",
                left=f"{_time(progress.seconds_left)} left",
            )

        layer = len(pipeline.base.transformer.blocks) // 2
        try:
            edited = pipeline(
                inputs.clip,
                inputs.masks,
                inputs.objects,
                first_frame=inputs.first_frame,
                last_frame=inputs.last_frame,
                restore_background=options["keep_background"],
                parts=targets.parts,
                discard_parts=options["force"],
                attention_layer=layer,
                callback=show,
                **settings,
            )
        except KeyboardInterrupt:
            bar.stop()
            click.echo("Interrupted. The same command goes on after the last finished window.")
            sys.exit(130)
    record = make_record(options, inputs, pipeline, settings, notes)
    # Of the frames, not of the file: x264 does not always write the same bytes for the same frames.
    record["edited_frames_sha256"] = hashlib.sha256(edited.frames.numpy().tobytes()).hexdigest()
    record["seconds"] = round(time.monotonic() - start, 3)
    # None of them was edited now if an earlier run ended between the last window and the results.
    earlier = first_window[0] if first_window else len(record["windows"])
    record["windows_of_an_earlier_run"] = earlier
    record["attention"] = {
        "layer": layer,
        "share_by_window_and_latent_frame": {
            str(window): frame_means(found) for window, found in attention.items()
        },
    }
    if attention:
        draw_attention(
            targets.attention,
            edited,
            {record["windows"][window][0]: found for window, found in attention.items()},
            title=f"Block {layer}'s attention to the objects in the last step"
            + (
                "" if pipeline.base.trained and pipeline.adapter_trained else " (UNTRAINED weights)"
            ),
            overwrite=targets.overwrite,
        )
    draw_contact_sheet(
        targets.sheet,
        inputs.clip,
        torch.stack(inputs.masks).any(0),
        [EditedRow(inputs.objects, edited, "edited")],
        overwrite=targets.overwrite,
    )
    write_results(targets, inputs.clip, edited, record)
    shutil.rmtree(targets.parts)
    # Not wrapped to the terminal's width, so that paths can be copied.
    click.echo(
        f"Edited clip: {targets.edited}\nSide by side: {targets.side_by_side}\n"
        f"Some frames: {targets.sheet}\n"
        + (f"Attention to the objects: {targets.attention}\n" if attention else "")
        + f"To repeat it: {targets.record}"
    )


def _notes(pipeline: Any, inputs: EditInputs) -> list[str]:
    """What a user should know before looking at the result."""
    notes = []
    if not pipeline.base.trained:
        notes.append(f"Base: {pipeline.base.about}.")
    if not pipeline.adapter_trained:
        notes.append("Adapter: a fresh one, UNTRAINED: its weights add nothing yet.")
    if inputs.first_frame is None:
        notes.append(
            "First frame: none given, so frame 0 is generated too; the authors' release wants it "
            "finished (--first-frame)."
        )
    if not pipeline.attachment.options.mask_gate:
        notes.append("Mask gate: off, so all of the clip sees the objects.")
    return notes


def _bytes(count: float) -> str:
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {('bytes', 'KB', 'MB', 'GB', 'TB')[power]}"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
