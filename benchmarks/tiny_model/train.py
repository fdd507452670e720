"""Trains the tiny model in legs, each of them a run of `genhoi train`.

    python -m benchmarks.tiny_model.train --vae results/tiny-codec/vae --out results/tiny

Every leg draws new clips and leaves leg-N/pipeline: a base with its adapter that can be measured,
used and shipped, and from which another machine goes on (`--base`, `--first`). Killed and started
again, a leg goes on from its last checkpoint.

The plan "gpu" is sized for 8 minutes of one H100 and 16 cores. It has never been run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from rich.progress import Progress
from torch import Tensor

from benchmarks.threads import torch_threads
from benchmarks.tiny_model import whole_clip
from benchmarks.tiny_model.pipeline import put_together, random_pipeline
from genhoi.bases.load import load_base
from genhoi.conditioning.grid import STRIDES
from genhoi.media import pixel_values
from genhoi.training.clips import encode_clips, open_clips
from genhoi.training.config import TrainConfig, read_config
from genhoi_kernels.files import whole_file, whole_folder

__all__ = ["PLANS", "leg_settings", "train"]

_SIDE = 128
_COMMON: dict[str, Any] = {
    "stage": "adapter",
    # A base this small has to learn along with the adapter; the paper's stays as it is.
    "train_base": True,
    "height": _SIDE,
    "width": _SIDE,
    "mask": "mixed",
    "precision": "bf16",
    "compile": True,
    "optimizer": "muon",
    "weight_decay": 0.0,
    "mask_weight": 4.0,
    "ema": 0.998,
    "checkpoint_every": 100,
    "log_every": 10,
    "samples": 0,
    "sample_every": 0,
}


def _leg(
    frames: int, clips: int, batch: int, steps: int, rate: float, decay: float, first: float = 0.5
) -> dict[str, Any]:
    """Say what is a leg's own; `first` is how often the first frame is given."""
    return {
        "frames": frames,
        "clips": clips,
        "batch": batch,
        "steps": steps,
        "learning_rate": rate,
        "decay": decay,
        "given": {"none": 1 - first, "first": first},
    }


# Short clips for most of the time: beside 49 frames, five take a seventh of the time to draw and a
# fourth to learn from, and how to take an object from its picture is learnt from many objects, not
# many frames. The last leg's rate falls.
PLANS: dict[str, tuple[dict[str, Any], ...]] = {
    "cpu": (
        _leg(17, clips=900, batch=16, steps=450, rate=1.5e-3, decay=0.0),
        _leg(5, clips=6000, batch=32, steps=2000, rate=2e-3, decay=0.0, first=0.25),
        _leg(17, clips=2400, batch=16, steps=1400, rate=1.5e-3, decay=0.0),
        _leg(49, clips=800, batch=12, steps=560, rate=1.2e-3, decay=0.0),
        _leg(49, clips=1500, batch=12, steps=1500, rate=1.2e-3, decay=0.6),
    ),
    "gpu": (
        _leg(5, clips=12000, batch=128, steps=3000, rate=2e-3, decay=0.0, first=0.25),
        _leg(49, clips=2400, batch=48, steps=1500, rate=1e-3, decay=0.6),
    ),
}
_RANK = 64
_WARMUP = 50
# Latent frames whose activations a CPU's caches hold: 16 clips of 17 frames took a sixth less time
# in two parts than at once.
_AT_ONCE = 40


def leg_settings(plan: str, leg: int, *, base: Path, adapter: Path | None) -> dict[str, Any]:
    """Say the settings of a leg, as `genhoi train --config` reads them.

    Args:
        plan: of `PLANS`.
        leg: from 1.
        base: folder of the base to go on from.
        adapter: to go on from; None for a fresh one.
    """
    begun = {"rank": _RANK} if adapter is None else {"adapter": str(adapter)}
    own = PLANS[plan][leg - 1]
    if plan == "cpu":
        at_once = max(1, _AT_ONCE // STRIDES.latent_frames(own["frames"]))
        own = own | {"micro_batch": min(own["batch"], at_once)}
    seeds = {"seed": leg, "data_seed": leg}
    return _COMMON | {"base": str(base), "warmup": _WARMUP} | own | seeds | begun


def train(
    plan: str, *, out: Path, base: Path | None, vae: Path | None, first: int, device: str
) -> Path:
    """Run all legs from one on that are not finished; return the last one's pipeline.

    Args:
        plan: of `PLANS`.
        out: folder of all legs.
        base: a pipeline with its adapter, to go on from; None for random weights around `vae`.
        vae: folder of the codec, where there is no base.
        first: the leg to begin with.
        device: as for `genhoi train`.

    Raises:
        subprocess.CalledProcessError: a run failed or was interrupted.
    """
    adapter = None if base is None else base / "adapter"
    if base is None:
        assert vae is not None
        base = out / "start"
        if not base.is_dir():
            with whole_folder(base) as unfinished:
                random_pipeline(unfinished, vae=vae, seed=0)
    for leg in range(first, len(PLANS[plan]) + 1):
        folder = out / f"leg-{leg}"
        if not (folder / "pipeline").is_dir():
            settings = leg_settings(plan, leg, base=base, adapter=adapter)
            _run_leg(folder, settings, vae=base / "vae", device=device)
        base, adapter = folder / "pipeline", folder / "pipeline" / "adapter"
    return base


def _run_leg(folder: Path, settings: dict[str, Any], *, vae: Path, device: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "settings.yaml"
    with whole_file(config) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    run, latents = folder / "run", folder / "latents"
    if not (run / "base").is_dir():
        _encode(read_config(config, {}), latents, device=device)
    command = [sys.executable, "-m", "genhoi.cli", "train", "--config", str(config)]
    command += ["--out", str(run), "--latents", str(latents), "--device", device]
    subprocess.run(command, check=True)
    with whole_folder(folder / "pipeline") as unfinished:
        put_together(vae=vae, transformer=run / "base", adapter=run / "adapter", out=unfinished)
    shutil.rmtree(latents, ignore_errors=True)


def _encode(config: TrainConfig, folder: Path, *, device: str) -> None:
    """Encode a leg's clips, faster than the run itself would: whole clips, in bfloat16.

    On a CPU half of the cores draw and the others encode: where both use all of them, each waits
    for the other. Beside a GPU all but one draw.
    """
    torch._dynamo.config.recompile_limit = 64  # one for every shape of a norm's input
    cores = os.cpu_count() or 1
    config = replace(config, workers=max(1, cores // 2 if device == "cpu" else cores - 1))
    base = load_base(config.base, device=device)
    vae = base.pipe.vae.to(device)  # type: ignore[attr-defined]
    mean, std = (
        torch.tensor(values, device=device).view(-1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )

    @torch.no_grad()
    def encode(frames: Tensor) -> Tensor:
        pixels = pixel_values(frames.to(device)).permute(3, 0, 1, 2)[None]
        latents = whole_clip.encode(vae, pixels.bfloat16()).float().chunk(2, 1)[0]
        return (latents - mean) / std

    base.encode = encode  # type: ignore[method-assign]
    dataset = open_clips(config)
    with Progress() as bar, torch_threads(max(1, cores - config.workers)):
        task = bar.add_task("Encoding clips", total=len(dataset))
        encode_clips(
            base, config, dataset, folder, progress=lambda done, _: bar.update(task, completed=done)
        )


@click.command()
@click.option("--vae", type=click.Path(path_type=Path, exists=True), help="The trained codec.")
@click.option(
    "--base",
    type=click.Path(path_type=Path, exists=True),
    help="A pipeline with its adapter to go on from, instead of random weights.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--plan", default="cpu", show_default=True, type=click.Choice(tuple(PLANS)))
@click.option(
    "--first", default=1, show_default=True, type=click.IntRange(1), help="Leg to begin with."
)
@click.option("--device", default="cpu", show_default=True)
def main(
    vae: Path | None, base: Path | None, out: Path, plan: str, first: int, device: str
) -> None:
    """Train the tiny model, or go on."""
    if (vae is None) == (base is None):
        raise click.ClickException("--vae, --base: got both or none, wanted one of them")
    if first > len(PLANS[plan]):
        raise click.ClickException(f"--first: got {first}, wanted at most {len(PLANS[plan])}")
    try:
        result = train(plan, out=out, base=base, vae=vae, first=first, device=device)
    except subprocess.CalledProcessError as error:
        raise click.ClickException(f"the run ended with {error.returncode}; say it again") from None
    click.echo(f"The trained model is in {result}")


if __name__ == "__main__":
    main()
