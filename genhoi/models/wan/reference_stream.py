"""The reference stream: keys and values of the reference in every block, once a clip.

They depend on the reference, the grid and the weights alone, not on timestep, text or noise
(docs/model_layer.md), so they are kept until one of those changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genhoi.conditioning.grid import Grid
from genhoi.models.protocol import ReferenceStreamModel
from genhoi.models.wan.diffusers_hooks import without_step_hooks
from genhoi.models.wan.passes import ReferencePass
from genhoi_kernels import HeadSlidingRope

__all__ = ["KeysValues", "reference_keys_values"]

KeysValues = tuple[Tensor, Tensor]


def reference_keys_values(
    model: ReferenceStreamModel,
    references: Sequence[Tensor],
    grid: Grid,
    schedule: Any,
    dtype: torch.dtype,
) -> list[KeysValues]:
    """Run every reference through the blocks, each by itself: it attends to its own tokens only.

    Args:
        model: with its processors in place.
        references: ``[b, C, 1, h, w]`` each, as the model embeds them; b is 1 or one B.
        grid: the video's tokens (f, h, w).
        schedule: see ``genhoi_kernels.head_frames``.
        dtype: of the video's latents.

    Returns:
        For every block k (rotated) and v ``[b, M, H, D]``, M the tokens of all references.
    """
    batch = max(len(x) for x in references)
    streams = [_stream(model, x.to(dtype), grid, schedule) for x in references]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.expand(batch, -1, -1, -1) for x in parts], dim=1)

    return [
        (joined([k for k, _ in block]), joined([v for _, v in block]))
        for block in zip(*streams, strict=True)
    ]


def _stream(
    model: ReferenceStreamModel, reference: Tensor, grid: Grid, schedule: Any
) -> list[KeysValues]:
    x, reference_grid = model.embed_reference(reference)
    rope = HeadSlidingRope(
        grid,
        (reference_grid,),
        head_dim=model.sizes.head_dim,
        num_heads=model.sizes.num_heads,
        schedule=schedule,
    )
    modulation = model.still_modulation(x)
    transformer = model.transformer
    keys_values = []
    for block, _, _ in model.blocks:
        if torch.is_grad_enabled() and transformer.gradient_checkpointing:
            # k and v come out of the checkpointed function, so autograd keeps what they need.
            x, k, v = transformer._gradient_checkpointing_func(_block, block, x, modulation, rope)
        else:
            x, k, v = _block(block, x, modulation, rope)
        keys_values.append((k, v))
    return keys_values


def _block(
    block: nn.Module, x: Tensor, modulation: Tensor, rope: HeadSlidingRope
) -> tuple[Tensor, Tensor, Tensor]:
    into = ReferencePass(rope)
    # Once a clip: compiling it would cost more than it saves.
    with without_step_hooks(block), torch.compiler.set_stance("force_eager"):
        x = block(x, None, modulation, into)
    assert into.k is not None and into.v is not None
    return x, into.k, into.v
