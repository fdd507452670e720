"""Trains the tiny model's codec: diffusers' `AutoencoderKLWan`, small, on clips and photographs.

    python -m benchmarks.tiny_model.codec --out results/tiny-codec --minutes 60

leaves results/tiny-codec/vae, which `AutoencoderKLWan.from_pretrained` loads, and codec.json with
what it was measured to do on held-out clips. Killed and started again, it goes on.

Single frames come first, whose convolutions have two dimensions, and then clips, ever longer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from benchmarks.tiny_model import whole_clip
from benchmarks.tiny_model.codec_loss import codec_loss
from benchmarks.tiny_model.crops import Crops, draw_clips
from genhoi.bases.wan_codec import decode_latents, encode_frames
from genhoi.data.photographs import photograph
from genhoi.data.synthetic import SyntheticHOI
from genhoi.evaluation.metrics import region_psnr, squared_error, ssim_map
from genhoi_kernels.files import remove_folder, whole_file, whole_folder

__all__ = ["CODEC", "latent_statistics", "measure_codec", "new_codec"]

CODEC: dict[str, Any] = {
    "base_dim": 32,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    # Pixels come in squares of 2 x 2, so that no convolution sees the full size.
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}


@dataclass(frozen=True)
class Stage:
    """What is learned from until a share of the time is over."""

    until: float
    frames: int
    count: int
    side: int


_STAGES = (
    Stage(0.30, frames=1, count=24, side=64),
    Stage(0.60, frames=9, count=4, side=64),
    Stage(0.85, frames=17, count=1, side=96),
    Stage(1.00, frames=33, count=1, side=96),
)
_MUON_RATE, _ADAM_RATE = 1.5e-2, 3e-3
_WARMUP, _FULL = 20, 0.3  # steps to the full rates; share of the time at them
_LAST = 0.02  # of the rates, at the end
_CLIP_NORM = 1.0
_SAVE_EVERY, _LOG_EVERY = 2.0, 0.5  # minutes
_STATISTICS, _TEST = 24, 16  # clips


def new_codec(seed: int, **changes: Any) -> Any:
    """Make one with random weights, whose latents are not normalised.

    Args:
        seed: of the weights.
        changes: what differs from `CODEC`, for tests.
    """
    config = CODEC | changes
    zeros, ones = [0.0] * config["z_dim"], [1.0] * config["z_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKLWan(**config, latents_mean=zeros, latents_std=ones)


class _Run:
    """A training run: the codec, its optimisers, how far it is."""

    def __init__(self, folder: Path, crops: Crops, *, minutes: float, seed: int) -> None:
        self.folder, self.crops, self.minutes, self.seed = folder, crops, minutes, seed
        self.codec = new_codec(seed).train()
        self.step, self.spent = 0, 0.0
        self._started = _cpu_minutes()
        kernels = {n: p for n, p in self.codec.named_parameters() if _is_hidden_kernel(n, p)}
        others = [p for n, p in self.codec.named_parameters() if n not in kernels]
        # Muon wants matrices: these share the kernels' memory.
        self.kernels = list(kernels.values())
        self.matrices = [torch.nn.Parameter(p.detach().flatten(1)) for p in self.kernels]
        self.muon = torch.optim.Muon(
            self.matrices, lr=_MUON_RATE, weight_decay=0, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.Adam(others, lr=_ADAM_RATE, betas=(0.9, 0.98))
        self._rates = [(g, g["lr"]) for o in self._optimizers() for g in o.param_groups]
        if self._checkpoint.is_file():
            self._resume()

    @property
    def share(self) -> float:
        """Tell how much of the time is over, 0 to 1."""
        return min(1.0, (self.spent + _cpu_minutes() - self._started) / self.minutes)

    @property
    def stage(self) -> Stage:
        return next(stage for stage in _STAGES if self.share <= stage.until)

    def train(self) -> None:
        """Train until the time is over."""
        saved = logged = self.share * self.minutes
        losses: list[float] = []
        was_still = self.stage.frames == 1
        while self.share < 1:
            stage = self.stage
            if was_still and stage.frames > 1:
                whole_clip.inflate(self.codec)
            was_still = stage.frames == 1
            losses.append(self._learn(stage))
            now = self.share * self.minutes
            if now - logged > _LOG_EVERY or self.share >= 1:
                self._log(now, stage, float(np.mean(losses)))
                losses, logged = [], now
            if now - saved > _SAVE_EVERY or self.share >= 1:
                self.save()
                saved = now

    def _learn(self, stage: Stage) -> float:
        """Take one step; return its loss."""
        rng = np.random.default_rng([self.seed, self.step])
        frames = self.crops.batch(rng, count=stage.count, frames=stage.frames, side=stage.side)
        torch.manual_seed(int(rng.integers(2**31)))
        loss = codec_loss(self.codec, frames)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.codec.parameters(), _CLIP_NORM)
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        share = self.share
        rate = min(1, (self.step + 1) / _WARMUP)
        rate *= 1 if share < _FULL else max(_LAST, (1 - share) / (1 - _FULL))
        for group, full in self._rates:
            group["lr"] = full * rate
        for optimizer in self._optimizers():
            optimizer.step()
        self.codec.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _optimizers(self) -> Iterator[torch.optim.Optimizer]:
        yield from (self.muon, self.adam)

    def _log(self, now: float, stage: Stage, loss: float) -> None:
        click.echo(f"{now:.1f} min, step {self.step}, {stage.frames} frames, loss {loss:.4f}")
        path = self.folder / "log.csv"
        line = "" if path.is_file() else "minutes,step,frames,loss\n"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}{now:.2f},{self.step},{stage.frames},{loss:.5f}\n")

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Write all that going on needs."""
        state = {
            "codec": self.codec.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers()],
            "step": self.step,
            "spent": self.share * self.minutes,
        }
        with whole_file(self._checkpoint) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        state = torch.load(self._checkpoint, weights_only=True)
        self.codec.load_state_dict(state["codec"])
        for optimizer, values in zip(self._optimizers(), state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self._rates = [
            (group, full)
            for optimizer, full in zip(self._optimizers(), (_MUON_RATE, _ADAM_RATE), strict=True)
            for group in optimizer.param_groups
        ]
        self.step, self.spent = state["step"], state["spent"]


def _is_hidden_kernel(name: str, weight: Tensor) -> bool:
    ends = ("conv_in", "conv_out", "quant_conv")
    return weight.ndim >= 4 and not any(end in name for end in ends)


def _cpu_minutes() -> float:
    """Count the cores' time, of which other programs take nothing away."""
    return time.process_time() / 60 / torch.get_num_threads()


@torch.no_grad()
def latent_statistics(codec: Any, clips: np.ndarray) -> tuple[list[float], list[float]]:
    """Compute the latents' mean and standard deviation by channel.

    Args:
        codec: with means 0 and deviations 1.
        clips: uint8 [clips, F, H, W, 3], F = 1 + 4 n.
    """
    latents = torch.cat([encode_frames(codec, torch.from_numpy(c.copy()))[0] for c in clips], 1)
    values = latents.flatten(1).double()
    return values.mean(1).tolist(), values.std(1).tolist()


@torch.no_grad()
def measure_codec(codec: Any, *, clips: int, size: tuple[int, int]) -> dict[str, Any]:
    """Measure on held-out clips of 49 frames what encoding and decoding leave.

    Returns:
        "psnr" dB and "ssim", means over clips, "object_psnr" in the object's region, and "rows" of
        each clip with the PSNR's thirds.
    """
    rows = []
    for sample in SyntheticHOI("test", clips=clips, size=size):
        truth = sample.clip.frames
        result = decode_latents(codec, encode_frames(codec, truth))
        error = squared_error(result, truth)
        psnr = region_psnr(error)
        rows.append(
            {
                "name": sample.name,
                "psnr": float(psnr.mean()),
                "thirds": [float(part.mean()) for part in psnr.tensor_split(3)],
                "object_psnr": float(region_psnr(error, sample.object_mask).nanmean()),
                "ssim": float(ssim_map(result, truth).mean()),
            }
        )
    means = {
        name: float(np.mean([r[name] for r in rows])) for name in ("psnr", "ssim", "object_psnr")
    }
    return means | {"clips": clips, "size": list(size), "rows": rows}


def _finish(run: _Run, clips: np.ndarray, *, size: tuple[int, int]) -> None:
    codec = run.codec.eval()
    mean, std = latent_statistics(codec, clips[:_STATISTICS])
    codec.register_to_config(latents_mean=mean, latents_std=std)
    if (run.folder / "vae").is_dir():  # of a shorter run
        remove_folder(run.folder / "vae")
    with whole_folder(run.folder / "vae") as unfinished:
        codec.half().save_pretrained(unfinished)
    codec = AutoencoderKLWan.from_pretrained(run.folder / "vae")
    record = measure_codec(codec, clips=_TEST, size=size)
    record |= {"minutes": run.minutes, "steps": run.step, "torch": torch.__version__}
    with whole_file(run.folder / "codec.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    click.echo(f"PSNR {record['psnr']:.2f} dB, SSIM {record['ssim']:.3f} on {_TEST} held-out clips")


def _photograph(rng: np.random.Generator) -> Tensor:
    pixels = np.asarray(photograph(rng, "train"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--minutes", default=60.0, show_default=True, help="Of all cores' time.")
@click.option("--clips", default=600, show_default=True, help="To learn from.")
@click.option("--seed", default=0, show_default=True)
@click.option("--side", default=128, show_default=True, help="Of the clips' frames, in pixels.")
@click.option("--threads", default=os.cpu_count(), show_default=True)
def main(out: Path, minutes: float, clips: int, seed: int, side: int, threads: int) -> None:
    """Train the codec, or go on, and measure it."""
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 64  # one for every shape of a norm's input
    out.mkdir(parents=True, exist_ok=True)
    dataset = SyntheticHOI("train", clips=clips, size=(side, side), seed=1)
    drawn = draw_clips(dataset, out / "clips.npy", processes=threads)
    run = _Run(out, Crops(drawn, _photograph), minutes=minutes, seed=seed)
    run.train()
    _finish(run, drawn, size=(side, side))


if __name__ == "__main__":
    main()
