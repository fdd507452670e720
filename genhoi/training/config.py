"""All that says how a training run goes: one dataclass, a YAML file, the same names as flags."""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from genhoi.conditioning.grid import STRIDES
from genhoi.models.adapter_config import FlowGateReduction, GateInit, Schedule

__all__ = ["GivenFrames", "TrainConfig", "changed_settings", "parse_setting", "read_config"]

Stage = Literal["adapter", "base"]
Optimizer = Literal["adamw", "muon"]
Mask = Literal["tight", "grown", "box", "mixed"]
# "near": a given frame beside every hidden one; "mixed": from none to half of all, anywhere. Both
# are for bases that encode every latent frame by itself.
GivenFrames = Literal["none", "first", "first_last", "near", "mixed"]
# As genhoi.models.experts and genhoi.conditioning.masks have them, whose torch is not waited for
# where only settings are read.
Expert = Literal["high", "low"]
MaskRule = Literal["release", "any"]

_NOT_NEGATIVE = (
    "warmup",
    "weight_decay",
    "video_rank",
    "workers",
    "checkpoint_every",
    "sample_every",
    "samples",
    "mask_weight",
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Says how a run goes.

    Args:
        stage: "adapter" trains GenHOI's own weights on a frozen base; "base" trains the base
            itself, without any reference (for small ones).
        base: "tiny", "mosaic-untrained", the folder of a mosaic base, or a diffusers Wan pipeline.
        expert: of a base with two transformers (Wan 2.2), the one to train on, at its noise levels:
            high or low; the other is not loaded.
        data: "synthetic", or a folder or CSV of clips (see `genhoi.data.folders`).
        clips: how many synthetic clips are made.
        frames: length of every clip, 1 + 4 n; longer ones are cut into several.
        height, width: size of every clip, multiples of 16; others are resized, and cut at the
            sides.
        mask: how synthetic clips are masked: close to hand and object, some pixels wider, a box
            around both, or one of these for each clip.
        data_seed: another number makes other synthetic clips.
        object_from_mask: where your own clips lack a picture of the object, cut it out of the clip.
        steps: steps of the optimiser, in all.
        batch: samples a step, over all processes.
        micro_batch: samples a process takes at once; gradients are accumulated over the rest.
            None: all at once.
        optimizer: adamw, or muon: Muon for the matrices inside the blocks and the low-rank ones, at
            the same learning rate, and AdamW for the rest.
        learning_rate: learning rate after the warm-up.
        warmup: steps over which the learning rate rises.
        decay: share of the steps, at the end, over which the learning rate falls to a tenth.
        weight_decay: weight decay of the optimiser.
        clip_norm: the gradient's norm is cut to it.
        ema: decay of the weights' moving average, which is sampled from and saved; 0 for none.
        shift: how far noise levels are shifted towards noise. None: as the base wants it.
        mask_weight: weight of the loss where something is to be generated; 1 elsewhere.
        given: which frames are given, finished, and how often: none, first, first_last, and for a
            mosaic base near (one beside every hidden one) and mixed (none to half of them).
        reference_dropout: how often a sample sees no reference. None: one in ten, of a VACE base
            never, for there references are part of the sequence.
        mask_rule: when a token counts as masked for the gate. None: as the base wants it.
        adapter: folder or Hub name of an adapter to go on from; None for a fresh one.
        rank: rank of a fresh adapter's low-rank weights.
        queries_keys: whether the low-rank weights of q and k are trained, or those of v alone.
        gate_init: whether a fresh adapter's gates start open, or at one half.
        mask_gate: whether a fresh adapter lets only tokens inside the mask see the reference. None:
            yes, of a VACE base no, which has no such gate.
        flow_gate: whether a fresh adapter has a gate for every token or sequence, or none.
        schedule: where a fresh adapter puts references in time: paper, release, or the frame of
            all heads.
        video_rank: rank of low-rank weights on the video's own q, k, v (through peft); 0 for none.
        train_base: train the whole base along with the adapter (for small ones).
        backend: backend of the fused op, see `genhoi doctor`; None for the first that fits.
        base_dtype: what a frozen base is kept in: bfloat16 halves its memory.
        precision: "bf16" computes in it under autocast; "no" in float32.
        parallel: how several processes share the work: "ddp" or "fsdp" (FSDP2).
        checkpointing: compute activations again in the backward pass, to save memory.
        compile: compile every block by torch.compile: steps are shorter, the first one is longer.
        workers: processes that read or draw clips, for encoding. 0: `genhoi train` chooses.
        log_every: steps between two rows of metrics.
        checkpoint_every: steps between two checkpoints; 0 for the last one alone.
        sample_every: steps between two sheets of samples; 0 for none.
        keep: how many checkpoints are kept, the latest ones.
        samples: clips that a sample sheet shows.
        seed: seed of weights, order and noise.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> import genhoi
        >>> config = genhoi.TrainConfig(data="clips", steps=400, rank=16)
        >>> config.frames, config.to_dict()["learning_rate"]
        (49, 0.001)
    """

    stage: Stage = "adapter"
    base: str = "tiny"
    expert: Expert | None = None
    data: str = "synthetic"
    clips: int = 2000
    frames: int = 49
    height: int = 128
    width: int = 128
    mask: Mask = "tight"
    data_seed: int = 0
    object_from_mask: bool = False
    steps: int = 1000
    batch: int = 8
    micro_batch: int | None = None
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: float = 0.4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.99
    shift: float | None = None
    mask_weight: float = 4.0
    given: dict[GivenFrames, float] = field(default_factory=lambda: {"first": 1.0})
    reference_dropout: float | None = None
    mask_rule: MaskRule | None = None
    adapter: str | None = None
    rank: int = 32
    queries_keys: bool = True
    gate_init: GateInit = "open"
    mask_gate: bool | None = None
    flow_gate: FlowGateReduction | None = "token"
    schedule: Schedule = "paper"
    video_rank: int = 0
    train_base: bool = False
    backend: str | None = None
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["no", "bf16"] = "bf16"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    checkpointing: bool = False
    compile: bool = False
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
            ("mask", get_args(Mask)),
            ("optimizer", get_args(Optimizer)),
            ("precision", ("no", "bf16")),
            ("base_dtype", ("float32", "bfloat16")),
            ("parallel", ("ddp", "fsdp")),
            ("mask_rule", (None, *get_args(MaskRule))),
            ("gate_init", get_args(GateInit)),
            ("flow_gate", (None, *get_args(FlowGateReduction))),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted one of {choices}")
        for name in ("clips", "steps", "batch", "log_every", "keep", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 1")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted at least 0")
        for name in ("ema", "reference_dropout", "decay"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted 0 to 1")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted a positive number")
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise ValueError(f"shift: got {self.shift}, wanted a positive number")
        if not STRIDES.is_clip(self.frames):
            raise ValueError(f"frames: got {self.frames}, wanted 1 + 4 n: 5, 9, ..., 81, ...")
        if not STRIDES.fits(self.height, self.width):
            raise ValueError(
                f"height, width: got {self.height} and {self.width}, wanted multiples of "
                f"{STRIDES.token}"
            )
        self._check_given()
        if isinstance(self.schedule, str) and self.schedule not in ("paper", "release"):
            raise ValueError(
                f"schedule: got {self.schedule!r}, wanted paper, release, or the frame of all heads"
            )
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(f"micro_batch: got {self.micro_batch}, wanted 1 to {self.batch}")
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError(
                "optimizer: got 'muon' with parallel 'fsdp', wanted 'adamw' there, for Muon needs "
                "every matrix whole"
            )
        if self.compile and self.parallel == "fsdp":
            raise ValueError(
                "compile: got it with parallel 'fsdp', wanted one of the two: together they are "
                "untested"
            )
        if (self.stage == "base" or self.train_base) and self.base_dtype != "float32":
            raise ValueError(
                "base_dtype: got 'bfloat16' for a base to be trained, wanted 'float32'"
            )
        if self.train_base and (self.stage == "base" or self.video_rank):
            raise ValueError(
                f"train_base: got it with stage {self.stage!r} and video_rank {self.video_rank}, "
                f"wanted stage 'adapter' and video_rank 0"
            )
        if self.stage == "base" and (self.adapter is not None or self.video_rank):
            raise ValueError("stage: got 'base' with adapter weights, wanted 'adapter' for these")

    def _check_given(self) -> None:
        if unknown := sorted(set(self.given) - set(get_args(GivenFrames))):
            raise ValueError(f"given: got {unknown}, wanted some of {get_args(GivenFrames)}")
        if min(self.given.values(), default=-1) < 0 or abs(sum(self.given.values()) - 1) > 1e-6:
            raise ValueError(f"given: got {self.given}, wanted shares that add up to 1")

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, as for YAML."""
        return dataclasses.asdict(self)


# What may change when a run goes on. None of it has any influence on the weights ...
_WITHOUT_INFLUENCE = {"workers", "log_every", "checkpoint_every", "sample_every", "keep", "samples"}
# ... or none beyond rounding: where memory ran out, the run may go on in smaller parts.
_ROUNDING_ONLY = {"micro_batch", "parallel", "checkpointing", "compile", "backend"}
FREE_TO_CHANGE = frozenset(_WITHOUT_INFLUENCE | _ROUNDING_ONLY)


def changed_settings(before: dict[str, Any], now: TrainConfig) -> list[str]:
    """List what keeps a run from going on: "name old -> new" for each setting that changed.

    The number of steps is none of it, for it may grow (`genhoi.training.schedule`).

    Args:
        before: `TrainConfig.to_dict` of the run so far. What it lacks is newer than it, and had its
            default's effect.
        now: of the run that is to go on.
    """
    defaults = TrainConfig().to_dict()
    changes = []
    for name, value in now.to_dict().items():
        old = before.get(name, defaults[name])
        # Shares are drawn from in their order, so another order is another run.
        in_order = (list(old), list(value)) if isinstance(value, dict) else (0, 0)
        if (
            name not in FREE_TO_CHANGE
            and name != "steps"
            and (old != value or in_order[0] != in_order[1])
        ):
            changes.append(f"{name} {old!r} -> {value!r}")
    return changes


def read_config(path: Path | None, changes: dict[str, Any]) -> TrainConfig:
    """Read settings from a YAML file, if any, and change some of them.

    Args:
        path: of the file; None for the defaults.
        changes: what wins over it, in the types of `TrainConfig` or as text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a mapping of known names, or a value is of another type or out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        if not path.is_file():
            raise FileNotFoundError(f"config: there is no file {path}")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"config: {path} is no YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"config: {path} holds a {type(values).__name__}, wanted a mapping")
    values |= changes
    fields = {item.name for item in dataclasses.fields(TrainConfig)}
    if unknown := sorted(set(map(str, values)) - fields):
        raise ValueError(f"config: got unknown settings {unknown}, wanted some of {sorted(fields)}")
    return TrainConfig(**{name: parse_setting(name, value) for name, value in values.items()})


# --------------------------------------------------------------------------------- values from text

_KINDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a word",
    type(None): "none",
    list: "numbers as 0,1,2",
    dict: "shares as first=0.5,none=0.5",
}


def parse_setting(name: str, value: Any) -> Any:
    """Turn a setting's value from YAML or text into its own type.

    YAML reads 1e-3 as a word; on a command line everything is one. "none" stands for None, and
    "first=0.5,none=0.5" for shares.

    Raises:
        ValueError: it is of none of the setting's types.
    """
    hint = get_type_hints(TrainConfig)[name]
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in kinds and value in (None, "none"):
        return None
    # A number is also a word, so words come last.
    for kind in sorted((k for k in kinds if k is not type(None)), key=lambda kind: kind is str):
        try:
            return _parsed(kind, value)
        except (ValueError, TypeError):
            continue
    wanted = " or ".join(_kind_text(kind) for kind in kinds)
    raise ValueError(f"{name}: got {value!r}, wanted {wanted}")


def _parsed(kind: Any, value: Any) -> Any:
    """Turn a value into one kind; raise ValueError or TypeError where it is of another."""
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif get_origin(kind) is dict:
        if isinstance(value, str):
            pairs = (item.partition("=") for item in value.split(","))
            value = {which.strip(): share if equals else 1 for which, equals, share in pairs}
        if isinstance(value, dict):
            return {which: _parsed(float, share) for which, share in value.items()}
    elif get_origin(kind) is list:
        items = value.split(",") if isinstance(value, str) else value
        if isinstance(items, list):
            return [_parsed(float, item) for item in items]
    elif kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, (int, str)):
            return int(value)
    elif isinstance(value, (str, int, float)):
        return kind(value)
    raise ValueError


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return _KINDS[get_origin(kind) or kind]
