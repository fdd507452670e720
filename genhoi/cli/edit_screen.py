"""What `genhoi edit` shows: the plan, notes, progress, and where the results are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genhoi.cli.common import time_text
from genhoi.cli.output import Output
from genhoi.editing.inputs import EditInputs
from genhoi.editing.plan import EditPlan
from genhoi.editing.results import Targets

__all__ = ["Watched", "notes_on", "say_plan", "say_where"]


def say_plan(output: Output, caution: str, inputs: EditInputs, plan: EditPlan) -> list[str]:
    """Say what is edited and what is odd about it, before anything is loaded; return that."""
    notes = [*([caution] if caution else []), *inputs.notes, _crop_text(plan)]
    for note in notes:
        output.say(note)
    for note in plan.notes:
        output.warn(f"Warning: {note}")
    return [*notes, *plan.notes]


def _crop_text(plan: EditPlan) -> str:
    crop = plan.crop
    height, width = crop.size
    if crop.is_whole and crop.frame == crop.size:
        return f"Size: the whole frame, at its own {width}x{height}."
    if crop.is_whole:
        return (
            f"Size: the whole frame; the model works at {width}x{height}, and the result is "
            f"scaled back to {crop.frame[1]}x{crop.frame[0]}."
        )
    return (
        f"Crop: the model edits a box of {crop.box[1]}x{crop.box[0]} pixels around the mask, "
        f"{100 * crop.share:.0f} % of the frame, at {width}x{height}"
        + (", and follows it," if crop.moves else ",")
        + " and the result is pasted back."
    )


def notes_on(pipeline: Any, inputs: EditInputs) -> list[str]:
    """Say what a user should know of the loaded model before looking at the result."""
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


def say_where(output: Output, targets: Targets, *, has_attention: bool) -> None:
    """Name the files of the results."""
    output.say(
        f"Edited clip: {targets.edited}\nSide by side: {targets.side_by_side}\n"
        f"Some frames: {targets.sheet}\n"
        + (f"Attention to the objects: {targets.attention}\n" if has_attention else "")
        + f"To repeat it: {targets.record}"
    )
