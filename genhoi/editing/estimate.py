"""What an edit will take, told from configurations alone: no weights are loaded or wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from genhoi.bases.base import TEXT_TOKENS, Base, Offload
from genhoi.bases.load import base_config, base_kind
from genhoi.bases.lora import Lora
from genhoi.bases.needs import BaseNeeds
from genhoi.conditioning.grid import Grid
from genhoi.editing.memory import OffloadMemory, TransformerNeeds, memory_of_edit
from genhoi.editing.windows import windows
from genhoi.models.adapter_config import CONFIG_NAME, AdapterConfig
from genhoi.models.experts import Expert
from genhoi.models.forward_needs import EmptyModel, ForwardNeeds, Work
from genhoi.models.options import Preset
from genhoi.models.sampling import TIMESTEPS, guidance_by_step, noise_levels

__all__ = ["Estimate", "estimate_edit"]


@dataclass(frozen=True)
class Estimate:
    """Sizes, memory and work of an edit.

    Args:
        windows: first and one-past-last frame of each.
        grid: tokens (f, h, w) of the first window.
        tokens: of its sequence; more than the grid's where references are in it.
        reference_tokens: of all objects.
        head_dim: of the attention.
        parameters: of the transformer, or of each of two, without the adapter.
        weight_bytes: of each component, the transformers and their adapters among them.
        assumed: components whose configuration is missing, so that it was taken from Wan2.1.
        steps: that each transformer has of a window.
        cache_bytes: what is kept of the references, for all transformers.
        activation_bytes: the most that a forward pass's tensors take beside that.
        memory: for each way to offload that the base knows.
        references: work that is done for the references apart, once for windows of one length.
        denoising: work of all steps, guidance branches and windows.
    """

    windows: tuple[tuple[int, int], ...]
    grid: Grid
    tokens: int
    reference_tokens: int
    head_dim: int
    parameters: int
    weight_bytes: dict[str, int]
    assumed: tuple[str, ...]
    steps: tuple[int, ...]
    cache_bytes: int
    activation_bytes: int
    memory: tuple[OffloadMemory, ...]
    references: Work
    denoising: Work


def estimate_edit(
    base: str | os.PathLike[str],
    *,
    frames: int,
    size: tuple[int, int],
    objects: int,
    steps: int,
    guidance: float,
    guidance_2: float | None = None,
    shift: float = 5.0,
    window: int,
    overlap: int = 1,
    dtype: torch.dtype,
    adapters: Sequence[str | os.PathLike[str]] = (),
    loras: Sequence[Lora] = (),
    preset: Preset | None = None,
) -> Estimate:
    """Estimate an edit.

    Args:
        base: as for `genhoi.bases.load.load_base`.
        frames, size, objects: of the clip, size as (height, width); of the references.
        steps, guidance, guidance_2, shift, window, overlap: as for `GenHOIPipeline`.
        dtype: computed in.
        adapters: folders, whose configuration is read; none, or a name on the Hub: those that come
            with the base, else a fresh one's.
        loras: counted by the size of their files.
        preset: as for `GenHOIPipeline`.

    Raises:
        FileNotFoundError, ValueError: no such base; an adapter for another one.
    """
    kind = base_kind(base)
    folders = [Path(x) for x in adapters] or list(kind.shipped_adapters(base))
    experts = _experts(kind, base, folders, dtype, preset)
    model = experts[0]
    spans = windows(frames, window, overlap)
    lengths = [end - begin for begin, end in spans]
    around = kind.needs(base, dtype=dtype, frames=max(lengths), size=size)
    passes = {
        (expert, length): _forward_needs(
            expert, around, length, size, objects, takes_text=kind.read_settings(base).takes_text
        )
        for expert in dict.fromkeys(experts)
        for length in dict.fromkeys(lengths)
    }
    # Kept for windows that follow each other at one length.
    fresh = [x for x, before in zip(lengths, [None, *lengths], strict=False) if x != before]
    shares = _steps(steps, shift, guidance, guidance_2, kind.read_boundary(base))
    low_rank = [_lora_bytes(loras, expert) for expert in get_args(Expert)]
    needs = [
        _transformer_needs(expert, passes[expert, max(lengths)], more)
        for expert, more in zip(experts, low_rank, strict=False)
    ]
    offloads: Sequence[Offload] = get_args(Offload) if kind.can_offload else ("none",)
    grid = model.sizes.strides.grid(lengths[0], *size)
    weights: dict[str, int] = {}
    for expert, suffix in zip(experts, ("", "_2"), strict=False):
        weights |= {f"transformer{suffix}": expert.weight_bytes}
        weights |= {f"adapter{suffix}": expert.adapter_bytes}
    if loras:
        weights["lora"] = sum(low_rank[: len(experts)])
    return Estimate(
        windows=tuple(spans),
        grid=grid,
        tokens=passes[model, lengths[0]].tokens,
        reference_tokens=objects * grid[1] * grid[2],
        head_dim=model.sizes.head_dim,
        parameters=model.parameters,
        weight_bytes=weights | dict(around.weight_bytes),
        assumed=around.assumed,
        steps=tuple(count for count, _ in shares),
        cache_bytes=sum(each.cache_bytes for each in needs),
        activation_bytes=max(each.activation_bytes for each in needs),
        memory=tuple(memory_of_edit(around, *needs, windows=len(spans), offloads=offloads)),
        references=sum(
            (
                passes[expert, x].once
                for expert, (count, _) in zip(experts, shares, strict=True)
                for x in fresh
                if count
            ),
            Work(),
        ),
        denoising=sum(
            (
                passes[expert, x].each * count_of_passes
                for expert, (_, count_of_passes) in zip(experts, shares, strict=True)
                for x in lengths
            ),
            Work(),
        ),
    )


def _experts(
    kind: type[Base],
    base: str | os.PathLike[str],
    folders: Sequence[Path],
    dtype: torch.dtype,
    preset: Preset | None,
) -> list[EmptyModel]:
    """Make the base's transformers with their adapters; the same one where they are alike."""
    config = base_config(base)
    wanted = [_adapter(folder) for folder in folders] or [None]
    if len(wanted) > 1 + kind.two_experts:
        raise ValueError(f"adapter: got {len(wanted)}, wanted at most {1 + kind.two_experts}")
    models = [EmptyModel(config, dtype=dtype, adapter=wanted[0], preset=preset)]
    if kind.two_experts and wanted[-1] != wanted[0]:
        models.append(EmptyModel(config, dtype=dtype, adapter=wanted[-1], preset=preset))
    return [models[0], models[-1]] if kind.two_experts else models


def _steps(
    steps: int, shift: float, guidance: float, guidance_2: float | None, boundary: float | None
) -> list[tuple[int, int]]:
    """Count the steps of each transformer, and its forward passes, in a window."""
    sigmas = noise_levels(steps, shift)
    guidances = guidance_by_step(sigmas, guidance, guidance_2, boundary)
    parts = [guidances]
    if boundary is not None:
        high = int((sigmas[:-1] * TIMESTEPS >= boundary * TIMESTEPS).sum())
        parts = [guidances[:high], guidances[high:]]
    return [(len(part), sum(1 if x == 1 else 2 for x in part)) for part in parts]


def _lora_bytes(loras: Sequence[Lora], expert: Expert) -> int:
    return sum(lora.path.stat().st_size for lora in loras if lora.is_for(expert))


def _transformer_needs(model: EmptyModel, longest: ForwardNeeds, low_rank: int) -> TransformerNeeds:
    return TransformerNeeds(
        weight_bytes=model.weight_bytes + model.adapter_bytes + low_rank,
        block_bytes=model.block_bytes,
        activation_bytes=longest.activation_bytes,
        cache_bytes=longest.cache_bytes,
    )


def _forward_needs(
    model: EmptyModel,
    around: BaseNeeds,
    frames: int,
    size: tuple[int, int],
    objects: int,
    *,
    takes_text: bool,
) -> ForwardNeeds:
    strides = model.sizes.strides
    height, width = (side // strides.space for side in size)
    return model.forward_needs(
        (strides.latent_frames(frames), height, width),
        references=[(height, width)] * objects,
        text_tokens=TEXT_TOKENS if takes_text else 1,
        image=around.image,
    )


def _adapter(folder: Path) -> AdapterConfig | None:
    if not (folder / CONFIG_NAME).is_file():
        return None
    return AdapterConfig.from_json((folder / CONFIG_NAME).read_text(encoding="utf-8"))
