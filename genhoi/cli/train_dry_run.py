"""What `genhoi train --dry-run` says: settings, sizes, time and memory on a device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from genhoi.cli.texts import bytes_text, time_text
from genhoi.cli.train_flags import setting_text

if TYPE_CHECKING:
    from genhoi.cli.device import Target
    from genhoi.models.forward_needs import ForwardNeeds
    from genhoi.training.config import TrainConfig
    from genhoi.training.estimate import TrainEstimate

__all__ = ["show_dry_run"]


def show_dry_run(config: TrainConfig, target: Target) -> None:
    """Show a table of a run's settings and needs, and what to change if it does not fit.

    Args:
        config: of the run.
        target: whose memory counts, and whose speed.

    Raises:
        FileNotFoundError, ValueError: no such base or adapter.
    """
    from genhoi.training.estimate import estimate_training

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    needs = estimate_training(config, processes=processes)
    table = Table(show_header=False, title="Dry run: nothing is trained", title_justify="left")
    for name, value in config.to_dict().items():
        table.add_row(name, setting_text(value))
    for name, value in _sizes(needs).items():
        table.add_row(name, value)
    memory = target.memory_bytes
    share = f"{needs.memory_bytes / memory:.0%} of the {bytes_text(memory)} there are"
    where = f"{target.name}, one of {processes}" if processes > 1 else target.name
    table.add_row(f"memory on {where}", f"about {bytes_text(needs.memory_bytes)}, {share}")
    for name, value in _time(config, needs, target, processes).items():
        table.add_row(name if name != "time" else f"time on {where}", value)
    table.add_row("does it fit?", _verdict(needs, memory, config, processes))
    Console(markup=False).print(table)


def _sizes(needs: TrainEstimate) -> dict[str, str]:
    f, h, w = needs.grid
    share = f"{needs.trained / needs.parameters:.2%} of the base"
    latents = bytes_text(needs.latent_bytes) + ("" if needs.clips else " a clip")
    return {
        "tokens of a clip": f"{f} x {h} x {w} = {f * h * w:,}, and {h * w:,} of the object",
        "base": f"{needs.parameters:,} parameters, {bytes_text(needs.weight_bytes)}",
        "trained": f"{needs.trained:,} parameters, {share}",
        "their state": f"{bytes_text(needs.state_bytes)}: weights, gradients, moments, average",
        "activations": f"about {bytes_text(needs.working_bytes)}, a rough guess, for "
        f"{needs.at_once} clips at once",
        "latents on disk": latents,
    }


def _time(
    config: TrainConfig, needs: TrainEstimate, target: Target, processes: int
) -> dict[str, str]:
    """Guess the time of all steps from the work of one forward pass."""
    from genhoi.cli.edit_dry_run import speeds_on

    forward, head_dim = _forward(config)
    dtype = "bfloat16" if config.precision == "bf16" else "float32"
    speeds = speeds_on(target, head_dim, forward.tokens, dtype)
    if speeds is None:
        return {"time": f"unknown: nothing was measured in {dtype}"}
    one = speeds.seconds(forward.once + forward.each).total
    seconds = one * needs.passes * config.steps * config.batch / processes
    return {
        "time": f"at least {time_text(seconds)}, {seconds / config.steps:.2g} s a step: matrix "
        f"products, attention and memory traffic; a small model takes several times as long, and "
        f"encoding the clips comes on top",
        "how known": speeds.source,
    }


def _forward(config: TrainConfig) -> tuple[ForwardNeeds, int]:
    """Count a clip's forward pass with one object; return the head dim too."""
    import torch

    from genhoi.bases.base import TEXT_TOKENS
    from genhoi.bases.load import base_config, base_settings
    from genhoi.models.forward_needs import EmptyModel

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    model = EmptyModel(base_config(config.base), dtype=dtype)
    strides = model.sizes.strides
    height, width = config.height // strides.space, config.width // strides.space
    needs = model.forward_needs(
        (strides.latent_frames(config.frames), height, width),
        references=[(height, width)],
        text_tokens=TEXT_TOKENS if base_settings(config.base).takes_text else 1,
    )
    return needs, model.sizes.head_dim


def _verdict(needs: TrainEstimate, memory: int, config: TrainConfig, processes: int) -> str:
    from genhoi.training.estimate import what_fits

    if needs.memory_bytes <= memory:
        return "yes"
    flags = what_fits(config, memory, processes=processes)
    if flags is None:
        return "no; take a smaller base, --height or --width, or a device with more memory"
    return f"no; it would with {flags}"
