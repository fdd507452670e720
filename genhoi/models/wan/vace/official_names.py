"""Names of weights in the authors' VACE release and in diffusers' Wan VACE and the adapter."""

from __future__ import annotations

import re

from genhoi.models.wan.official_names import BLOCK, GATES, TOP, lookup, official

__all__ = ["is_low_rank", "official_name", "rename"]

_TOP = TOP | {"vace_patch_embedding": "vace_patch_embedding"}
_BRANCH = BLOCK | {"before_proj": "proj_in", "after_proj": "proj_out"}
_LOW_RANK = {
    f"{official}.{theirs}": f"lora.{ours}_{theirs}"
    for official, ours in (("self_attn", "self"), ("cross_attn", "text"))
    for theirs in "qkvo"
} | {"ffn.0": "lora.ffn_in", "ffn.2": "lora.ffn_out"}
_SIDES = {"A": "down", "B": "up"}
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")


def is_low_rank(name: str) -> bool:
    """Tell whether an official name is peft's of a low-rank weight."""
    return _LORA.fullmatch(name) is not None


def rename(name: str) -> tuple[str, str]:
    """Tell which part an official name belongs to, and what it is called in that part.

    Raises:
        ValueError: it is no name of the release.
    """
    branch = re.fullmatch(r"vace_blocks\.(\d+)\.(.+)", name)
    trunk = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if branch and (lora := _LORA.fullmatch(branch[2])):
        if lora[1] in _LOW_RANK:
            renamed = f"layers.{branch[1]}.{_LOW_RANK[lora[1]]}.{_SIDES[lora[2]]}"
            return "adapter", renamed
    elif branch and (found := lookup(branch[2], GATES)) is not None:
        return "adapter", f"layers.{branch[1]}.{found}"
    elif branch and (found := lookup(branch[2], _BRANCH)) is not None:
        return "transformer", f"vace_blocks.{branch[1]}.{found}"
    elif trunk and (found := lookup(trunk[2], BLOCK)) is not None:
        return "transformer", f"blocks.{trunk[1]}.{found}"
    elif not trunk and (found := lookup(name, _TOP)) is not None:
        return "transformer", found
    raise ValueError(f"state_dict: got {name!r}, wanted a name of the VACE release")


def official_name(name: str) -> str:
    """Return the official name of one of the transformer's or the adapter's parameters.

    Raises:
        ValueError: the release has none.
    """
    if name.startswith("layers."):
        _, block, rest = name.split(".", 2)
        if rest.startswith("lora."):
            module, side = rest.rsplit(".", 1)
            theirs = {ours: theirs for theirs, ours in _LOW_RANK.items()}[module]
            letter = {ours: letter for letter, ours in _SIDES.items()}[side]
            return f"vace_blocks.{block}.{theirs}.lora_{letter}.default.weight"
        return official(name, {}, GATES, "layers", official_prefix="vace_blocks")
    if name.startswith("vace_blocks."):
        return official(name, {}, _BRANCH, "vace_blocks", official_prefix="vace_blocks")
    return official(name, _TOP, BLOCK, "blocks")
