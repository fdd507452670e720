"""What `genhoi edit --dry-run` says: sizes, memory by phase, time, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from genhoi.bases.lora import Lora
from genhoi.cli.common import DTYPES, bytes_text, time_text
from genhoi.cli.device import Target
from genhoi.cli.output import Output
from genhoi.editing.estimate import Estimate, estimate_edit
from genhoi.editing.inputs import EditInputs
from genhoi.editing.memory import OffloadMemory, what_fits
from genhoi.editing.plan import EditPlan
from genhoi.editing.results import Targets
from genhoi.editing.speeds import Speeds, named_speeds, probed_speeds
from genhoi.models.forward_needs import Work

__all__ = ["show_dry_run", "speeds_on"]


def show_dry_run(
    output: Output,
    options: dict[str, Any],
    inputs: EditInputs,
    plan: EditPlan,
    target: Target,
    targets: Targets,
    loras: Sequence[Lora],
) -> None:
    """Show tables of what the edit would take, and draw what it would work on.

    Args:
        output: where to.
        options: of the command, the base's own settings filled in.
        inputs, plan: of the edit.
        target: that it would run on.
        targets: of the results; only the preview is written.
        loras: that would be loaded.

    Raises:
        ValueError: steps below 1, or a shift that is not positive; an adapter for another base.
    """
    from genhoi.editing.preview import draw_preview
    from genhoi.models.sampling import noise_levels

    noise_levels(options["steps"], options["shift"])  # raises
    with output.status("Counting what it takes"):
        estimate = estimate_edit(
            options["base"],
            frames=plan.frames,
            size=plan.crop.size,
            objects=len(inputs.objects),
            steps=options["steps"],
            guidance=options["guidance"],
            guidance_2=options["guidance_2"],
            shift=options["shift"],
            window=options["window"],
            overlap=options["overlap"],
            dtype=DTYPES[options["dtype"]],
            adapters=options["adapters"],
            loras=loras,
            preset=options["preset"],
        )
        speeds = speeds_on(target, estimate.head_dim, estimate.tokens, options["dtype"])
    verdict = _verdict(estimate.memory, target)
    rows = {
        **_of_clip(inputs, plan),
        **_of_model(estimate),
        **_of_time(estimate, speeds, target, options),
        "does it fit?": verdict,
    }
    table = Table(show_header=False, title="Dry run: nothing is computed", title_justify="left")
    for row in rows.items():
        table.add_row(*row)
    output.show(table)
    output.show(_memory_table(estimate.memory, target))
    draw_preview(targets.preview, inputs.clip, inputs.masks, inputs.objects, plan, overwrite=True)
    output.say(f"What it would work on: {targets.preview}")
    output.finish(_record(rows, estimate, speeds, target, plan) | {"preview": targets.preview})


def speeds_on(target: Target, head_dim: int, tokens: int, dtype: str) -> Speeds | None:
    """Look up a GPU's speed, or time this machine's for a moment.

    Returns:
        None where nothing is known.
    """
    if target.gpu is not None:
        return named_speeds(target.gpu, head_dim=head_dim, tokens=tokens, dtype=DTYPES[dtype])
    assert target.device is not None
    return probed_speeds(target.device, head_dim=head_dim, dtype=DTYPES[dtype])


def _of_clip(inputs: EditInputs, plan: EditPlan) -> dict[str, str]:
    clip = inputs.clip
    return {
        "clip": f"{clip.num_frames} frames of {clip.width}x{clip.height}, {float(clip.fps):g}/s",
        "model's size": f"{plan.crop.size[1]}x{plan.crop.size[0]}",
    }


def _of_model(estimate: Estimate) -> dict[str, str]:
    spans = ", ".join(f"{begin}-{end - 1}" for begin, end in estimate.windows)
    f, h, w = estimate.grid
    weights = [f"{name.replace('_', ' ')} {bytes_text(size)}" for name, size in _others(estimate)]
    rows = {
        "windows": f"{len(estimate.windows)}: frames {spans}",
        "tokens": f"{f} x {h} x {w} = {f * h * w:,}, and {estimate.reference_tokens:,} of objects",
        "transformer": f"{estimate.parameters:,} parameters, "
        f"{bytes_text(estimate.weight_bytes['transformer'])}",
        "other weights": ", ".join(weights),
        "kept of the objects": bytes_text(estimate.cache_bytes)
        if estimate.cache_bytes
        else "nothing: they run with the clip",
        "activations": f"{bytes_text(estimate.activation_bytes)} in the transformer",
    }
    if estimate.assumed:
        names = ", ".join(name.replace("_", " ") for name in estimate.assumed)
        rows["taken from Wan2.1"] = f"{names}: there is no config.json"
    return rows


def _others(estimate: Estimate) -> list[tuple[str, int]]:
    return [(name, size) for name, size in estimate.weight_bytes.items() if name != "transformer"]


def _of_time(
    estimate: Estimate, speeds: Speeds | None, target: Target, options: dict[str, Any]
) -> dict[str, str]:
    work = estimate.references + estimate.denoising
    guided = {options["guidance"], options["guidance_2"]} - {1, None}
    branches = " x 2 for guidance" if guided else ""
    if len(estimate.steps) > 1:
        high, low = estimate.steps
        branches += f" ({high} of the first transformer, {low} of the second)"
    apart = estimate.references != Work()  # else they run with the clip
    rows = {
        "work": f"{work.attention:.3g} operations of attention, {work.products:.3g} of other "
        f"products: {options['steps']} steps{branches}, in windows: {len(estimate.windows)}"
        + (", and the objects once" if apart else "")
    }
    if speeds is None:
        return rows | {
            f"time on {target.name}": f"unknown: nothing was measured in {options['dtype']}"
        }
    total, once = speeds.seconds(work), speeds.seconds(estimate.references)
    rows[f"time on {target.name}"] = (
        f"at least about {time_text(total.total)}: attention {time_text(total.attention)}, other "
        f"products {time_text(total.products)}, the rest {time_text(total.rest)}"
        + (f"; {once.total:.2g} s of it for the objects" if apart else "")
        + ". Encoding, decoding and what --offload copies come on top"
    )
    rows["how known"] = speeds.source
    return rows


def _verdict(memory: Sequence[OffloadMemory], target: Target) -> str:
    there = bytes_text(target.memory_bytes)
    fitting = what_fits(target.memory_bytes, memory)
    if fitting is None:
        least = min(memory, key=lambda way: way.peak)
        return (
            f"no: the least is {bytes_text(least.peak)} of {there}, with --offload "
            f"{least.offload}; try a smaller --size or --window"
        )
    if fitting.offload == "none":
        return f"yes (peak {bytes_text(fitting.peak)} of {there})"
    return f"fits with --offload {fitting.offload} (peak {bytes_text(fitting.peak)} of {there})"


def _memory_table(memory: Sequence[OffloadMemory], target: Target) -> Table:
    table = Table(
        title=f"Memory at the peak of each phase, of {bytes_text(target.memory_bytes)}",
        title_justify="left",
    )
    table.add_column("phase")
    for way in memory:
        table.add_column(f"--offload {way.offload}", justify="right")
    for phase in memory[0].phases:
        table.add_row(phase, *(bytes_text(way.phases[phase]) for way in memory))
    table.add_section()
    fits = ["fits" if way.fits(target.memory_bytes) else "too much" for way in memory]
    table.add_row("all", *fits)
    return table


def _record(
    rows: dict[str, str],
    estimate: Estimate,
    speeds: Speeds | None,
    target: Target,
    plan: EditPlan,
) -> dict[str, Any]:
    """Make what --json writes."""
    work = estimate.references + estimate.denoising
    times = None if speeds is None else speeds.seconds(work)
    fitting = what_fits(target.memory_bytes, estimate.memory)
    return {
        "dry_run": rows,
        "device": {"name": target.name, "memory_bytes": target.memory_bytes},
        "estimate": asdict(estimate),
        "peak_bytes": {way.offload: way.peak for way in estimate.memory},
        "fits": {way.offload: way.fits(target.memory_bytes) for way in estimate.memory},
        "offload": None if fitting is None else fitting.offload,
        "seconds": None if times is None else times.total,
        "seconds_by_kind": None if times is None else asdict(times),
        "speeds": None if speeds is None else asdict(speeds),
        "windows": estimate.windows,
        "size": {"width": plan.crop.size[1], "height": plan.crop.size[0]},
        "crop": plan.crop.as_record(),
        "notes": list(plan.notes),
    }
