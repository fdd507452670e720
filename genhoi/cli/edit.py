"""The command `genhoi edit`."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, fields
from typing import Any

import cloup

from genhoi.cli.common import DTYPES, parse_size
from genhoi.cli.device import chosen_device, dry_run_target
from genhoi.cli.edit_flags import edit_flags, edit_that_repeats
from genhoi.cli.output import Output, with_output

__all__ = ["edit"]

_TEXTS_AND_SEED = ("prompt", "negative_prompt", "seed")
_INTERRUPTED = 130  # the exit code that shells give after Ctrl-C


@cloup.command()
@edit_flags
@with_output
def edit(output: Output, **options: Any) -> None:
    """Put objects into a clip, where the masks are.

    The result has the clip's size, length, rate and sound, and the clip's own pixels outside the
    masks. Writes edited.mp4, side_by_side.mp4, sheet.png (some frames of source, mask and result),
    attention.png (where the clip looked at the objects) and edit.json, with everything needed to
    repeat it. An edit that was interrupted goes on after its last finished window when the command
    is repeated.
    """
    from genhoi.bases.base import NO_STRENGTHS
    from genhoi.bases.load import base_config, base_kind, check_base
    from genhoi.bases.lora import check_loras, parse_lora
    from genhoi.bases.settings import EditSettings, for_few_steps, resolve
    from genhoi.cli.edit_screen import say_plan
    from genhoi.editing.plan import plan_edit
    from genhoi.editing.results import Targets

    if not options["dry_run"]:
        chosen_device(options["device"])  # raises for a GPU that is not here
    target = dry_run_target(options["device"])
    options["device"] = target.name
    options["dtype"] = options["dtype"] or ("float32" if target.is_cpu else "bfloat16")
    schedule = _schedule(options["schedule"])
    size = _size(options)
    targets = Targets(options["out"], overwrite=options["force"])
    check = base_config if options["dry_run"] else check_base
    check(options["base"], transformer=options["transformer"])
    kind = base_kind(options["base"])
    base = kind.read_settings(options["base"])
    if options["strengths"] and not kind.takes_strengths:
        raise ValueError(
            f"strengths: got {list(options['strengths'])}, wanted none: {NO_STRENGTHS}"
        )
    names = [field.name for field in fields(EditSettings)]
    loras = [parse_lora(text) for text in options["loras"]]
    check_loras(loras, takes_lora=kind.takes_lora, two_experts=kind.two_experts)
    defaults = for_few_steps(base.defaults) if options["few_steps"] else base.defaults
    settings = resolve(defaults, **{name: options[name] for name in names})
    if settings.guidance_2 is not None and not kind.two_experts:
        raise ValueError(
            f"guidance_2: got {settings.guidance_2}, wanted none: this base has one transformer"
        )
    options |= asdict(settings)
    inputs = _read(output, options)
    strides = kind.strides(options["base"])
    plan = plan_edit(base, inputs.masks, settings=settings, size=size, strides=strides)
    notes = say_plan(output, base.caution, inputs, plan)
    if options["dry_run"]:
        from genhoi.cli.edit_dry_run import show_dry_run

        show_dry_run(output, options, inputs, plan, target, targets, loras)
        return
    call = asdict(settings) | {name: options[name] for name in _TEXTS_AND_SEED}
    call["strengths"] = list(options["strengths"]) or None
    _run(output, options, call, inputs, plan, targets, schedule, notes)


def _size(options: dict[str, Any]) -> tuple[int, int] | None:
    return None if options["size"] is None else parse_size(options["size"])


def _schedule(text: str | None) -> str | float | None:
    if text in (None, "paper", "release"):
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--schedule: got {text!r}, want paper, release, or the frame of all heads, a number"
        ) from None


def _read(output: Output, options: dict[str, Any]) -> Any:
    from genhoi.editing.inputs import read_inputs

    with output.status("Reading the clip"):
        return read_inputs(
            options["video"],
            options["masks"],
            options["objects"],
            first_frame=options["first_frame"],
            last_frame=options["last_frame"],
            frames=options["frames"],
        )


# ----------------------------------------------------------------------------------------- the edit


def _run(
    output: Output,
    options: dict[str, Any],
    settings: dict[str, Any],
    inputs: Any,
    plan: Any,
    targets: Any,
    schedule: str | float | None,
    notes: list[str],
) -> None:
    from genhoi.cli.edit_screen import Watched, notes_on, say_where
    from genhoi.editing.record import make_record, result_record

    pipeline = _load(output, options, schedule)
    for note in (more := notes_on(pipeline, inputs)):
        output.say(note)
    layer = len(pipeline.base.model.blocks) // 2
    watched = Watched()
    start = time.monotonic()
    edited = _edit(output, options, inputs, plan, targets, pipeline, settings, watched, layer)
    record = make_record(
        options,
        inputs,
        pipeline,
        plan,
        settings,
        notes=[*notes, *more],
        repeat=edit_that_repeats(options),
    )
    earlier = watched.first_window
    record |= result_record(
        edited,
        seconds=time.monotonic() - start,
        # None was edited now if an earlier run ended between the last window and the results.
        earlier_windows=len(record["windows"]) if earlier is None else earlier,
        drift=_drift(inputs, edited),
        attention_layer=layer,
        attention=watched.attention,
    )
    with output.status("Writing the results"):
        _write(inputs, plan, targets, pipeline, edited, record, watched.attention)
    say_where(output, targets, has_attention=bool(watched.attention))
    output.finish(record | {"files": targets.files(has_attention=bool(watched.attention))})


def _load(output: Output, options: dict[str, Any], schedule: str | float | None) -> Any:
    with output.status("Loading the base"):
        from genhoi.bases.lora import parse_lora
        from genhoi.editing.pipeline import GenHOIPipeline

        return GenHOIPipeline.from_pretrained(
            options["base"],
            adapter=options["adapters"] or None,
            transformer=options["transformer"],
            untrained_adapter=options["untrained_adapter"],
            video_lora=options["video_lora"],
            loras=[parse_lora(text) for text in options["loras"]],
            device=options["device"],
            dtype=DTYPES[options["dtype"]],
            offload=options["offload"],
            preset=options["preset"],
            **({} if schedule is None else {"schedule": schedule}),
        )


def _edit(
    output: Output,
    options: dict[str, Any],
    inputs: Any,
    plan: Any,
    targets: Any,
    pipeline: Any,
    settings: dict[str, Any],
    watched: Any,
    layer: int,
) -> Any:
    from genhoi.editing.plan import EditWarning

    with output.progress("left") as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", EditWarning)  # said before
        task = bar.add_task("preparing", total=1.0, left="")
        try:
            return pipeline(
                inputs.clip,
                inputs.masks,
                inputs.objects,
                first_frame=inputs.first_frame,
                last_frame=inputs.last_frame,
                # As it was asked for: the pipeline plans once more, and must plan the same.
                size=_size(options),
                parts=targets.parts,
                discard_parts=options["force"],
                attention_layer=layer,
                callback=watched.shown_by(lambda **state: bar.update(task, **state)),
                progress_bar=False,
                **settings,
            )
        except KeyboardInterrupt:
            bar.stop()
            output.stop(
                "Interrupted. The same command goes on after the last finished window.",
                code=_INTERRUPTED,
            )


def _drift(inputs: Any, edited: Any) -> dict[str, Any]:
    """Measure how far the masked region's look moves, and how far the source's does by itself."""
    import torch

    from genhoi.evaluation.drift import drift

    mask = torch.stack(inputs.masks).any(0)
    clips = {"edited": edited, "source": inputs.clip}
    return {name: drift(clip.frames, mask).as_record() for name, clip in clips.items()}


def _write(
    inputs: Any,
    plan: Any,
    targets: Any,
    pipeline: Any,
    edited: Any,
    record: dict[str, Any],
    attention: dict[int, Any],
) -> None:
    import torch

    from genhoi.editing.contact_sheet import EditedRow, draw_contact_sheet
    from genhoi.editing.figure import draw_attention
    from genhoi.editing.paste import cut_frames
    from genhoi.editing.results import write_results
    from genhoi.media import Clip

    crop = plan.crop.until(edited.num_frames)
    if attention:
        title = f"Block {record['attention']['layer']}'s attention to the objects in the last step"
        if not (pipeline.base.trained and pipeline.adapter_trained):
            title += " (UNTRAINED weights)"
        shares = {record["windows"][window][0]: share for window, share in attention.items()}
        seen = Clip(cut_frames(edited.frames, crop), edited.fps)
        draw_attention(targets.attention, seen, shares, title=title, overwrite=targets.overwrite)
    draw_contact_sheet(
        targets.sheet,
        inputs.clip,
        torch.stack(inputs.masks).any(0),
        [EditedRow(inputs.objects, edited, "edited")],
        crop=crop,
        overwrite=targets.overwrite,
    )
    write_results(targets, inputs.clip, edited, record, sound=inputs.video)
