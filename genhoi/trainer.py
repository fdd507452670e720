"""Runs a training: on one CPU, one GPU or many, through accelerate.

What is learned is in `genhoi.training`. A run's folder holds config.yaml, latents/ (unless they lie
elsewhere), checkpoints/, metrics.csv, tensorboard/, samples/, and at the end adapter/ or base/.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from genhoi.adapter import GenHOIAdapter
from genhoi.base import Base
from genhoi.bases import load_base
from genhoi.checkpoint import (
    copy_into,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    whole,
)
from genhoi.data.encoded import EncodedClips
from genhoi.media import atomic_path
from genhoi.tiny import TinyBase
from genhoi.train_config import FREE_TO_CHANGE, TrainConfig
from genhoi.training import SampleChoices, make_batch, reconstruction_loss
from genhoi.training_log import TrainingLog
from genhoi.wan import Attachment, attach

__all__ = ["TrainProgress", "Trainer", "learning_rate_at"]

_BETAS = (0.9, 0.98)


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands, after every step.

    Args:
        step, steps: steps done, of how many.
        loss: mean of this step's samples, over all processes.
        learning_rate, grad_norm: of this step; the norm is taken before clipping.
        clips_per_second: over all processes, lately.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    clips_per_second: float
    seconds_left: float


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Of step `step`, from 0: warm-up, a plateau, then a straight line down to a tenth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    falling = config.steps * config.decay
    late = (step - (config.steps - falling)) / falling if falling else 0.0
    return config.learning_rate * warm * (1 - 0.9 * max(0.0, late))


class Trainer:
    """One run.

    Args:
        config: its settings.
        out: its folder. A run that was interrupted there goes on from its last checkpoint.
        clips: what it trains on, encoded for this base.
        base: None to load the one that the settings name.
        accelerator: None for one made from the settings.

    Raises:
        ValueError: settings that do not fit each other, the processes, or the run in `out`.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        clips: EncodedClips,
        *,
        base: Base | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.config, self.out, self.clips = config, out, clips
        self.accelerator = accelerator or make_accelerator(config)
        processes = self.accelerator.num_processes
        if config.batch % processes:
            raise ValueError(f"batch: got {config.batch}, wanted a multiple of {processes}, for "
                             f"there are so many processes")  # fmt: skip
        self._check_same_run()
        # Every process draws the same initial weights.
        torch.manual_seed(config.seed)
        self.base = base or load_base(
            config.base,
            device=self.accelerator.device,
            dtype=getattr(torch, config.base_dtype),
            seed=config.seed,
        )
        self.base.encoders_to("cpu")
        transformer = self.base.transformer.to(self.accelerator.device)
        self.adapter, self.attachment = self._attach(transformer)
        if config.checkpointing:
            transformer.enable_gradient_checkpointing()
        self._owner = transformer if self.adapter is None else self.adapter
        self._video_names = [n for n, _ in transformer.named_parameters() if ".lora_" in n]
        self._video_names = [n for n in self._video_names if ".processor." not in n]
        optimizer = torch.optim.AdamW(
            list(self.weights().values()), betas=_BETAS, weight_decay=config.weight_decay
        )
        self.model, self.optimizer = self.accelerator.prepare(transformer, optimizer)
        self.ema = {n: w.detach().clone() for n, w in self.weights().items()} if config.ema else {}
        self.step = 0
        self._resume()

    # ------------------------------------------------------------------------------------- set-up

    def _attach(self, transformer: Any) -> tuple[GenHOIAdapter | None, Attachment | None]:
        config = self.config
        if config.stage == "base":
            transformer.requires_grad_(True).train()
            return None, None
        transformer.requires_grad_(False)
        if config.video_rank:
            from peft import LoraConfig

            projections = r".*attn1\.(to_q|to_k|to_v)"
            transformer.add_adapter(LoraConfig(
                r=config.video_rank, lora_alpha=config.video_rank, target_modules=projections
            ))  # fmt: skip
        if config.adapter is not None:
            adapter = GenHOIAdapter.from_pretrained(config.adapter).float()
        else:
            adapter = GenHOIAdapter.for_transformer(
                transformer, rank=config.rank, gate_init=config.gate_init,
                mask_gate=config.mask_gate, flow_gate=config.flow_gate, schedule=config.schedule,
            )  # fmt: skip
        if not config.queries_keys:
            for layer in adapter.layers:
                for part in (layer.lora_q, layer.lora_k):  # type: ignore[union-attr]
                    part.requires_grad_(False)
        adapter.to(self.accelerator.device)
        # The batch says which tokens see the reference, also where the adapter has no mask gate.
        attachment = attach(transformer, adapter, mask_gate=True, backend=config.backend)
        attachment.skip_unseen = False
        return adapter, attachment

    def weights(self) -> dict[str, Tensor]:
        """What is trained, by name; sharded under FSDP."""
        found = {n: p for n, p in self._owner.named_parameters() if p.requires_grad}
        if self._video_names:
            known = dict(self.base.transformer.named_parameters())
            found |= {name: known[name] for name in self._video_names}
        return found

    def _choices(self) -> SampleChoices:
        config, defaults = self.config, self.base.defaults
        return SampleChoices(
            seed=config.seed,
            given=config.given,
            reference_dropout=config.reference_dropout,
            shift=config.shift or defaults.shift,
            mask_gate=config.stage == "base" or self.adapter_config().mask_gate,
            mask_rule=config.mask_rule or defaults.mask_rule,
        )

    def adapter_config(self) -> Any:
        """The adapter's own settings."""
        assert self.adapter is not None
        return self.adapter.config

    # ------------------------------------------------------------------------------------ the loop

    def run(self, callback: Callable[[TrainProgress], object] | None = None) -> None:
        """Train to the end, and write the result.

        What the callback raises, and Ctrl-C, ends the run after a checkpoint.
        """
        config, main = self.config, self.accelerator.is_main_process
        log = TrainingLog(self.out, self.step) if main else None
        choices = self._choices()
        begun, first = time.monotonic(), self.step
        try:
            while self.step < config.steps:
                loss, norm = self._one_step(choices)
                self.step += 1
                speed = config.batch * (self.step - first) / (time.monotonic() - begun)
                progress = TrainProgress(
                    self.step, config.steps, loss, learning_rate_at(config, self.step - 1), norm,
                    speed, config.batch * (config.steps - self.step) / speed,
                )  # fmt: skip
                if log is not None and (self._due(config.log_every) or self.step == config.steps):
                    log.add(
                        self.step, loss=loss, learning_rate=progress.learning_rate,
                        grad_norm=norm, clips_per_second=speed,
                    )  # fmt: skip
                if self._due(config.checkpoint_every) or self.step == config.steps:
                    self.save()
                if self._due(config.sample_every):
                    self._sample(log)
                if callback is not None:
                    callback(progress)
        except KeyboardInterrupt:
            self.save()
            raise
        finally:
            if log is not None:
                log.close()
        self.save_result()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _one_step(self, choices: SampleChoices) -> tuple[float, float]:
        """One step of the optimiser; the mean loss, and the gradient's norm."""
        config, accelerator = self.config, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        places = [self.step * config.batch + i for i in range(config.batch)][rank::processes]
        size = config.micro_batch or len(places)
        parts = [places[i : i + size] for i in range(0, len(places), size)]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(config, self.step)
        total = torch.zeros((), device=accelerator.device)
        for part in parts:
            batch = make_batch(self.clips, part, choices).to(accelerator.device)
            last = part is parts[-1]
            with nullcontext() if last else accelerator.no_sync(self.model):
                losses = reconstruction_loss(
                    self.model, self.attachment, batch, mask_weight=config.mask_weight
                )
                # The processes' gradients are averaged, so each counts its samples as many times.
                accelerator.backward(losses.sum() * (processes / config.batch))
            total += losses.detach().sum()
        norm = accelerator.clip_grad_norm_(list(self.weights().values()), config.clip_norm)
        loss = float(accelerator.reduce(total, "sum")) / config.batch
        if loss != loss:
            raise FloatingPointError(f"loss: not a number in step {self.step}; lower learning_rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()
        return loss, float(whole(norm) if isinstance(norm, Tensor) else norm)

    @torch.no_grad()
    def _average(self) -> None:
        # Short at first, so that the initial weights are soon forgotten.
        rate = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for name, weight in self.weights().items():
            if name in self.ema:
                self.ema[name].lerp_(weight.detach(), 1 - rate)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        weights = self.weights()
        kept = {name: weights[name].detach().clone() for name in self.ema}
        with torch.no_grad():
            for name, value in self.ema.items():
                weights[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    weights[name].copy_(value)

    def _sample(self, log: TrainingLog | None) -> None:
        from genhoi.training_samples import draw_samples

        transformer = self.base.transformer
        was_training = transformer.training
        transformer.eval()
        with self.averaged():
            sheet = draw_samples(
                self.base, self.attachment, self.clips, self.config,
                folder=self.out / "samples" / f"step-{self.step:06}",
                write=self.accelerator.is_main_process,
            )  # fmt: skip
        transformer.train(was_training)
        if log is not None:
            log.add_picture(self.step, sheet)

    # --------------------------------------------------------------------------------------- files

    def save(self) -> None:
        """Write a checkpoint, now."""
        tensors = {f"weight/{name}": whole(w) for name, w in self.weights().items()}
        tensors |= {f"ema/{name}": whole(w) for name, w in self.ema.items()}
        for name, key, moment in self._moments():
            tensors[f"{key}/{name}"] = whole(moment)
        if self.accelerator.is_main_process:
            state = {"config": self.config.to_dict()}
            save_checkpoint(
                self.out / "checkpoints", self.step, tensors, state, keep=self.config.keep
            )
        self.accelerator.wait_for_everyone()

    def _moments(self) -> Iterator[tuple[str, str, Tensor]]:
        """(name of the weight, name of the moment, moment) of the optimiser's state."""
        names = list(self.weights())
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, parameter in zip(names, parameters, strict=True):
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                yield name, key, moment

    def _resume(self) -> None:
        path = latest_checkpoint(self.out / "checkpoints")
        if path is None:
            return
        tensors, state = load_checkpoint(path)
        weights = self.weights()
        # A step with no gradient makes the optimiser's state, which is then overwritten.
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, weight in weights.items():
            copy_into(weight, tensors[f"weight/{name}"])
        for name, value in self.ema.items():
            copy_into(value, tensors[f"ema/{name}"])
        for name, key, moment in self._moments():
            copy_into(moment, tensors[f"{key}/{name}"])
        self.step = int(state["step"])

    def _check_same_run(self) -> None:
        path = latest_checkpoint(self.out / "checkpoints")
        if path is None:
            return
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        before, now = state["config"], self.config.to_dict()
        changed = [k for k in now if before.get(k) != now[k] and k not in FREE_TO_CHANGE]
        if changed:
            pairs = ", ".join(f"{k} {before.get(k)!r} -> {now[k]!r}" for k in changed)
            raise ValueError(
                f"out: {self.out} holds a run with other settings ({pairs}); wanted the same, or "
                f"another folder"
            )

    def save_result(self) -> None:
        """Write adapter/ or base/, with the averaged weights, and config.yaml."""
        with self.averaged():
            weights = {name: whole(w) for name, w in self._owner.state_dict().items()}
        if not self.accelerator.is_main_process:
            return
        with atomic_path(self.out / "config.yaml", overwrite=True) as temporary:
            temporary.write_text(yaml.safe_dump(self.config.to_dict()), encoding="utf-8")
        if self.adapter is not None:
            result = GenHOIAdapter.from_state_dict(self.adapter.config, weights)
            result.save_pretrained(self.out / "adapter")
        elif isinstance(self.base, TinyBase):
            with self.averaged():
                self.base.save_pretrained(self.out / "base", about=self._about())
        else:
            with self.averaged():
                self.base.transformer.save_pretrained(self.out / "base")

    def _about(self) -> str:
        config = self.config
        size = f"{config.width}x{config.height}, {config.frames} frames"
        return f"trained on {config.data} clips ({size}), {config.steps} steps of {config.batch}"


def make_accelerator(config: TrainConfig) -> Accelerator:
    """For the settings; reads the processes from `accelerate launch`'s or torchrun's environment."""
    options: dict[str, Any] = {}
    if config.parallel == "fsdp":
        from accelerate.utils import FullyShardedDataParallelPlugin
        from torch.distributed.fsdp import MixedPrecisionPolicy

        half = torch.bfloat16 if config.precision == "bf16" else None
        options["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["WanTransformerBlock"],
            # Inputs keep their type: timesteps and rotations need float32.
            mixed_precision_policy=MixedPrecisionPolicy(
                param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False
            ),
        )
    return Accelerator(mixed_precision=config.precision, **options)
