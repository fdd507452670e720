"""Runs one piece of the study at a time: pretraining, the base alone, an adaptation.

Each piece leaves files that say it is done, and is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation.first_frame import FirstFrame
from benchmarks.ablation.flat import FlatHOI
from benchmarks.ablation.measure import (
    GIVEN,
    Arrays,
    attention_mass,
    edited_latents,
    measure,
    save_arrays,
)
from benchmarks.ablation.plan import (
    FRAMES,
    LATENT_FRAMES,
    LONG_FRAMES,
    LONG_LATENT_FRAMES,
    SIDE,
    VARIANTS,
    Regime,
    Run,
    Scale,
    Variant,
    adapt_config,
    base_config,
    schedule_for,
)
from benchmarks.ablation.posed import PosedClips
from benchmarks.ablation.test_set import TestSet
from genhoi.bases.base import Base
from genhoi.bases.load import load_base
from genhoi.bases.mosaic import UNTRAINED
from genhoi.data.encoded import EncodedClips, encode_dataset
from genhoi.models.adapter import GenHOIAdapter
from genhoi.training.trainer import Trainer, TrainProgress
from genhoi_kernels.files import whole_file

__all__ = ["Study", "VariantTrainer"]

Note = Callable[[str], object]
_MASS_CLIPS = 12


class Study:
    """Keeps all pieces of the study in one folder.

    Args:
        out: where everything is kept.
        scale: how much is done.
        note: called with a line about what is being done.
    """

    def __init__(self, out: Path, scale: Scale, note: Note) -> None:
        self.out, self.scale, self.note = out, scale, note
        _same_scale(out / "scale.json", scale)
        codec = load_base(UNTRAINED)

        def counted(what: str) -> Callable[[int, int], object]:
            def show(done: int, total: int) -> None:
                if done % 200 == 0 or done == total:
                    note(f"encoding {what}: {done} of {total}")

            return show

        latents = out / "latents"
        dataset = FlatHOI("train", clips=scale.clips, frames=FRAMES, size=(SIDE, SIDE))
        self.clips: EncodedClips = encode_dataset(
            codec,
            dataset,
            latents / "train",
            given=("none",),
            workers=2,
            progress=counted("training clips"),
        )
        if scale.pose:
            self.clips = PosedClips(latents / "train", dataset)
        self.test, self.long = (
            TestSet(
                codec,
                latents / name,
                clips=scale.test_set,
                frames=frames,
                pose=scale.pose,
                progress=counted(f"test clips of {frames} frames"),
            )
            for name, frames in (("test", FRAMES), ("test-long", LONG_FRAMES))
        )

    # --- the bases

    def base_folder(self, regime: Regime, seed: int) -> Path:
        """Return the folder of a pretrained base."""
        return self.out / "bases" / f"{regime}-s{seed}"

    def pretrain(self, regime: Regime, seed: int) -> None:
        """Train a base without references, and measure it alone."""
        folder = self.base_folder(regime, seed)
        if not (folder / "base" / "mosaic_base.json").is_file():
            config = base_config(self.scale, regime, seed)
            Trainer(config, folder, self.clips).run(self._progress(f"base {folder.name}"))
        alone = self.out / "runs" / f"{regime}-alone-s{seed}"
        if not (alone / "done").is_file():
            self.note(f"measuring {alone.name}")
            base = load_base(folder / "base")
            for test, long in ((self.test, False), (self.long, True)):
                results: Arrays = {}
                for given in GIVEN:
                    without = self._without(base, folder, test, given)
                    arrays = measure(
                        base,
                        None,
                        test,
                        self.scale.test_clips,
                        given=given,
                        steps=self.scale.sampling_steps,
                        mask_gate=True,
                        without=without,
                        swap=False,
                    )
                    results |= {f"{given}/{k}": v for k, v in arrays.items()}
                save_arrays(alone / _file(0, long=long), results)
            (alone / "done").touch()

    def _without(self, base: Base, folder: Path, test: TestSet, given: Any) -> Tensor:
        """Return what a base paints without any reference; it is computed once."""
        path = folder / f"without-{given}-{test.frames}-{len(test)}.npz"
        if not path.is_file():
            latents = edited_latents(
                base, None, test, len(test), given=given, steps=self.scale.sampling_steps
            )
            save_arrays(path, {"latents": latents.numpy()})
        return torch.from_numpy(np.load(path)["latents"])

    # --- the adaptations

    def adapt(self, run: Run) -> None:
        """Adapt a base in one way, measuring it on the way."""
        folder = self.out / "runs" / run.name
        if (folder / "done").is_file():
            return
        variant = VARIANTS[run.variant]
        pretrained = self.base_folder(run.regime, run.seed)
        config = adapt_config(self.scale, run, pretrained / "base")
        without = {
            (given, test.frames): self._without(
                load_base(pretrained / "base"), pretrained, test, given
            )
            for given in GIVEN
            for test in (self.test, self.long)
        }
        trainer = VariantTrainer(config, folder / "training", self.clips, variant=variant)
        show = self._progress(run.name)

        def after(progress: TrainProgress) -> None:
            show(progress)
            if progress.step in self.scale.evaluations:
                self._evaluate(run, folder, trainer, progress.step, without)

        # Also where it goes on: it may have ended between a checkpoint and its evaluation.
        if trainer.step in self.scale.evaluations:
            self._evaluate(run, folder, trainer, trainer.step, without)
        trainer.run(after)
        (folder / "done").touch()

    def _evaluate(
        self,
        run: Run,
        folder: Path,
        trainer: VariantTrainer,
        step: int,
        without: dict[tuple[Any, int], Tensor],
    ) -> None:
        """Measure the adaptation at a step, in full at the last one."""
        whole = step == self.scale.evaluations[-1]
        count = self.scale.test_clips if whole else self.scale.early_clips
        variant = VARIANTS[run.variant]
        for test, long in ((self.test, False), *([(self.long, True)] if whole else ())):
            path = folder / _file(step, long=long)
            if path.is_file():
                continue
            results: Arrays = {}
            frames = LONG_LATENT_FRAMES if long else LATENT_FRAMES
            with trainer.for_frames(frames), trainer.averaged(), torch.random.fork_rng():
                for given in GIVEN:
                    arrays = measure(
                        trainer.base,
                        trainer.attachment,
                        test,
                        count,
                        given=given,
                        steps=self.scale.sampling_steps,
                        mask_gate=variant.mask_gate,
                        without=without[given, test.frames],
                        swap=whole and not long,
                    )
                    results |= {f"{given}/{k}": v for k, v in arrays.items()}
                if whole or step == 0:
                    results["none/mass"] = attention_mass(
                        trainer.base,
                        trainer.attachment,
                        test,
                        min(count, _MASS_CLIPS),
                        given="none",
                        mask_gate=variant.mask_gate,
                    )
            save_arrays(path, results)
            psnr = np.nanmean(results["first/object_psnr"], 0)
            thirds = [float(part.mean()) for part in np.array_split(psnr, 3)]
            self.note(
                f"{run.name} step {step}{' long' if long else ''}: object PSNR by thirds, first "
                f"frame given: {' '.join(f'{x:.2f}' for x in thirds)}"
            )

    def _progress(self, what: str) -> Callable[[TrainProgress], None]:
        def show(progress: TrainProgress) -> None:
            if progress.step % 50 == 0:
                self.note(
                    f"{what}: step {progress.step} of {progress.steps}, loss {progress.loss:.4f}, "
                    f"{progress.clips_per_second:.1f} clips/s"
                )

        return show


def _same_scale(path: Path, scale: Scale) -> None:
    """Note the study's size in its folder; raise ValueError if a study of another size is there."""
    wanted = json.loads(json.dumps(asdict(scale)))
    if path.is_file():
        came = json.loads(path.read_text(encoding="utf-8"))
        if came != wanted:
            raise ValueError(f"out: {path} says {came}, wanted {wanted}; name another folder")
        return
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def _file(step: int, *, long: bool) -> str:
    return f"{'long' if long else 'step'}-{step:06}.npz"


class VariantTrainer(Trainer):
    """A trainer that can also bring the reference in as a frame."""

    def __init__(self, *args: Any, variant: Variant, **options: Any) -> None:
        self._variant = variant
        super().__init__(*args, **options)

    def _attach(self, transformer: Any) -> tuple[Any, Any]:
        if not self._variant.first_frame:
            return super()._attach(transformer)
        transformer.requires_grad_(False)
        adapter = GenHOIAdapter.for_transformer(
            transformer, rank=self.config.rank, flow_gate=None, mask_gate=False
        )
        for name, weight in adapter.named_parameters():
            if "_gate." in name:
                weight.requires_grad_(False)
        return adapter, FirstFrame(transformer, adapter)

    @contextmanager
    def for_frames(self, latent_frames: int) -> Iterator[None]:
        """Place the heads for clips of another length within the block."""
        attachment: Any = self.attachment
        if self._variant.first_frame:
            yield
            return
        kept = attachment.options
        attachment.options = replace(kept, schedule=schedule_for(self._variant, latent_frames))
        try:
            yield
        finally:
            attachment.options = kept
            attachment.set_reference(None)
