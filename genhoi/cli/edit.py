"""The command `genhoi edit`."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict
from typing import Any

import click
import torch
from rich.console import Console

from genhoi.bases.load import base_config, base_defaults
from genhoi.bases.settings import resolve
from genhoi.cli.common import DTYPES, parse_size, plain_errors, progress_bar
from genhoi.cli.edit_flags import edit_flags, edit_that_repeats
from genhoi.cli.edit_screen import Watched, notes_on, say_where, show_dry_run
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
@edit_flags
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
            show_dry_run(console, options, inputs, config)
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


# ----------------------------------------------------------------------------------------- the edit


def _run(
    console: Console,
    options: dict[str, Any],
    inputs: EditInputs,
    targets: Targets,
    schedule: str | float | None,
) -> None:
    pipeline = _load(console, options, schedule)
    notes = notes_on(pipeline, inputs)
    for note in notes:
        click.echo(note)
    settings = {name: options[name] for name in _CALL}
    settings["strengths"] = list(options["strengths"]) or None
    layer = pipeline.base.model.sizes.num_layers // 2
    watched = Watched()
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
    record = make_record(
        options, inputs, pipeline, settings, notes=notes, repeat=edit_that_repeats(options)
    )
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
    say_where(targets, has_attention=bool(watched.attention))


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
