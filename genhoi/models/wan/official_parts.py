"""The release's weights, sorted by part and put into a diffusers transformer without a copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from genhoi.models.adapter import assign

__all__ = ["filled_transformer", "sorted_parts"]

_ROPE_LENGTH = 1024


def sorted_parts(
    state_dict: Mapping[str, Tensor], rename: Callable[[str], tuple[str, str]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sort weights into the transformer's and the adapter's, under their new names.

    Args:
        state_dict: under official names.
        rename: says of a name "transformer" or "adapter", and the new one; raises for others.
    """
    parts: dict[str, dict[str, Tensor]] = {"transformer": {}, "adapter": {}}
    for name, tensor in state_dict.items():
        part, renamed = rename(name)
        parts[part][renamed] = tensor
    return parts["transformer"], parts["adapter"]


def filled_transformer(
    kind: type[Any],
    sizes: Mapping[str, Any],
    weights: dict[str, Tensor],
    *,
    name: str,
    **more: Any,
) -> Any:
    """Make a transformer around given tensors; its tables of angles are real.

    Args:
        kind: of transformer, a class of diffusers.
        sizes: under the release's names.
        weights: under diffusers' names.
        name: of the weights, for messages.
        more: arguments of this kind.

    Raises:
        ValueError: weights missing, unknown, or of another shape.
    """
    patch = tuple(sizes["patch_size"])
    with torch.device("meta"):
        transformer = kind(
            patch_size=patch,
            num_attention_heads=sizes["num_heads"],
            attention_head_dim=sizes["head_dim"],
            in_channels=sizes["in_dim"],
            out_channels=sizes["out_dim"],
            text_dim=sizes["text_dim"],
            freq_dim=sizes["freq_dim"],
            ffn_dim=sizes["ffn_dim"],
            num_layers=sizes["num_layers"],
            eps=sizes["eps"],
            rope_max_seq_len=_ROPE_LENGTH,
            **more,
        )
    transformer.rope = WanRotaryPosEmbed(sizes["head_dim"], patch, _ROPE_LENGTH)
    assign(transformer, weights, name)
    return transformer.eval()
