"""Runs a training: on one CPU, one GPU or many, through accelerate.

What is learned is in `objective`. A run's folder holds config.yaml, latents/ (unless they lie
elsewhere), checkpoints/, metrics.csv, tensorboard/, samples/, and at the end adapter/ or base/
(`genhoi.training.result`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from genhoi.bases.base import Base
from genhoi.bases.load import load_base
from genhoi.bases.settings import resolve
from genhoi.data.encoded import EncodedClips
from genhoi.media import atomic_path
from genhoi.media.files import alone_in
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.attach import attach
from genhoi.models.attachment import Attachment
from genhoi.training.checkpoint import (
    copy_into,
    latest_checkpoint,
    load_checkpoint,
    remove_old,
    save_checkpoint,
    whole,
)
from genhoi.training.config import TrainConfig
from genhoi.training.log import TrainingLog
from genhoi.training.objective import (
    SampleChoices,
    make_batch,
    reconstruction_loss,
    reference_dropout,
)
from genhoi.training.optimizer import make_optimizer
from genhoi.training.parallel import Interrupts, ShardedModel, make_accelerator
from genhoi.training.result import result_folders, write_result
from genhoi.training.same_run import check_same_run
from genhoi.training.schedule import learning_rate_at
from genhoi.training.trained_weights import (
    add_low_rank,
    check_expert,
    freeze_unused,
    load_adapter,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["SMOOTHED_STEPS", "TrainProgress", "Trainer"]

SMOOTHED_STEPS = 20


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands, after every step.

    Args:
        step, steps: steps done, of how many.
        loss: mean of this step's samples, over all processes.
        loss_smoothed: mean of that over the last `SMOOTHED_STEPS` steps.
        learning_rate, grad_norm: of this step; the norm is taken before clipping.
        clips_per_second: over all processes, lately.
        seconds_left: at that speed.
    """

    step: int
    steps: int
    loss: float
    loss_smoothed: float
    learning_rate: float
    grad_norm: float
    clips_per_second: float
    seconds_left: float


class Trainer:
    """Trains an adapter: one run.

    Args:
        config: its settings.
        out: its folder. A run that was interrupted there goes on from its last checkpoint.
        clips: what it trains on, encoded for this base.
        base: None to load the one that the settings name.
        accelerator: None for one made from the settings.
        samples: clips of the sample sheets, encoded for this base; None for the first of `clips`.

    Raises:
        ImportError: accelerate, or peft where it is needed, is not installed.
        ValueError: settings that do not fit each other, the processes, or the run in `out`.

    Example:
        >>> from pathlib import Path
        >>> import genhoi
        >>> from genhoi.bases.load import load_base
        >>> from genhoi.training.clips import encode_clips, open_clips
        >>> sizes = {"clips": 2, "frames": 5, "height": 32, "width": 32}
        >>> config = genhoi.TrainConfig(base="mosaic-untrained", steps=2, batch=2, **sizes)
        >>> base = load_base(config.base)
        >>> clips = encode_clips(
        ...     base, config, open_clips(config), Path("latents"), progress=lambda done, total: None
        ... )
        >>> trainer = genhoi.Trainer(config, Path("run"), clips, base=base)
        >>> trainer.run()  # writes run/adapter
        >>> trainer.step
        2
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        clips: EncodedClips,
        *,
        base: Base | None = None,
        accelerator: Accelerator | None = None,
        samples: EncodedClips | None = None,
    ) -> None:
        self.config, self.out, self.clips = config, out, clips
        self.samples = clips if samples is None else samples
        self.accelerator = accelerator or make_accelerator(config)
        processes = self.accelerator.num_processes
        if config.batch % processes:
            raise ValueError(
                f"batch: got {config.batch}, wanted a multiple of {processes}, for there are so "
                f"many processes"
            )
        check_same_run(config, out, latents=clips.fingerprint)
        self.base = base or load_base(
            config.base,
            device=self.accelerator.device,
            dtype=getattr(torch, config.base_dtype),
            seed=config.seed,
            expert=config.expert,
        )
        check_expert(config.expert, type(self.base))
        if self.base.expert != config.expert:
            raise ValueError(
                f"base: got one with expert {self.base.expert!r} loaded, wanted {config.expert!r} "
                f"as in the settings"
            )
        reference_dropout(config, self.base.model)  # raises
        self.base.encoders_to("cpu")
        shard = config.parallel == "fsdp" and processes > 1
        # A sharded one moves block by block, for the whole may not fit.
        transformer = self.base.transformer.to("cpu" if shard else self.accelerator.device)
        # Here and not before: every process draws the same weights, however the base came.
        torch.manual_seed(config.seed)
        self.adapter, self.attachment = self._attach(transformer)
        if config.compile:
            for block in self.base.model.all_blocks:
                block.compile()  # keeps its weights' names
        if config.checkpointing:
            transformer.enable_gradient_checkpointing()
        self._owner = transformer if self.adapter is None else self.adapter
        # Of the transformer, where an adapter is trained with all of it or some low-rank weights.
        self._base_names = self._trained_of_base(transformer)
        self._sharded = ShardedModel(transformer, self.accelerator, shard=shard)
        # Kept, for FSDP shows others in their place while they are gathered.
        self._optimised = self.weights()
        optimizer: Any = make_optimizer(config, self._optimised, transformer, self.adapter)
        self.model, self.optimizer = (
            (transformer, optimizer) if shard else self.accelerator.prepare(transformer, optimizer)
        )
        self.ema = {n: w.detach().clone() for n, w in self.weights().items()} if config.ema else {}
        self.step = 0
        self._losses: deque[float] = deque(maxlen=SMOOTHED_STEPS)
        self._saved: int | None = None
        self._resume()

    # ------------------------------------------------------------------------------------- set-up

    def _attach(self, transformer: Any) -> tuple[GenHOIAdapter | None, Attachment | None]:
        config = self.config
        if config.stage == "base":
            transformer.requires_grad_(True).train()
            return None, None
        transformer.requires_grad_(config.train_base)
        if config.video_rank:
            add_low_rank(transformer, self.base.model.video_projections, config.video_rank)
        if config.adapter is not None:
            adapter = load_adapter(config.adapter)
        else:
            given = {} if config.mask_gate is None else {"mask_gate": config.mask_gate}
            adapter = GenHOIAdapter.for_transformer(
                transformer,
                rank=config.rank,
                gate_init=config.gate_init,
                flow_gate=config.flow_gate,
                schedule=config.schedule,
                **given,
            )
        freeze_unused(adapter, queries_keys=config.queries_keys)
        adapter.to(transformer.device)
        # The batch says which tokens see the reference, also where the adapter has no mask gate.
        mask_gate = not self.base.model.references_in_sequence
        attachment = attach(transformer, adapter, mask_gate=mask_gate, backend=config.backend)
        attachment.skip_unseen = False
        return adapter, attachment

    def _trained_of_base(self, transformer: Any) -> list[str]:
        """List the names of what is trained beside the adapter."""
        if self.adapter is None:
            return []
        own = set(self.adapter.parameters())
        return [
            name
            for name, weight in transformer.named_parameters()
            if weight.requires_grad and weight not in own
        ]

    def weights(self) -> dict[str, Tensor]:
        """Return what is trained, by name; sharded under FSDP."""
        weights = {n: p for n, p in self._owner.named_parameters() if p.requires_grad}
        if self._base_names:
            known = dict(self.base.transformer.named_parameters())
            weights |= {name: known[name] for name in self._base_names}
        return weights

    def choices(self) -> SampleChoices:
        """Say what `make_batch` draws from in this run."""
        config = self.config
        settings = resolve(
            self.base.settings.defaults, shift=config.shift, mask_rule=config.mask_rule
        )
        return SampleChoices(
            seed=config.seed,
            given=config.given,
            reference_dropout=reference_dropout(config, self.base.model),
            shift=settings.shift,
            mask_gate=config.stage == "base" or self.adapter_config().mask_gate,
            mask_rule=settings.mask_rule,
            levels=self.base.levels,
        )

    def adapter_config(self) -> Any:
        """Return the adapter's own settings."""
        assert self.adapter is not None
        return self.adapter.config

    # ------------------------------------------------------------------------------------ the loop

    def run(
        self,
        callback: Callable[[TrainProgress], object] | None = None,
        *,
        stopping: Callable[[], object] | None = None,
    ) -> None:
        """Train to the end, and write the result.

        Ctrl-C and SIGTERM, to any of the processes, end the run after the step at hand and a
        checkpoint; a second Ctrl-C ends it at once.

        Args:
            callback: called after every step. A KeyboardInterrupt from it is like Ctrl-C.
            stopping: called when such a signal comes, for a step may take long.

        Raises:
            KeyboardInterrupt: the run ended early; everything up to `step` is safe.
            FloatingPointError: loss or gradient is no number any more; no checkpoint was written.
            FileExistsError: another program is training in this folder.
            OSError: a file cannot be written; the last checkpoint is whole.
        """
        with alone_in(self.out) if self.accelerator.is_main_process else nullcontext():
            self._run(callback, stopping)

    def _run(
        self,
        callback: Callable[[TrainProgress], object] | None,
        stopping: Callable[[], object] | None,
    ) -> None:
        config, main = self.config, self.accelerator.is_main_process
        if main:
            self._write_config()
            remove_old(self.out / "checkpoints", keep=config.keep)
        log = TrainingLog(self.out, self.step) if main else None
        choices = self.choices()
        begun, first = time.monotonic(), self.step
        try:
            with Interrupts(stopping) as interrupts:
                while self.step < config.steps:
                    loss, norm, stop = self._one_step(choices, interrupts.seen)
                    self.step += 1
                    self._losses.append(loss)
                    progress = self._progress(loss, norm, time.monotonic() - begun, first)
                    self._after_step(progress, log)
                    if callback is not None:
                        with interrupts.collected():
                            callback(progress)
                    # Of several processes, all have to know: what came since waits for the next
                    # step, where they agree.
                    if stop or (interrupts.seen and self.accelerator.num_processes == 1):
                        self.save()
                        raise KeyboardInterrupt
        finally:
            if log is not None:
                log.close()
        self.save_result()

    def _progress(self, loss: float, norm: float, seconds: float, first: int) -> TrainProgress:
        config = self.config
        speed = config.batch * (self.step - first) / max(seconds, 1e-9)
        return TrainProgress(
            self.step,
            config.steps,
            loss,
            loss_smoothed=sum(self._losses) / len(self._losses),
            learning_rate=learning_rate_at(config, self.step - 1),
            grad_norm=norm,
            clips_per_second=speed,
            seconds_left=config.batch * (config.steps - self.step) / speed,
        )

    def _after_step(self, progress: TrainProgress, log: TrainingLog | None) -> None:
        config = self.config
        if log is not None and (self._due(config.log_every) or self.step == config.steps):
            log.add(
                self.step,
                loss=progress.loss,
                loss_smoothed=progress.loss_smoothed,
                learning_rate=progress.learning_rate,
                grad_norm=progress.grad_norm,
                clips_per_second=progress.clips_per_second,
            )
        if self._due(config.checkpoint_every) or self.step == config.steps:
            self.save()
        if self._due(config.sample_every) and config.samples:
            self._sample(log)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _one_step(self, choices: SampleChoices, stop: bool) -> tuple[float, float, bool]:
        """Take one step of the optimiser.

        Returns:
            The mean loss, the norm of the gradient, and whether any process is to stop.
        """
        config, accelerator = self.config, self.accelerator
        rank, processes = accelerator.process_index, accelerator.num_processes
        places = [self.step * config.batch + i for i in range(config.batch)][rank::processes]
        size = config.micro_batch or len(places)
        parts = [places[i : i + size] for i in range(0, len(places), size)]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(config, self.step)
        total = torch.zeros((), device=accelerator.device)
        for part in parts:
            batch = make_batch(self.base.model, self.clips, part, choices).to(accelerator.device)
            last = part is parts[-1]
            with nullcontext() if last else accelerator.no_sync(self.model):
                with self._sharded.forward():
                    losses = reconstruction_loss(
                        self.base.model,
                        self.model,
                        self.attachment,
                        batch,
                        mask_weight=config.mask_weight,
                    )
                # The processes' gradients are averaged, so each counts its samples as many times.
                accelerator.backward(losses.sum() * (processes / config.batch))
            total += losses.detach().sum()
        self._sharded.after_backward()
        gradient = accelerator.clip_grad_norm_(list(self.weights().values()), config.clip_norm)
        norm = float(whole(gradient))
        loss, stops = accelerator.reduce(torch.stack([total, total.new_tensor(stop)]), "sum")
        self._check_finite(float(loss) / config.batch, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()
        return float(loss) / config.batch, norm, bool(stops)

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        path = latest_checkpoint(self.out / "checkpoints")
        raise FloatingPointError(
            f"loss: got {loss:g} with a gradient of norm {norm:g} in step {self.step + 1}, wanted "
            f"numbers; lower learning_rate (the last checkpoint is {path or 'none'})"
        )

    @torch.no_grad()
    def _average(self) -> None:
        # Short at first, so that the initial weights are soon forgotten.
        rate = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for name, weight in self.weights().items():
            if name in self.ema:
                self.ema[name].lerp_(weight.detach(), 1 - rate)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the model the averaged weights within the block."""
        weights = self.weights()
        kept = {name: weights[name].detach().clone() for name in self.ema}
        with torch.no_grad():
            for name, value in self.ema.items():
                weights[name].copy_(value)
        self._sharded.forget_gathered()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    weights[name].copy_(value)
            self._sharded.forget_gathered()

    def _sample(self, log: TrainingLog | None) -> None:
        from genhoi.training.samples import draw_samples

        main = self.accelerator.is_main_process
        if not main and not self._sharded.is_sharded:
            return  # each process has all weights, so one can do it
        transformer = self.base.transformer
        was_training = transformer.training
        transformer.eval()
        with self.averaged(), self._sharded.forward():
            sheet = draw_samples(
                self.base,
                self.attachment,
                self.samples,
                self.config,
                folder=self.out / "samples" / f"step-{self.step:06}",
                write=main,
                mask_gate=self.choices().mask_gate,
            )
        transformer.train(was_training)
        if log is not None:
            log.add_picture(self.step, sheet)

    # --------------------------------------------------------------------------------------- files

    def save(self) -> None:
        """Write a checkpoint, now; nothing where this step has one."""
        if self._saved == self.step:
            return
        tensors = {f"weight/{name}": whole(w) for name, w in self.weights().items()}
        tensors |= {f"ema/{name}": whole(w) for name, w in self.ema.items()}
        for name, key, moment in self._moments():
            tensors[f"{key}/{name}"] = whole(moment)
        if self.accelerator.is_main_process:
            state = {
                "config": self.config.to_dict(),
                "latents": self.clips.fingerprint,
                "last_losses": list(self._losses),
            }
            save_checkpoint(
                self.out / "checkpoints", self.step, tensors, state, keep=self.config.keep
            )
        self._saved = self.step
        self.accelerator.wait_for_everyone()

    def _moments(self) -> Iterator[tuple[str, str, Tensor]]:
        """Walk the optimiser's state: name of the weight, name of the moment, moment."""
        for name, parameter in self._optimised.items():
            for key, moment in self.optimizer.state.get(parameter, {}).items():
                yield name, key, moment

    def _resume(self) -> None:
        path = latest_checkpoint(self.out / "checkpoints")
        if path is None:
            return
        tensors, state = load_checkpoint(path)
        weights = self.weights()
        # A step without learning makes the optimiser's state, which is then overwritten. Weights
        # that never had a gradient have none.
        kinds_names = (key.split("/", 1) for key in tensors)
        learned = {name for kind, name in kinds_names if kind not in ("weight", "ema")}
        for name, weight in weights.items():
            if name in learned:
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
        self.step = self._saved = int(state["step"])
        self._losses.extend(state.get("last_losses", ()))  # older checkpoints have none

    def _write_config(self) -> None:
        with atomic_path(self.out / "config.yaml", overwrite=True) as temporary:
            # In their order: that of the shares in `given` decides what is drawn.
            settings = yaml.safe_dump(self.config.to_dict(), sort_keys=False)
            temporary.write_text(settings, encoding="utf-8")

    def save_result(self) -> None:
        """Write what was learned, with the averaged weights; see `genhoi.training.result`."""
        folders = result_folders(self.out, self.config, type(self.base))
        adapter = None
        with self.averaged():
            if self.adapter is not None:
                weights = {name: whole(w) for name, w in self.adapter.state_dict().items()}
                adapter = GenHOIAdapter.from_state_dict(self.adapter.config, weights)
            transformer = {
                name: whole(w)
                for name, w in self.base.transformer.state_dict().items()
                if "base" in folders or name in self._base_names
            }
        if self.accelerator.is_main_process:
            write_result(self.out, self.base, self.config, adapter=adapter, transformer=transformer)
        self.accelerator.wait_for_everyone()
