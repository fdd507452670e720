"""A model's sizes, read from the shapes of the release's weights, and checked against a config."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_sizes", "count_blocks", "shape_of", "trunk_sizes"]

_IRRELEVANT = ("model_type", "text_len", "_class_name", "_diffusers_version")


def shape_of(state_dict: Mapping[str, Tensor], name: str) -> torch.Size:
    """Return a weight's shape.

    Raises:
        ValueError: it is missing.
    """
    if name not in state_dict:
        raise ValueError(f"state_dict: {name} is missing, wanted all weights of the release")
    return state_dict[name].shape


def count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    """Count the blocks whose weights' names begin with "prefix.N."."""
    numbers = [int(m[1]) for n in state_dict if (m := re.match(rf"{prefix}\.(\d+)\.", n))]
    return max(numbers, default=-1) + 1


def trunk_sizes(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read what both forms of the release have, all but the heads: names as in its config.

    Raises:
        ValueError: a weight that tells is missing.
    """
    dim, in_dim, *patch = shape_of(state_dict, "patch_embedding.weight")
    return {
        "dim": dim,
        "ffn_dim": shape_of(state_dict, "blocks.0.ffn.0.weight")[0],
        "text_dim": shape_of(state_dict, "text_embedding.0.weight")[1],
        "freq_dim": shape_of(state_dict, "time_embedding.0.weight")[1],
        "num_layers": count_blocks(state_dict, "blocks"),
        "in_dim": in_dim,
        "out_dim": shape_of(state_dict, "head.head.weight")[0] // math.prod(patch),
        "patch_size": patch,
    }


def check_sizes(
    sizes: Mapping[str, Any], config: Mapping[str, Any], *, others: Collection[str]
) -> None:
    """Raise ValueError where a config contradicts the weights, or has a value of no known name.

    Args:
        sizes: from the weights.
        config: as given.
        others: names that are known besides.
    """
    known = (*sizes, *others)
    if unknown := [k for k, v in config.items() if v and k not in (*known, *_IRRELEVANT)]:
        raise ValueError(f"config: got {unknown}, wanted only {', '.join(known)}")
    for name, wanted in sizes.items():
        got = config.get(name, wanted)
        if (list(got) if isinstance(got, (list, tuple)) else got) != wanted:
            raise ValueError(f"config[{name!r}]: got {got}, wanted {wanted} as in the weights")
