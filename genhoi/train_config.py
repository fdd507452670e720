"""Everything that says how a training run goes: one dataclass, a YAML file, the same names as flags."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from genhoi.adapter import FlowGateReduction, GateInit, Schedule
from genhoi.masks import MaskRule
from genhoi.training import GivenFrames

__all__ = ["TrainConfig", "read_config"]

Stage = Literal["adapter", "base"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run.

    Args:
        stage: "adapter" trains GenHOI's own weights on a frozen base; "base" trains the base itself,
            without any reference (for tiny ones).
        base: "tiny", "tiny-untrained", the folder of a tiny base, or a diffusers Wan pipeline.
        data: "synthetic", or a folder or CSV of clips (see `genhoi.data.folders`).
        clips: number of synthetic clips.
        frames, height, width: of every clip; longer or larger ones are cut and resized.
        mask: of synthetic clips: "tight", "box" or "mixed".
        data_seed: of synthetic clips.
        steps: of the optimiser, in all.
        batch: samples a step, over all processes.
        micro_batch: samples a process takes at once; gradients are accumulated over the rest.
            None: all at once.
        learning_rate: after the warm-up.
        warmup: steps.
        decay: share of the steps, at the end, over which the learning rate falls to a tenth.
        weight_decay, clip_norm: of AdamW and of the gradient's norm.
        ema: of the weights that are sampled from and saved; 0 for none.
        shift: of the noise levels. None: the base's own.
        mask_weight: of the loss where something is to be generated.
        given: which frames are given, finished -> how often.
        reference_dropout: how often a sample sees no reference.
        mask_rule: when a token counts as masked for the gate. None: the base's own.
        adapter: folder or Hub name of an adapter to go on from; None for a fresh one.
        rank: of a fresh adapter's low-rank weights.
        queries_keys: whether the low-rank weights of q and k are trained, or those of v alone.
        gate_init, mask_gate, flow_gate, schedule: of a fresh adapter; see `AdapterConfig`.
        video_rank: of low-rank weights on the video's own q, k, v (through peft); 0 for none.
        backend: of the fused op; None for the first that fits.
        base_dtype: "bfloat16" halves the memory of a frozen base.
        precision: "bf16" computes in it under autocast; "no" in float32.
        parallel: how several processes share the work: "ddp" or "fsdp" (FSDP2).
        checkpointing: compute activations again in the backward pass, to save memory.
        workers: processes that read or draw clips, for encoding.
        log_every, checkpoint_every, sample_every: steps; 0 for never.
        keep: checkpoints that are kept, the latest ones.
        samples: clips of the sample sheet.
        seed: of weights, order, noise.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    stage: Stage = "adapter"
    base: str = "tiny"
    data: str = "synthetic"
    clips: int = 2000
    frames: int = 49
    height: int = 96
    width: int = 96
    mask: str = "tight"
    data_seed: int = 0
    steps: int = 1000
    batch: int = 8
    micro_batch: int | None = None
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.99
    shift: float | None = None
    mask_weight: float = 4.0
    given: dict[GivenFrames, float] = field(default_factory=lambda: {"first": 1.0})
    reference_dropout: float = 0.1
    mask_rule: MaskRule | None = None
    adapter: str | None = None
    rank: int = 32
    queries_keys: bool = True
    gate_init: GateInit = "open"
    mask_gate: bool = True
    flow_gate: FlowGateReduction | None = "token"
    schedule: Schedule = "paper"
    video_rank: int = 0
    backend: str | None = None
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["no", "bf16"] = "bf16"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpointing: bool = False
    workers: int = 0
    log_every: int = 10
    checkpoint_every: int = 200
    sample_every: int = 0
    keep: int = 2
    samples: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value that can be checked alone."""
        for name, choices in (
            ("stage", get_args(Stage)),
            ("precision", ("no", "bf16")),
            ("base_dtype", ("float32", "bfloat16")),
            ("parallel", ("ddp", "fsdp")),
            ("mask_rule", (None, *get_args(MaskRule))),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted one of {choices}")
        for name in ("clips", "steps", "batch", "log_every", "keep", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        for name in (
            "warmup", "weight_decay", "video_rank", "workers", "checkpoint_every", "sample_every",
            "samples", "mask_weight",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 0")
        for name in ("ema", "reference_dropout", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted 0 to 1")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted a positive number")
        if self.frames < 5 or (self.frames - 1) % 4:
            raise ValueError(f"frames: got {self.frames}, wanted 1 + 4 n: 5, 9, ..., 81, ...")
        if self.height % 16 or self.width % 16:
            raise ValueError(
                f"height, width: got {self.height} and {self.width}, wanted multiples of 16"
            )
        self._check_given()
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"micro_batch: got {self.micro_batch}, wanted 1 to {self.batch}")
        if self.stage == "base" and (self.adapter is not None or self.video_rank):
            raise ValueError("stage: got 'base' with adapter weights, wanted 'adapter' for these")

    def _check_given(self) -> None:
        if unknown := sorted(set(self.given) - set(get_args(GivenFrames))):
            raise ValueError(f"given: got {unknown}, wanted some of {get_args(GivenFrames)}")
        if min(self.given.values(), default=-1) < 0 or abs(sum(self.given.values()) - 1) > 1e-6:
            raise ValueError(f"given: got {self.given}, wanted shares that add up to 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for YAML."""
        return dataclasses.asdict(self)


# What may change when a run goes on: none of it has any influence on the weights.
FREE_TO_CHANGE = frozenset(
    {"workers", "log_every", "checkpoint_every", "sample_every", "keep", "samples"}
)


def read_config(path: Path | None, changes: dict[str, Any]) -> TrainConfig:
    """Settings from a YAML file, if any, with some of them changed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a mapping of known names, or a value is out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"config: {path} is no YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"config: {path} holds a {type(values).__name__}, wanted a mapping")
    values |= changes
    fields = {item.name: item for item in dataclasses.fields(TrainConfig)}
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"config: got unknown settings {unknown}, wanted some of {sorted(fields)}")
    for name, value in values.items():
        # YAML reads 1e-3 as a word and 1 as an integer.
        if fields[name].type == "float" and isinstance(value, (str, int)):
            values[name] = float(value)
    return TrainConfig(**values)
