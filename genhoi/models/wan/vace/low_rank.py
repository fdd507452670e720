"""An adapter's low-rank weights on the layers of a VACE block, for all rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from diffusers.models.transformers.transformer_wan import _get_qkv_projections
from torch import Tensor, nn

from genhoi.models.adapter_layers import FramesLayer

__all__ = ["LORA_MODULES", "hook_low_rank", "projections"]

LORA_MODULES = {
    **{
        f"{ours}_{x}": f"{theirs}.to_{'out.0' if x == 'o' else x}"
        for ours, theirs in (("self", "attn1"), ("text", "attn2"))
        for x in "qkvo"
    },
    "ffn_in": "ffn.net.0.proj",
    "ffn_out": "ffn.net.2",
}
"""The module of a diffusers block for each name of ``LORA_TARGETS``."""


def hook_low_rank(block: Any, layer: FramesLayer) -> Iterator[Any]:
    """Add a layer's low-rank weights to the outputs of a block's modules; yield handles."""
    for name, low_rank in layer.lora.items():
        module = block.get_submodule(LORA_MODULES[name])
        # No closure, which a copy of the block would share with it.
        yield module.register_forward_hook(partial(_add, low_rank))


def _add(low_rank: nn.Module, module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out + low_rank(args[0])


def projections(
    attn: Any, x: Tensor, text: Tensor | None, low_rank: nn.ModuleDict, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Project x, and the text where there is one, to q, k and v ``[B, N, H*D]``.

    Args:
        attn: the attention layer.
        x, text: ``[B, N, H*D]``; ``[B, tokens, H*D]``, None for self-attention.
        low_rank: the block's low-rank weights by their names.
        name: of the attention in these, "self" or "text".
    """
    q, k, v = _get_qkv_projections(attn, x, text)
    if not attn.fused_projections:
        return q, k, v
    # Fused layers go past the hooks of those that they stand for: in the text's attention k and v.
    if text is None:
        q, source = _added(q, x, low_rank, f"{name}_q"), x
    else:
        source = text
    k = _added(k, source, low_rank, f"{name}_k")
    return q, k, _added(v, source, low_rank, f"{name}_v")


def _added(y: Tensor, x: Tensor, low_rank: nn.ModuleDict, name: str) -> Tensor:
    return y + low_rank[name](x) if name in low_rank else y
