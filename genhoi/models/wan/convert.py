"""Weights of the authors' release <-> a diffusers Wan transformer and an adapter.

Tensors are renamed, never copied or cast: a state_dict that is mapped from disk stays there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from genhoi.models.adapter import AdapterConfig, GenHOIAdapter, assign

__all__ = ["from_official", "infer_config", "load_weights", "to_official"]

# Official module -> diffusers module; a modulation is a parameter of its own.
_TOP = {
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
_BLOCK = {
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
        ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"),
        ("norm_q", "norm_q"), ("norm_k", "norm_k"),
    )
}  # fmt: skip
_ADAPTER = {
    f"self_attn.{x}_loras.{side}.weight": f"lora_{x}.{side}"
    for x in "qkv" for side in ("down", "up")
} | {
    f"{official}.gate.mlp.{index}": f"{ours}.{layer}"
    for official, ours in (
        ("self_attn.attn", "self_gate"),
        ("cross_attn.attn", "text_gate"),
        ("cross_attn.attn_img", "image_gate"),
    )
    for index, layer in ((0, "norm"), (1, "fc1"), (3, "fc2"))
}  # fmt: skip

_SIZES = (
    "dim", "ffn_dim", "text_dim", "freq_dim", "num_heads", "num_layers", "in_dim", "out_dim",
    "patch_size", "eps", "has_image_input", "head_dim",
)  # fmt: skip
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
    """
    sizes = _checked_sizes(state_dict, config or {})
    parts: dict[str, dict[str, Tensor]] = {"transformer": {}, "adapter": {}}
    for name, tensor in state_dict.items():
        part, renamed = _rename(name)
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
    """Inverse of ``from_official``: the same names, shapes, dtypes and values, without a copy.

    Raises:
        ValueError: a transformer that the adapter does not fit, or with weights that the release
            has no name for (fused projections, PEFT adapters).
    """
    adapter.check_fits(transformer)
    found = {
        _unname(name, _TOP, _BLOCK, "blocks"): x for name, x in transformer.state_dict().items()
    }
    found |= {_unname(name, {}, _ADAPTER, "layers"): x for name, x in adapter.state_dict().items()}
    return found


def infer_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The release's configuration, as far as the weights' shapes tell: all but ``eps``.

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


def load_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Read weights, mapped into memory: nothing is loaded before it is used.

    Args:
        paths: of .safetensors files, .pth, .pt, .bin or .ckpt files of tensors, the index of a
            sharded checkpoint (*.index.json), or a folder with one of these. Several: their union.

    Raises:
        OSError: no such file. ValueError: another kind of file, or a name that comes twice.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        for file in _files(path):
            for name, tensor in _load_file(file).items():
                if name in found:
                    raise ValueError(f"weights: {name} comes twice, the second time in {file}")
                found[name] = tensor
    return found


# -------------------------------------------------------------------------------------------- names


def _rename(name: str) -> tuple[str, str]:
    """Which part an official name belongs to, and what it is called there."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block is None:
        renamed = _lookup(name, _TOP)
        if renamed is not None:
            return "transformer", renamed
    else:
        for part, prefix, table in (
            ("transformer", "blocks", _BLOCK),
            ("adapter", "layers", _ADAPTER),
        ):
            renamed = _lookup(block[2], table)
            if renamed is not None:
                return part, f"{prefix}.{block[1]}.{renamed}"
    raise ValueError(f"state_dict: got {name!r}, wanted a name of the release")


def _unname(name: str, top: dict[str, str], block: dict[str, str], prefix: str) -> str:
    """Official name of a parameter."""
    inner = re.fullmatch(prefix + r"\.(\d+)\.(.+)", name)
    table = {ours: official for official, ours in (block if inner else top).items()}
    official = _lookup(inner[2] if inner else name, table)
    if official is None:
        raise ValueError(f"transformer: got a weight {name!r}, for which the release has no name")
    return f"blocks.{inner[1]}.{official}" if inner else official


def _lookup(name: str, table: dict[str, str]) -> str | None:
    """By whole name, else by module."""
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return f"{table[module]}.{leaf}" if module in table else None


# -------------------------------------------------------------------------------------------- sizes


def _shape(state_dict: Mapping[str, Tensor], name: str) -> torch.Size:
    if name not in state_dict:
        raise ValueError(f"state_dict: {name} is missing, wanted all weights of the release")
    return state_dict[name].shape


def _checked_sizes(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes from the weights and eps from the config, which may not contradict each other."""
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
    """A transformer without weights; its tables of angles are real."""
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


# -------------------------------------------------------------------------------------------- files


def _files(path: Path) -> list[Path]:
    """The files that hold the weights."""
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if len(indices) == 1:
            return _files(indices[0])
        files = sorted(path.glob("*.safetensors")) or sorted(
            file for kind in _PICKLES for file in path.glob(f"*{kind}")
        )
        if not files:
            raise FileNotFoundError(f"weights: no .safetensors or .pth file in {path}")
        return files
    if path.name.endswith(".index.json"):
        index = json.loads(path.read_text(encoding="utf-8"))
        return [path.parent / name for name in sorted(set(index["weight_map"].values()))]
    return [path]


_PICKLES = (".pth", ".pt", ".bin", ".ckpt")


def _load_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix not in _PICKLES:
        raise ValueError(f"weights: got {path}, wanted .safetensors or {', '.join(_PICKLES)}")
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise ValueError(f"weights: {path} holds something else than tensors by name")
    return loaded
