"""What `genhoi train --dry-run` says: settings, sizes, time and memory on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from genhoi.cli.texts import bytes_text, time_text
from genhoi.cli.train_flags import setting_text

if TYPE_CHECKING:
    import torch

    from genhoi.training.config import TrainConfig
    from genhoi.training.estimate import TrainEstimate

__all__ = ["show_dry_run"]


def show_dry_run(config: TrainConfig, device: torch.device) -> None:
    """Show a table of a run's settings and needs, and what to change if it does not fit.

    Args:
        config: of the run.
        device: whose speed is measured for a moment, and whose memory counts.

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
    memory = _memory(device)
    share = f"{needs.memory_bytes / memory:.0%} of the {bytes_text(memory)} there are"
    where = f"{device}, one of {processes}" if processes > 1 else str(device)
    table.add_row(f"memory on {where}", f"about {bytes_text(needs.memory_bytes)}, {share}")
    seconds = _seconds(config, needs, device, processes)
    table.add_row(
        f"time on {where}",
        f"at least {time_text(seconds)}, {seconds / config.steps:.2g} s a step: matrix products "
        f"and attention at their speed just now; a small model takes several times as long, and "
        f"encoding the clips comes on top",
    )
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


def _memory(device: torch.device) -> int:
    """Count the bytes of a GPU's memory, or of the machine's."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _seconds(
    config: TrainConfig, needs: TrainEstimate, device: torch.device, processes: int
) -> float:
    """Guess the time of all steps from that of one forward pass."""
    import torch

    from genhoi.bases.load import base_config
    from genhoi.editing.estimate import estimate_edit

    forward = estimate_edit(
        base_config(config.base),
        frames=config.frames,
        size=(config.height, config.width),
        objects=1,
        steps=1,
        guidance=1.0,
        window=config.frames,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        device=device,
    )
    return forward.seconds * needs.passes * config.steps * config.batch / processes


def _verdict(needs: TrainEstimate, memory: int, config: TrainConfig, processes: int) -> str:
    from genhoi.training.estimate import what_fits

    if needs.memory_bytes <= memory:
        return "yes"
    flags = what_fits(config, memory, processes=processes)
    if flags is None:
        return "no; take a smaller base, --height or --width, or a device with more memory"
    return f"no; it would with {flags}"
