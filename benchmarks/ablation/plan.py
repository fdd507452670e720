"""Names what is compared: bases, variants, budgets, and the settings of every training run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from genhoi.conditioning.grid import STRIDES
from genhoi.training.config import TrainConfig

__all__ = [
    "REGIMES",
    "SCALES",
    "VARIANTS",
    "Regime",
    "Run",
    "Scale",
    "Variant",
    "adapt_config",
    "base_config",
    "schedule_for",
]

Regime = Literal["near", "mixed"]

REGIMES: tuple[Regime, ...] = ("near", "mixed")
SIDE = 80
FRAMES, LONG_FRAMES = 61, 121
LATENT_FRAMES = STRIDES.latent_frames(FRAMES)
LONG_LATENT_FRAMES = STRIDES.latent_frames(LONG_FRAMES)
RANK = 32


@dataclass(frozen=True)
class Variant:
    """One way to bring the reference in.

    Args:
        about: for tables.
        schedule: of the heads; "middle" is the middle frame of the clip at hand.
        mask_gate, flow_gate: see `genhoi.attach`.
        queries_keys: whether the reference's q and k are adapted, or v alone.
        video_rank: of low-rank weights on the video's own q, k, v.
        first_frame: the reference is prepended to the video as a frame, as VACE does it.
    """

    about: str
    schedule: str | float = "paper"
    mask_gate: bool = False
    flow_gate: Literal["token"] | None = None
    queries_keys: bool = True
    video_rank: int = 0
    first_frame: bool = False


_FIXED = Variant("every head at frame -1", schedule=-1.0)
_PAPER = Variant("head-sliding, paper's schedule")

VARIANTS = {
    "fixed": _FIXED,
    "paper": _PAPER,
    "middle": Variant("every head at the middle frame", schedule="middle"),
    "release": Variant("head-sliding, release's schedule", schedule="release"),
    "mask": replace(_PAPER, about="sliding + mask gate", mask_gate=True),
    "mask+flow": replace(
        _PAPER, about="sliding + mask gate + token flow gate", mask_gate=True, flow_gate="token"
    ),
    "vace": Variant("reference prepended as a frame (VACE)", first_frame=True),
    "fixed-v": replace(_FIXED, about="frame -1, v adapted alone", queries_keys=False),
    "paper-v": replace(_PAPER, about="sliding, v adapted alone", queries_keys=False),
    "fixed-video": replace(_FIXED, about="frame -1, video stream adapted too", video_rank=16),
    "paper-video": replace(_PAPER, about="sliding, video stream adapted too", video_rank=16),
    "mask-video": replace(
        _PAPER,
        about="sliding + mask gate, video stream adapted too",
        mask_gate=True,
        video_rank=16,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done.

    Args:
        clips: of the training split.
        base_steps, base_batch: of pretraining.
        evaluations: steps at which an adapted model is measured; the last ends the adaptation.
        batch: of adaptation.
        test_set: held-out clips there are.
        test_clips: of them measured at the last evaluation.
        early_clips: measured at those before.
        sampling_steps: of Euler's method.
        pose: whether the model is told the object's pose in every frame; see `posed`.
    """

    clips: int
    base_steps: int
    base_batch: int
    evaluations: tuple[int, ...]
    batch: int
    test_set: int
    test_clips: int
    early_clips: int
    sampling_steps: int
    pose: bool = True


SCALES = {
    "full": Scale(
        clips=2500,
        base_steps=1000,
        base_batch=8,
        evaluations=(0, 25, 50, 100, 200, 400, 800),
        batch=4,
        test_set=96,
        test_clips=32,
        early_clips=16,
        sampling_steps=4,
    ),
    "small": Scale(
        clips=64,
        base_steps=60,
        base_batch=4,
        evaluations=(0, 10, 20),
        batch=4,
        test_set=8,
        test_clips=6,
        early_clips=4,
        sampling_steps=3,
    ),
}


@dataclass(frozen=True)
class Run:
    """One adaptation.

    Args:
        regime: of the base.
        variant: name in `VARIANTS`.
        seed: of base and adaptation.
    """

    regime: Regime
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Write the run as a folder's name."""
        return f"{self.regime}-{self.variant}-s{self.seed}"


def schedule_for(variant: Variant, latent_frames: int) -> str | float:
    """Return the schedule that `attach` takes for a clip of so many latent frames."""
    return float(latent_frames // 2) if variant.schedule == "middle" else variant.schedule


def base_config(scale: Scale, regime: Regime, seed: int) -> TrainConfig:
    """Return the settings of pretraining, which sees no reference."""
    return TrainConfig(
        stage="base",
        base="mosaic-untrained",
        clips=scale.clips,
        frames=FRAMES,
        height=SIDE,
        width=SIDE,
        steps=scale.base_steps,
        batch=scale.base_batch,
        learning_rate=1e-3,
        warmup=100,
        ema=0.995,
        given={regime: 1.0},
        checkpoint_every=250,
        seed=seed,
    )


def adapt_config(scale: Scale, run: Run, base: Path) -> TrainConfig:
    """Return the settings of adapting a frozen base; half of the clips have frame 0 given."""
    variant = VARIANTS[run.variant]
    options: dict[str, Any] = {
        "schedule": schedule_for(variant, LATENT_FRAMES),
        "mask_gate": variant.mask_gate,
        "flow_gate": variant.flow_gate,
        "queries_keys": variant.queries_keys,
        "video_rank": variant.video_rank,
    }
    return TrainConfig(
        stage="adapter",
        base=str(base),
        clips=scale.clips,
        frames=FRAMES,
        height=SIDE,
        width=SIDE,
        steps=scale.evaluations[-1],
        batch=scale.batch,
        learning_rate=1e-3,
        warmup=10,
        decay=0.0,
        ema=0.95,
        weight_decay=0.0,
        given={"first": 0.5, "none": 0.5},
        reference_dropout=0.0,
        rank=RANK,
        checkpoint_every=100,
        seed=run.seed,
        **options,
    )
