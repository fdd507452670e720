"""Encoded clips rebuilt from noise, many at once: for samples while training, and for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genhoi.bases.base import Base
from genhoi.bases.settings import resolve
from genhoi.conditioning.masks import MaskRule
from genhoi.data.encoded import EncodedClips, Given
from genhoi.models.sampling import denoise, noise, noise_levels
from genhoi.training.objective import given_condition, seeing_tokens

__all__ = ["rebuild"]


def rebuild(
    base: Base,
    attachment: Any | None,
    clips: EncodedClips,
    indices: Sequence[int],
    *,
    given: Given = "first",
    objects: Sequence[int] | None = None,
    mask_gate: bool = True,
    mask_rule: MaskRule | None = None,
    steps: int | None = None,
    shift: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Let the model paint clips' hidden regions; their latents, float32 [B, C, f, h, w].

    Args:
        base: the model.
        attachment: of an adapter on it; None for no reference.
        clips, indices: which.
        given: which frames the model gets finished.
        objects: clips whose objects take the place of their own; None for their own.
        mask_gate: whether only tokens inside the mask see the reference.
        mask_rule, steps, shift: None for the base's own.
        seed: of the noise, which depends on a clip's index too, not on its place in the batch.

    One of two transformers works at its own noise levels alone: that for high ones goes from the
    last of them to a clip in one step, that for low ones begins with the clip itself, noised.
    """
    device = base.device
    model = base.model
    settings = resolve(base.settings.defaults, steps=steps, shift=shift, mask_rule=mask_rule)
    condition = torch.stack([given_condition(model, clips, i, given) for i in indices]).to(device)
    extra = 0
    if attachment is not None:
        pictures = clips.take("object", indices if objects is None else objects).to(device)
        tokens = seeing_tokens(model, condition, rule=settings.mask_rule, mask_gate=mask_gate)
        attachment.set_reference([pictures], tokens)
        condition = model.with_references(condition, [pictures])
        extra = attachment.reference_frames
    _, _, f, h, w = condition.shape
    shape = (1, model.sizes.latent_channels, f, h, w)
    start = torch.cat([noise(shape, seed, i) for i in indices]).to(device)
    sigmas, clean = noise_levels(settings.steps, settings.shift), None
    if base.expert is not None:
        sigmas = _within(sigmas, base.levels)
        clean = clips.take("clean", indices).to(device)
        if extra:
            clean = torch.cat([pictures, clean], dim=2)
    image = f"image_{given}"
    made = denoise(
        model,
        start,
        condition,
        text=clips.texts(indices).to(device, base.transformer.dtype),
        no_text=None,
        image=clips.take(image, indices).to(device) if clips.has(image) else None,
        guidance=1.0,
        sigmas=sigmas,
        after_step=lambda step, latents: None,
        clean=clean,
    )
    return made[:, :, extra:]


def _within(sigmas: Tensor, levels: tuple[float, float]) -> Tensor:
    """Keep the sigmas of one of two transformers, and the final 0."""
    low, high = levels
    kept = [x for x in sigmas[:-1].tolist() if low <= x <= high and (high == 1 or x < high)]
    return torch.tensor([*(kept or [high]), 0.0])
