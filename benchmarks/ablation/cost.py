"""What a step of each variant costs: training, and denoising once the reference is known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation.plan import VARIANTS, Run, Scale, adapt_config
from benchmarks.ablation.run import VariantTrainer
from genhoi.bases.load import load_base
from genhoi.bases.mosaic import UNTRAINED
from genhoi.data.encoded import EncodedClips
from genhoi.training.objective import make_batch, reconstruction_loss
from genhoi_kernels.tune.timing import interleave, ratio

__all__ = ["measure_cost"]

_AGAINST = "fixed"
_BATCH = 4
_SECONDS = 240.0


def measure_cost(
    scale: Scale, clips: EncodedClips, *, rounds: int
) -> Iterator[dict[str, str | float]]:
    """Yield one row for each variant: its milliseconds, and their ratio to frame -1's.

    The contenders take turns, samples that had to wait for a core are dropped, and ratios are
    medians of the ratios of a round. Weights do not matter for the time and are random.

    Args:
        scale: for the settings.
        clips: encoded.
        rounds: so many samples of each.
    """
    names = list(VARIANTS)
    with tempfile.TemporaryDirectory() as folder:
        contenders = [_Contender(name, scale, clips, Path(folder)) for name in names]
        for kind in ("training", "denoising"):
            calls = [getattr(contender, kind) for contender in contenders]
            for contender in contenders:
                contender.give_reference()
            for call in calls:
                call()
            all_timings = interleave(
                calls, device=torch.device("cpu"), rounds=rounds, seconds=_SECONDS
            )
            against = all_timings[names.index(_AGAINST)]
            for name, timings in zip(names, all_timings, strict=True):
                yield {
                    "step": kind,
                    "variant": name,
                    "about": VARIANTS[name].about,
                    "batch": _BATCH,
                    "milliseconds": 1e3 * timings.median() if timings.clean else float("nan"),
                    "ratio_to_fixed": ratio(timings, against) or float("nan"),
                    "samples": len(timings.clean),
                    "dropped": timings.dropped,
                }


class _Contender:
    """One variant, ready for steps on one batch."""

    def __init__(self, name: str, scale: Scale, clips: EncodedClips, folder: Path) -> None:
        config = replace(adapt_config(scale, Run("near", name, 0), Path(UNTRAINED)), batch=_BATCH)
        self.trainer = VariantTrainer(
            config, folder / name, clips, variant=VARIANTS[name], base=load_base(UNTRAINED)
        )
        self.batch = make_batch(
            self.trainer.base.model, clips, list(range(_BATCH)), self.trainer.choices()
        )
        self.weights = list(self.trainer.weights().values())

    def give_reference(self) -> None:
        attachment: Any = self.trainer.attachment
        attachment.set_reference([self.batch.objects], self.batch.tokens)

    def training(self) -> None:
        losses = reconstruction_loss(
            self.trainer.model, self.trainer.attachment, self.batch, mask_weight=4.0
        )
        torch.autograd.grad(losses.sum(), self.weights, allow_unused=True)

    @torch.inference_mode()
    def denoising(self) -> None:
        """Run one denoising step. The reference's keys and values are kept from the call before."""
        self.trainer.model(
            hidden_states=torch.cat([self.batch.noise, self.batch.condition], dim=1),
            timestep=self.batch.sigmas * 1000,
            encoder_hidden_states=self.batch.text,
            return_dict=False,
        )
