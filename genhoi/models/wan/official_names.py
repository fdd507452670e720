"""Names of weights in the authors' release and in diffusers' Wan and the adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "BLOCK",
    "GATES",
    "TOP",
    "lookup",
    "official",
    "official_adapter_name",
    "official_base_name",
    "rename",
]

# Official module -> diffusers module; a modulation is a parameter of its own.
TOP = {
    "patch_embedding": "patch_embedding",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
BLOCK = {
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
} | {
    f"{official}.{name}": f"{ours}.{renamed}"
    for official, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for name, renamed in (
        ("q", "to_q"),
        ("k", "to_k"),
        ("v", "to_v"),
        ("o", "to_out.0"),
        ("norm_q", "norm_q"),
        ("norm_k", "norm_k"),
    )
}
GATES = {
    f"{official}.gate.mlp.{index}": f"{ours}.{layer}"
    for official, ours in (
        ("self_attn.attn", "self_gate"),
        ("cross_attn.attn", "text_gate"),
        ("cross_attn.attn_img", "image_gate"),
    )
    for index, layer in ((0, "norm"), (1, "fc1"), (3, "fc2"))
}
_ADAPTER = GATES | {
    f"self_attn.{x}_loras.{side}.weight": f"lora_{x}.{side}"
    for x in "qkv"
    for side in ("down", "up")
}


def rename(name: str) -> tuple[str, str]:
    """Tell which part an official name belongs to, and what it is called in that part."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block is None:
        renamed = lookup(name, TOP)
        if renamed is not None:
            return "transformer", renamed
    else:
        for part, prefix, table in (
            ("transformer", "blocks", BLOCK),
            ("adapter", "layers", _ADAPTER),
        ):
            renamed = lookup(block[2], table)
            if renamed is not None:
                return part, f"{prefix}.{block[1]}.{renamed}"
    raise ValueError(f"state_dict: got {name!r}, wanted a name of the release")


def official_base_name(name: str) -> str:
    """Return the official name of one of the transformer's parameters.

    Raises:
        ValueError: the release has none.
    """
    return official(name, TOP, BLOCK, "blocks")


def official_adapter_name(name: str) -> str:
    """Return the official name of one of the adapter's parameters.

    Raises:
        ValueError: the release has none.
    """
    return official(name, {}, _ADAPTER, "layers")


def official(
    name: str,
    top: Mapping[str, str],
    block: Mapping[str, str],
    prefix: str,
    *,
    official_prefix: str = "blocks",
) -> str:
    """Return the official name of one of our weights.

    Args:
        name: ours.
        top, block: official module -> ours, outside of blocks and within.
        prefix, official_prefix: of a block's names.

    Raises:
        ValueError: the release has none.
    """
    inner = re.fullmatch(prefix + r"\.(\d+)\.(.+)", name)
    table = {ours: theirs for theirs, ours in (block if inner else top).items()}
    known = lookup(inner[2] if inner else name, table)
    if known is None:
        raise ValueError(f"transformer: got a weight {name!r}, for which the release has no name")
    return f"{official_prefix}.{inner[1]}.{known}" if inner else known


def lookup(name: str, table: Mapping[str, str]) -> str | None:
    """Look a whole name up, else its module."""
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}" if module in table else None
