"""What is learned: rebuild a clip's hand and object from noise, given the rest and a picture.

Self-supervised reconstruction with flow matching (GenHOI, arXiv 2603.06048): of a clip's latents z
the region of hand and object is hidden in the condition; with noise e and a level sigma the model
sees (1 - sigma) z + sigma e and shall say e - z. `genhoi.training.trainer` runs the steps.

Every random choice of a sample depends on (seed, its place in the order of all samples) alone. So
the same samples come, with the same noise, however many processes share them, and after any
interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from genhoi.conditioning.masks import MaskRule, token_mask
from genhoi.data.encoded import EncodedClips, Given
from genhoi.models.protocol import VideoModel
from genhoi.models.sampling import TIMESTEPS, shifted, unshifted
from genhoi.training.config import GivenFrames, TrainConfig

__all__ = [
    "Batch",
    "SampleChoices",
    "given_condition",
    "make_batch",
    "reconstruction_loss",
    "reference_dropout",
    "sample_of",
    "seeing_tokens",
]

_DROPOUT = 0.1
_NEAR_PERIOD = 4


@dataclass(frozen=True)
class SampleChoices:
    """What `make_batch` draws from.

    Args:
        seed: of all choices.
        given: which frames are given, finished -> how often; the sum is 1.
        reference_dropout: how often a sample sees no reference.
        shift: of the noise levels: shift s / (1 + (shift - 1) s) for s uniform in (0, 1), or in
            that part of it which gives `levels`.
        mask_gate: whether only tokens inside the mask see the reference.
        mask_rule: when a token counts as inside.
        levels: lowest and highest sigma.
    """

    seed: int
    given: dict[GivenFrames, float]
    reference_dropout: float
    shift: float
    mask_gate: bool
    mask_rule: MaskRule
    levels: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Batch:
    """A batch, on one device; latents are float32.

    Args:
        clean, noise: [B, C, f, h, w].
        sigmas: [B].
        condition: [B, channels, f, h, w], of the video alone.
        objects, object_noise: [B, C, 1, h, w]; the noise is for models with references in the
            sequence.
        tokens: bool [B, N], which see the reference; None where the model has no mask gate.
        text: [B, tokens, text_dim].
        image: [B, tokens, image_dim] or None.
    """

    clean: Tensor
    noise: Tensor
    sigmas: Tensor
    condition: Tensor
    objects: Tensor
    object_noise: Tensor
    tokens: Tensor | None
    text: Tensor
    image: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Move everything to a device."""
        moved: dict[str, Any] = {
            name: None if x is None else x.to(device) for name, x in vars(self).items()
        }
        return Batch(**moved)


def reference_dropout(config: TrainConfig, model: VideoModel | type[VideoModel]) -> float:
    """Say how often a sample sees no reference.

    Args:
        config: of the run.
        model: of its base, or its family.

    Raises:
        ValueError: some shall not, of a model with references in the sequence.
    """
    if not model.references_in_sequence:
        return _DROPOUT if config.reference_dropout is None else config.reference_dropout
    if config.reference_dropout:
        raise ValueError(
            f"reference_dropout: got {config.reference_dropout}, wanted 0 or none: references of "
            f"a VACE model are part of its sequence"
        )
    return 0.0


def sample_of(place: int, clips: int, seed: int) -> int:
    """Find the sample at a place in the endless order; each pass over the clips has its own."""
    passes, position = divmod(place, clips)
    return int(_order(clips, seed, passes)[position])


@lru_cache(maxsize=2)  # a batch may reach from one pass into the next
def _order(clips: int, seed: int, passes: int) -> Tensor:
    return torch.randperm(clips, generator=_generator(seed, "order", passes))


def seeing_tokens(
    model: VideoModel, condition: Tensor, *, rule: MaskRule, mask_gate: bool
) -> Tensor | None:
    """Tell which video tokens see the reference: bool [B, N]; None where all rows see all.

    Args:
        model: what the condition was made for.
        condition: [B, channels, f, h, w]; a frame that is given is not masked in it.
        rule: see `token_mask`.
        mask_gate: without, all do.
    """
    if model.references_in_sequence:
        return None
    tokens = token_mask(model.condition_mask(condition), model.sizes.grid(condition), rule=rule)
    return tokens if mask_gate else torch.ones_like(tokens)


def make_batch(
    model: VideoModel, clips: EncodedClips, places: Sequence[int], choices: SampleChoices
) -> Batch:
    """Take the samples at some places in the order, with everything random about them.

    Args:
        model: what the clips were encoded for.
        clips: to take from.
        places: see `sample_of`.
        choices: see there.

    Raises:
        ValueError: frames are to be given that the clips were not encoded for.
    """
    indices = [sample_of(place, len(clips), choices.seed) for place in places]
    generators = [_generator(choices.seed, "sample", place) for place in places]
    clean = clips.take("clean", indices)
    objects = clips.take("object", indices)
    noise, object_noise, s, dropped, conditions, images = [], [], [], [], [], []
    for index, generator in zip(indices, generators, strict=True):
        noise.append(torch.randn(clean.shape[1:], generator=generator))
        s.append(torch.rand((), generator=generator))
        dropped.append(bool(torch.rand((), generator=generator) < choices.reference_dropout))
        which = _draw(choices.given, generator)
        conditions.append(given_condition(model, clips, index, which, generator))
        stored = which if which in get_args(Given) else "none"
        if clips.has(f"image_{stored}"):  # the base has an image encoder
            images.append(clips.take(f"image_{stored}", [index])[0])
        object_noise.append(torch.randn(objects.shape[1:], generator=generator))
    condition = torch.stack(conditions)
    tokens = seeing_tokens(model, condition, rule=choices.mask_rule, mask_gate=choices.mask_gate)
    if tokens is not None:
        tokens = tokens & ~torch.tensor(dropped)[:, None]
    return Batch(
        clean=clean,
        noise=torch.stack(noise),
        sigmas=_sigmas(torch.stack(s), choices),
        condition=condition,
        objects=objects,
        object_noise=torch.stack(object_noise),
        tokens=tokens,
        text=clips.texts(indices),
        image=torch.stack(images) if images else None,
    )


def _sigmas(uniform: Tensor, choices: SampleChoices) -> Tensor:
    """Make noise levels of numbers from 0 to 1."""
    if choices.levels == (0.0, 1.0):
        return shifted(uniform, choices.shift)
    low, high = (unshifted(sigma, choices.shift) for sigma in choices.levels)
    return shifted(low + (high - low) * uniform, choices.shift)


def reconstruction_loss(
    model: VideoModel,
    transformer: Any,
    attachment: Any | None,
    batch: Batch,
    *,
    mask_weight: float,
) -> Tensor:
    """Compute the flow-matching loss of every sample, float32 [B].

    The squared error of the velocity, averaged with weight mask_weight where something is to be
    generated and 1 elsewhere, or 0 where the model predicts none. References in the sequence are
    denoised along with the video; their weight is 1.

    Args:
        model: what the transformer's channels mean.
        transformer: the model's, possibly wrapped by accelerate.
        attachment: of an adapter on it, which gets the batch's references; None for the base alone.
        batch: see there.
        mask_weight: at least 0.
    """
    clean, noise, condition = batch.clean, batch.noise, batch.condition
    if attachment is not None:
        attachment.set_reference([batch.objects], batch.tokens)
        condition = model.with_references(condition, [batch.objects])
        if model.references_in_sequence:
            clean = torch.cat([batch.objects, clean], dim=2)
            noise = torch.cat([batch.object_noise, noise], dim=2)
    noisy = torch.lerp(clean, noise, batch.sigmas.view(-1, 1, 1, 1, 1))
    noisy = model.with_given(noisy, condition, noise, batch.sigmas)
    timestep = batch.sigmas * TIMESTEPS
    inputs = model.inputs(noisy, condition, timestep, batch.text, batch.image)
    velocity = transformer(**inputs)[0]
    error = (velocity.float() - (noise - clean)).square().mean(1)
    weight = 1 + (mask_weight - 1) * model.condition_mask(condition).mean(1)
    if (predicted := model.predicted(condition)) is not None:
        weight = weight * predicted[:, 0]
    return (weight * error).flatten(1).sum(1) / weight.flatten(1).sum(1)


def _generator(seed: int, what: str, number: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{what}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _draw(given: dict[GivenFrames, float], generator: torch.Generator) -> GivenFrames:
    left = float(torch.rand((), generator=generator))
    for which, share in given.items():
        left -= share
        if left < 0:
            return which
    return which


def given_condition(
    model: VideoModel,
    clips: EncodedClips,
    index: int,
    which: GivenFrames,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Give a clip's condition, float32 [4 + C, f, h, w], with some frames finished.

    Args:
        model: what the clips were encoded for.
        clips: to take from. Frames that they were not encoded with are put together from the
            clean clip's, which is exact for bases that encode every latent frame by itself.
        index: of the clip.
        which: the frames.
        generator: chooses frames where `which` leaves a choice.
    """
    if clips.has(f"condition_{which}"):
        return clips.take(f"condition_{which}", [index])[0]
    hidden = clips.take("condition_none", [index])[0]
    if clips.has("shown"):
        shown = clips.take("shown", [index])[0]
    else:
        shown = model.given_condition(clips.take("clean", [index]))[0]
    visible = _visible(which, hidden.shape[1], generator)
    return torch.where(visible[:, None, None], shown, hidden)


def _visible(which: GivenFrames, frames: int, generator: torch.Generator | None) -> Tensor:
    """Choose the frames that are given, bool [f]."""
    visible = torch.zeros(frames, dtype=torch.bool)
    if which == "first":
        visible[0] = True
    elif which == "near":
        start = int(torch.randint(_NEAR_PERIOD, (), generator=generator))
        visible[start::_NEAR_PERIOD] = True
        visible |= torch.rand(frames, generator=generator) < 0.15
    elif which == "mixed":
        kind, share = torch.rand(2, generator=generator)
        if kind >= 0.4:
            visible |= torch.rand(frames, generator=generator) < 0.08 + 0.42 * share
        if kind >= 0.15:
            visible[int(torch.randint(frames, (), generator=generator))] = True
    else:
        raise ValueError(f"given: the clips were not encoded for {which!r}; encode them anew")
    return visible
