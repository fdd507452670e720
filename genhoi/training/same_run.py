"""Whether a run may go on from the checkpoints in its folder."""

from __future__ import annotations

from pathlib import Path

from genhoi.training.checkpoint import latest_checkpoint, read_state
from genhoi.training.config import TrainConfig, changed_settings
from genhoi.training.schedule import changed_length

__all__ = ["check_same_run", "note_on_steps"]


def check_same_run(config: TrainConfig, out: Path, *, latents: str | None = None) -> int | None:
    """Refuse to go on with a run that had other settings, or is past its last step.

    Args:
        config: of the run that is to go on.
        out: its folder.
        latents: fingerprint of its clips; None: not known yet.

    Returns:
        After which step it would go on; None where there is no run.

    Raises:
        ValueError: what differs.
    """
    path = latest_checkpoint(out / "checkpoints")
    if path is None:
        return None
    state = read_state(path)
    changed = changed_settings(state["config"], config)
    if changed:
        raise ValueError(
            f"out: {out} holds a run with other settings ({', '.join(changed)}); wanted the same, "
            f"or another folder"
        )
    step = int(state["step"])
    if config.steps < step:
        raise ValueError(
            f"steps: got {config.steps}, but the run in {out} has done {step}, and steps are not "
            f"undone; wanted {step} or more, or another folder"
        )
    if None not in (latents, state.get("latents")) and latents != state["latents"]:
        raise ValueError(
            f"latents: got other clips than those of the run in {out}, wanted the same, or another "
            f"folder for the run"
        )
    return step


def note_on_steps(config: TrainConfig, out: Path) -> str | None:
    """Say what it means that a run goes on with another number of steps; None where it does not.

    Args:
        config: of the run that is to go on, and that `check_same_run` let through.
        out: its folder.
    """
    path = latest_checkpoint(out / "checkpoints")
    if path is None:
        return None
    state = read_state(path)
    return changed_length(config, int(state["config"]["steps"]), int(state["step"]))
