"""The command `genhoi edit`."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
import torch
from rich.console import Console

from genhoi.bases.load import base_config, base_defaults
from genhoi.bases.settings import resolve
from genhoi.cli.common import (
    DTYPES,
    PATH,
    bytes_text,
    parse_size,
    plain_errors,
    progress_bar,
    repeat_command,
    time_text,
)
from genhoi.editing.inputs import EditInputs, read_inputs
from genhoi.editing.record import make_record, result_record
from genhoi.editing.results import Targets, write_results
from genhoi.media import Clip

__all__ = ["edit"]

_SETTINGS = ("steps", "guidance", "shift", "window", "mask_rule")  # the base has defaults
_CALL = (
    "prompt",
    "negative_prompt",
    "steps",
    "guidance",
    "shift",
    "seed",
    "window",
    "mask_rule",
)


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
        defaults = base_defaults(options["base"])
        settings = resolve(defaults, **{name: options[name] for name in _SETTINGS})
        options |= asdict(settings)
        inputs = _read(options, defaults.long_side)
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


def _read(options: dict[str, Any], long_side: int) -> EditInputs:
    size = options["size"]
    return read_inputs(
        options["video"],
        options["masks"],
        options["objects"],
        first_frame=options["first_frame"],
        last_frame=options["last_frame"],
        frames=options["frames"],
        size=None if size is None else parse_size(size),
        long_side=long_side,
    )


def _dry_run(
    console: Console, options: dict[str, Any], inputs: EditInputs, config: dict[str, Any]
) -> None:
    from rich.table import Table

    from genhoi.editing.estimate import estimate_edit
    from genhoi.models.sampling import noise_levels

    noise_levels(options["steps"], options["shift"])  # raises
    clip = inputs.clip
    estimate = estimate_edit(
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
    spans = ", ".join(f"{begin}-{end - 1}" for begin, end in estimate.windows)
    f, h, w = estimate.grid
    rows = {
        "clip": f"{clip.num_frames} frames of {clip.width}x{clip.height}, {float(clip.fps):g}/s",
        "windows": f"{len(estimate.windows)}: frames {spans}",
        "tokens": f"{f} x {h} x {w} = {f * h * w:,}, and {estimate.reference_tokens:,} of objects",
        "transformer": f"{estimate.parameters:,} parameters, {bytes_text(estimate.weight_bytes)}",
        "objects' keys and values": bytes_text(estimate.cache_bytes),
        "activations": f"about {bytes_text(estimate.working_bytes)}; VAE and encoders not counted",
        "work": f"{estimate.flops:.3g} operations",
        "time": f"about {time_text(estimate.seconds)} on {options['device']}, a rough guess from "
        f"this machine's speed just now; encoding and decoding come on top",
    }
    table = Table(show_header=False, title="Dry run: nothing is computed", title_justify="left")
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


# ----------------------------------------------------------------------------------------- the edit


def _run(
    console: Console,
    options: dict[str, Any],
    inputs: EditInputs,
    targets: Targets,
    schedule: str | float | None,
) -> None:
    pipeline = _load(console, options, schedule)
    notes = _notes(pipeline, inputs)
    for note in notes:
        click.echo(note)
    settings = {name: options[name] for name in _CALL}
    settings["strengths"] = list(options["strengths"]) or None
    layer = pipeline.base.model.sizes.num_layers // 2
    watched = _Watched()
    start = time.monotonic()
    with progress_bar(console, "left") as bar:
        task = bar.add_task("preparing", total=1.0, left="")
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
                callback=watched.shown_by(lambda **state: bar.update(task, **state)),
                **settings,
            )
        except KeyboardInterrupt:
            bar.stop()
            click.echo("Interrupted. The same command goes on after the last finished window.")
            sys.exit(130)
    notes = [*inputs.notes, *notes]
    record = make_record(options, inputs, pipeline, settings, notes=notes, repeat=_repeat(options))
    earlier = watched.first_window
    record |= result_record(
        edited,
        seconds=time.monotonic() - start,
        # None was edited now if an earlier run ended between the last window and the results.
        earlier_windows=len(record["windows"]) if earlier is None else earlier,
        attention_layer=layer,
        attention=watched.attention,
    )
    _draw_attention(targets, pipeline, edited, record, watched.attention)
    _write(inputs, targets, edited, record)
    _say_where(targets, has_attention=bool(watched.attention))


def _load(console: Console, options: dict[str, Any], schedule: str | float | None) -> Any:
    with console.status("Loading the base"):
        from genhoi.editing.pipeline import GenHOIPipeline

        return GenHOIPipeline.from_pretrained(
            options["base"],
            adapter=options["adapter"],
            video_lora=options["video_lora"],
            device=options["device"],
            dtype=DTYPES[options["dtype"]],
            offload=options["offload"],
            preset=options["preset"],
            **({} if schedule is None else {"schedule": schedule}),
        )


class _Watched:
    """Keeps what an edit tells while it runs.

    Attributes:
        first_window: that this program edited; None where an earlier one had finished all.
        attention: of each window, in its last step: float32 [f, h, w].
    """

    def __init__(self) -> None:
        self.first_window: int | None = None
        self.attention: dict[int, torch.Tensor] = {}

    def shown_by(self, show: Callable[..., object]) -> Callable[[Any], None]:
        """Make the pipeline's callback; `show` gets what a progress bar takes."""

        def callback(progress: Any) -> None:
            if self.first_window is None:
                self.first_window = progress.window
            if progress.attention is not None:
                self.attention[progress.window] = progress.attention
            show(
                completed=progress.done,
                description=f"window {progress.window + 1} of {progress.windows}, "
                f"step {progress.step} of {progress.steps}",
                left=f"{time_text(progress.seconds_left)} left",
            )

        return callback


def _notes(pipeline: Any, inputs: EditInputs) -> list[str]:
    """Say what a user should know before looking at the result."""
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


def _repeat(options: dict[str, Any]) -> str:
    flags = {"masks": "mask", "objects": "object", "strengths": "strength"}
    return repeat_command("edit", options, left_out=("force", "dry_run"), flags=flags)


def _draw_attention(
    targets: Targets,
    pipeline: Any,
    edited: Clip,
    record: dict[str, Any],
    attention: dict[int, torch.Tensor],
) -> None:
    from genhoi.editing.figure import draw_attention

    if not attention:
        return
    title = f"Block {record['attention']['layer']}'s attention to the objects in the last step"
    if not (pipeline.base.trained and pipeline.adapter_trained):
        title += " (UNTRAINED weights)"
    shares = {record["windows"][window][0]: share for window, share in attention.items()}
    draw_attention(targets.attention, edited, shares, title=title, overwrite=targets.overwrite)


def _write(inputs: EditInputs, targets: Targets, edited: Clip, record: dict[str, Any]) -> None:
    from genhoi.editing.contact_sheet import EditedRow, draw_contact_sheet

    draw_contact_sheet(
        targets.sheet,
        inputs.clip,
        torch.stack(inputs.masks).any(0),
        [EditedRow(inputs.objects, edited, "edited")],
        overwrite=targets.overwrite,
    )
    write_results(targets, inputs.clip, edited, record)
    shutil.rmtree(targets.parts)


def _say_where(targets: Targets, *, has_attention: bool) -> None:
    # Not wrapped to the terminal's width, so that paths can be copied.
    click.echo(
        f"Edited clip: {targets.edited}\nSide by side: {targets.side_by_side}\n"
        f"Some frames: {targets.sheet}\n"
        + (f"Attention to the objects: {targets.attention}\n" if has_attention else "")
        + f"To repeat it: {targets.record}"
    )
