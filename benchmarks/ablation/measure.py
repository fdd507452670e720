"""Measures a model on the held-out clips: arrays per clip and frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation.test_set import TestClip, TestSet
from genhoi.bases.base import Base
from genhoi.conditioning.grid import STRIDES
from genhoi.conditioning.masks import token_mask
from genhoi.data.encoded import Given
from genhoi.evaluation.metrics import (
    region_mean,
    region_psnr,
    squared_error,
    ssim_map,
)
from genhoi.evaluation.object_metrics import colour_similarity, texture_similarity
from genhoi.models.wan.attention_share import reference_share
from genhoi.training.reconstruction import rebuild
from genhoi_kernels.files import whole_file

__all__ = ["GIVEN", "Arrays", "attention_mass", "edited_latents", "measure", "save_arrays"]

GIVEN: tuple[Given, ...] = ("first", "none")
Arrays = dict[str, np.ndarray]

_BATCH = 12
_SIMILARITY_EVERY = 10  # frames: the similarities cost more than all the rest


def edited_latents(
    base: Base,
    attachment: Any | None,
    test: TestSet,
    count: int,
    *,
    given: Given,
    steps: int,
    mask_gate: bool = True,
    swapped: bool = False,
) -> Tensor:
    """Let the model paint, and return its latents, float32 [count, C, f, h, w].

    Args:
        base, attachment: the model; None for no reference.
        test: the clips; the first `count` are taken.
        given: frames that it gets finished.
        steps: of Euler's method.
        mask_gate: whether only masked tokens see the reference.
        swapped: give each clip the next clip's object.
    """
    out = []
    for begin in range(0, count, _BATCH):
        indices = list(range(begin, min(begin + _BATCH, count)))
        with torch.autocast(base.device.type, torch.bfloat16):
            out.append(
                rebuild(
                    base,
                    attachment,
                    test.encoded,
                    indices,
                    given=given,
                    steps=steps,
                    mask_gate=mask_gate,
                    objects=[(i + 1) % len(test) for i in indices] if swapped else None,
                )
            )
    return torch.cat(out)


def measure(
    base: Base,
    attachment: Any | None,
    test: TestSet,
    count: int,
    *,
    given: Given,
    steps: int,
    mask_gate: bool,
    without: Tensor | None,
    swap: bool,
) -> Arrays:
    """Measure edits: arrays [count, F], NaN in frames where a region is empty.

    Args:
        base, attachment, test, count, given, steps, mask_gate: see `edited_latents`.
        without: what the base paints without any reference, for the background's change.
        swap: also measure what changes with another object's picture.

    Returns:
        object_psnr, hand_psnr, background_psnr, object_ssim: against the truth;
        background_change, far_change: root mean square, 0 to 255, from the base without reference;
        swap_object, swap_hand, swap_background, swap_far: the same between two objects' pictures;
        colour, texture [count, F / 10]: similarity to the object's picture.
    """
    edited = edited_latents(
        base, attachment, test, count, given=given, steps=steps, mask_gate=mask_gate
    )
    other = None
    if swap:
        other = edited_latents(
            base,
            attachment,
            test,
            count,
            given=given,
            steps=steps,
            mask_gate=mask_gate,
            swapped=True,
        )
    rows: dict[str, list[Tensor]] = {}
    for i in range(count):
        frames = base.decode(edited[i : i + 1])
        results = dict(_against_truth(frames, test[i]))
        if without is not None:
            change = squared_error(frames, base.decode(without[i : i + 1]))
            for name in ("background", "far"):
                results[f"{name}_change"] = region_mean(change, getattr(test[i], name)).sqrt()
        if other is not None:
            change = squared_error(frames, base.decode(other[i : i + 1]))
            for name in ("object", "hand", "background", "far"):
                results[f"swap_{name}"] = region_mean(change, getattr(test[i], name)).sqrt()
        for name, value in results.items():
            rows.setdefault(name, []).append(value.float())
    return {name: torch.stack(values).numpy() for name, values in rows.items()}


def _against_truth(frames: Tensor, clip: TestClip) -> Iterator[tuple[str, Tensor]]:
    error = squared_error(frames, clip.truth)
    for name in ("object", "hand", "background"):
        yield f"{name}_psnr", region_psnr(error, getattr(clip, name))
    yield "object_ssim", region_mean(ssim_map(frames, clip.truth), clip.object)
    few = slice(None, None, _SIMILARITY_EVERY)
    yield "colour", colour_similarity(frames[few], clip.object[few], clip.picture)
    yield "texture", texture_similarity(frames[few], clip.object[few], clip.picture)


def attention_mass(
    base: Base, attachment: Any, test: TestSet, count: int, *, given: Given, mask_gate: bool
) -> np.ndarray:
    """Return the reference's share of attention, [layers, heads, f]: the mean over hidden tokens.

    Taken from the model's own queries and keys in the last of four denoising steps.
    """
    shares: list[list[Tensor]] = [[] for _ in base.transformer.blocks]
    processors = [block.attn1.processor for block in base.transformer.blocks]

    def watch(layer: int) -> Any:
        def observe(q: Tensor, k: Tensor, current: Any) -> None:
            shares[layer].append(reference_share(q, k, current))

        return observe

    if hasattr(processors[0], "watched"):  # the reference is a frame of the video
        for processor in processors:
            processor.watched = True
        edited_latents(base, attachment, test, count, given=given, steps=4, mask_gate=mask_gate)
        for layer, processor in enumerate(processors):
            shares[layer].append(processor.share)
            processor.watched = False
    else:
        for layer, processor in enumerate(processors):
            processor.observer = watch(layer)
        edited_latents(base, attachment, test, count, given=given, steps=4, mask_gate=mask_gate)
        for processor in processors:
            processor.observer = None
    condition = test.encoded.take("condition_none", range(count))
    _, _, f, h, w = condition.shape
    mask = base.model.condition_mask(condition)
    grid = STRIDES.latent_grid(f, h, w)
    hidden = token_mask(mask, grid, rule="any").view(count, 1, f, -1).double()
    out = []
    for by_step in shares:
        last = by_step[-1].double().nan_to_num()
        hidden_ = hidden[-len(last) :]
        by_frame = last.view(*last.shape[:2], f, -1)
        out.append((by_frame * hidden_).sum((0, 3)) / hidden_.sum((0, 3)))
    return torch.stack(out).float().numpy()


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz file, whole or not at all."""
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
