"""What an edit will take, told from configurations alone: no weights are loaded or wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from genhoi.bases.base import TEXT_TOKENS, Offload
from genhoi.bases.load import base_config, base_kind
from genhoi.bases.needs import BaseNeeds
from genhoi.conditioning.grid import Grid
from genhoi.editing.memory import OffloadMemory, TransformerNeeds, memory_of_edit
from genhoi.editing.windows import windows
from genhoi.models.adapter_config import CONFIG_NAME, AdapterConfig
from genhoi.models.forward_needs import EmptyModel, ForwardNeeds, Work
from genhoi.models.options import Preset

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
        parameters: of the transformer, without the adapter.
        weight_bytes: of each component, the transformer and the adapter among them.
        assumed: components whose configuration is missing, so that it was taken from Wan2.1.
        cache_bytes: what is kept of the references.
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
    window: int,
    overlap: int = 1,
    dtype: torch.dtype,
    adapter: str | os.PathLike[str] | None = None,
    preset: Preset | None = None,
) -> Estimate:
    """Estimate an edit.

    Args:
        base: as for `genhoi.bases.load.load_base`.
        frames, size, objects: of the clip, size as (height, width); of the references.
        steps, guidance, window, overlap: as for `GenHOIPipeline`.
        dtype: computed in.
        adapter: a folder, whose configuration is read; None, or a name on the Hub: the one that
            comes with the base, else a fresh one's.
        preset: as for `GenHOIPipeline`.

    Raises:
        FileNotFoundError, ValueError: no such base; an adapter for another one.
    """
    kind = base_kind(base)
    folder = Path(adapter) if adapter is not None else kind.shipped_adapter(base)
    model = EmptyModel(base_config(base), dtype=dtype, adapter=_adapter(folder), preset=preset)
    spans = windows(frames, window, overlap)
    lengths = [end - begin for begin, end in spans]
    around = kind.needs(base, dtype=dtype, frames=max(lengths), size=size)
    passes = {
        length: _forward_needs(model, around, length, size, objects, takes_text=kind.takes_text)
        for length in dict.fromkeys(lengths)
    }
    # Kept for windows that follow each other at one length.
    fresh = [x for x, before in zip(lengths, [None, *lengths], strict=False) if x != before]
    branches = 1 if guidance == 1 else 2
    longest = passes[max(lengths)]
    transformer = TransformerNeeds(
        weight_bytes=model.weight_bytes + model.adapter_bytes,
        block_bytes=model.block_bytes,
        activation_bytes=longest.activation_bytes,
        cache_bytes=longest.cache_bytes,
    )
    offloads: Sequence[Offload] = get_args(Offload) if kind.can_offload else ("none",)
    grid = model.sizes.strides.grid(lengths[0], *size)
    return Estimate(
        windows=tuple(spans),
        grid=grid,
        tokens=passes[lengths[0]].tokens,
        reference_tokens=objects * grid[1] * grid[2],
        head_dim=model.sizes.head_dim,
        parameters=model.parameters,
        weight_bytes={
            "transformer": model.weight_bytes,
            "adapter": model.adapter_bytes,
            **around.weight_bytes,
        },
        assumed=around.assumed,
        cache_bytes=longest.cache_bytes,
        activation_bytes=longest.activation_bytes,
        memory=tuple(memory_of_edit(around, transformer, windows=len(spans), offloads=offloads)),
        references=sum((passes[x].once for x in fresh), Work()),
        denoising=sum((passes[x].each for x in lengths), Work()) * (steps * branches),
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


def _adapter(folder: Path | None) -> AdapterConfig | None:
    if folder is None or not (folder / CONFIG_NAME).is_file():
        return None
    return AdapterConfig.from_json((folder / CONFIG_NAME).read_text(encoding="utf-8"))
