"""What `genhoi edit` shows: the dry run, notes, progress, and where the results are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import torch
from rich.console import Console

from genhoi.cli.common import DTYPES, bytes_text, time_text
from genhoi.editing.inputs import EditInputs
from genhoi.editing.results import Targets

__all__ = ["Watched", "notes_on", "say_where", "show_dry_run"]


def show_dry_run(
    console: Console, options: dict[str, Any], inputs: EditInputs, config: dict[str, Any]
) -> None:
    """Show a table of what the edit would take.

    Raises:
        ValueError: steps below 1, or a shift that is not positive.
    """
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


def notes_on(pipeline: Any, inputs: EditInputs) -> list[str]:
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


class Watched:
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


def say_where(targets: Targets, *, has_attention: bool) -> None:
    """Name the files of the results."""
    # Not wrapped to the terminal's width, so that paths can be copied.
    click.echo(
        f"Edited clip: {targets.edited}\nSide by side: {targets.side_by_side}\n"
        f"Some frames: {targets.sheet}\n"
        + (f"Attention to the objects: {targets.attention}\n" if has_attention else "")
        + f"To repeat it: {targets.record}"
    )
