"""Weights of the authors' release <-> a diffusers Wan transformer and an adapter.

Tensors are renamed, never copied or cast: a state_dict that is mapped from disk stays there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from genhoi.models.adapter import GenHOIAdapter, assign
from genhoi.models.adapter_config import AdapterConfig
from genhoi.models.wan.official_names import (
    official_adapter_name,
    official_base_name,
    rename,
)

__all__ = ["from_official", "infer_config", "to_official"]

_SIZES = (
    "dim",
    "ffn_dim",
    "text_dim",
    "freq_dim",
    "num_heads",
    "num_layers",
    "in_dim",
    "out_dim",
    "patch_size",
    "eps",
    "has_image_input",
    "head_dim",
)
_IRRELEVANT = ("model_type", "text_len", "_class_name", "_diffusers_version")
_ROPE_LENGTH = 1024


def from_official(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> tuple[WanTransformer3DModel, GenHOIAdapter]:
    """Build a diffusers transformer and an adapter from the release's weights.

    Args:
        state_dict: every weight under its official name. They become the parameters as they are,
            without a copy or a cast; ``requires_grad`` as usual.
        config: sizes under the release's names (``dim``, ``num_heads``, ...). What is left out is
            read from the weights' shapes; eps is then 1e-6.

    Returns:
        transformer and adapter, on the weights' device. The adapter's config holds the release's
        settings: mask gate off, a gate per sequence, its schedule.

    Raises:
        ValueError: names missing or unknown, or sizes that contradict the weights.

    Example:
        >>> import genhoi
        >>> from genhoi.bases.load import load_base
        >>> transformer = load_base("tiny-untrained").transformer
        >>> adapter = genhoi.GenHOIAdapter.for_transformer(transformer)
        >>> weights = genhoi.to_official(transformer, adapter)  # else those of the release's files
        >>> again, adapter = genhoi.from_official(weights, {"num_heads": 4})
        >>> adapter.config.schedule
        'release'
    """
    sizes = _checked_sizes(state_dict, config or {})
    parts: dict[str, dict[str, Tensor]] = {"transformer": {}, "adapter": {}}
    for name, tensor in state_dict.items():
        part, renamed = rename(name)
        parts[part][renamed] = tensor
    transformer = _empty_transformer(sizes)
    assign(transformer, parts["transformer"], "state_dict (the base's part)")
    transformer.eval()
    adapter_config = AdapterConfig(
        num_heads=sizes["num_heads"],
        head_dim=sizes["dim"] // sizes["num_heads"],
        num_layers=sizes["num_layers"],
        image_attention=sizes["has_image_input"],
        rank=_shape(state_dict, "blocks.0.self_attn.q_loras.down.weight")[0],
        gate_init="neutral",
        mask_gate=False,
        flow_gate="sequence",
        schedule="release",
    )
    return transformer, GenHOIAdapter.from_state_dict(adapter_config, parts["adapter"])


def to_official(transformer: WanTransformer3DModel, adapter: GenHOIAdapter) -> dict[str, Tensor]:
    """Undo ``from_official``: the same names, shapes, dtypes and values, without a copy.

    Raises:
        ValueError: a transformer that the adapter does not fit, or with weights that the release
            has no name for (fused projections, PEFT adapters).

    Example:
        >>> import genhoi
        >>> from genhoi.bases.load import load_base
        >>> transformer = load_base("tiny-untrained").transformer
        >>> adapter = genhoi.GenHOIAdapter.for_transformer(transformer)
        >>> weights = genhoi.to_official(transformer, adapter)
        >>> tuple(weights["blocks.0.self_attn.q.weight"].shape)
        (256, 256)
    """
    adapter.check_fits(transformer)
    weights = {official_base_name(n): x for n, x in transformer.state_dict().items()}
    return weights | {official_adapter_name(n): x for n, x in adapter.state_dict().items()}


def infer_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the release's configuration from the weights' shapes: all but ``eps``.

    Raises:
        ValueError: a weight that tells is missing.
    """
    dim, in_dim, *patch = _shape(state_dict, "patch_embedding.weight")
    head_dim = _shape(state_dict, "blocks.0.self_attn.attn.gate.mlp.0.weight")[0]
    layers = {int(m[1]) for name in state_dict if (m := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "dim": dim,
        "ffn_dim": _shape(state_dict, "blocks.0.ffn.0.weight")[0],
        "text_dim": _shape(state_dict, "text_embedding.0.weight")[1],
        "freq_dim": _shape(state_dict, "time_embedding.0.weight")[1],
        "num_heads": dim // head_dim,
        "num_layers": max(layers) + 1,
        "in_dim": in_dim,
        "out_dim": _shape(state_dict, "head.head.weight")[0] // math.prod(patch),
        "patch_size": patch,
        "has_image_input": "img_emb.proj.1.weight" in state_dict,
        "head_dim": head_dim,
    }


def _shape(state_dict: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state_dict:
        raise ValueError(f"state_dict: {name} is missing, wanted all weights of the release")
    return state_dict[name].shape


def _checked_sizes(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Take sizes from the weights and eps from the config; they may not contradict each other."""
    unknown = [k for k, v in config.items() if v and k not in (*_SIZES, *_IRRELEVANT)]
    if unknown:
        raise ValueError(f"config: got {unknown}, wanted only {', '.join(_SIZES)}")
    sizes = infer_config(state_dict)
    for name, wanted in sizes.items():
        got = config.get(name, wanted)
        if (list(got) if name == "patch_size" else got) != wanted:
            raise ValueError(f"config[{name!r}]: got {got}, wanted {wanted} as in the weights")
    sizes["eps"] = config.get("eps", 1e-6)
    if sizes["has_image_input"]:
        sizes["image_dim"] = _shape(state_dict, "img_emb.proj.1.weight")[1]
    return sizes


def _empty_transformer(sizes: dict[str, Any]) -> WanTransformer3DModel:
    """Make a transformer without weights; its tables of angles are real."""
    heads, patch = sizes["num_heads"], tuple(sizes["patch_size"])
    image = sizes["has_image_input"]
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            patch_size=patch,
            num_attention_heads=heads,
            attention_head_dim=sizes["dim"] // heads,
            in_channels=sizes["in_dim"],
            out_channels=sizes["out_dim"],
            text_dim=sizes["text_dim"],
            freq_dim=sizes["freq_dim"],
            ffn_dim=sizes["ffn_dim"],
            num_layers=sizes["num_layers"],
            eps=sizes["eps"],
            image_dim=sizes["image_dim"] if image else None,
            added_kv_proj_dim=sizes["dim"] if image else None,
            rope_max_seq_len=_ROPE_LENGTH,
        )
    transformer.rope = WanRotaryPosEmbed(sizes["dim"] // heads, patch, _ROPE_LENGTH)
    return transformer
