"""The learning rate of every step, and what becomes of it where a run is made longer or shorter."""

from __future__ import annotations

from dataclasses import replace

from genhoi.training.config import TrainConfig

__all__ = ["changed_length", "learning_rate_at"]


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Compute the rate of a step: warm-up, a plateau, then a straight line down to a tenth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    falling = config.steps * config.decay
    late = (step - (config.steps - falling)) / falling if falling else 0.0
    return config.learning_rate * warm * (1 - 0.9 * max(0.0, late))


def changed_length(config: TrainConfig, before: int, step: int) -> str | None:
    """Say what another number of steps means for a run that goes on.

    Everything but the learning rate depends on the step alone, not on how many there will be. So a
    run is as if it had had its new length from the start, but for steps that took another rate.

    Args:
        config: of the run, with its new number of steps.
        before: its number of steps so far.
        step: after which it goes on.

    Returns:
        One or two sentences; None where the number is the same.
    """
    if config.steps == before:
        return None
    change = f"Steps: {before} before, now {config.steps}"
    old = replace(config, steps=before)
    other = [s for s in range(step) if learning_rate_at(old, s) != learning_rate_at(config, s)]
    if not other:
        return f"{change}; the run goes on as if it had been so from the start."
    return (
        f"{change}. Steps {other[0] + 1} to {other[-1] + 1} took the learning rate of {before} "
        f"steps, at last {learning_rate_at(old, other[-1]):.3g}; from step {step + 1} on it is "
        f"that of {config.steps}, now {learning_rate_at(config, step):.3g}. Otherwise the run goes "
        f"on as if it had been so from the start."
    )
