"""Weights of the authors' VACE release <-> a diffusers Wan VACE transformer and an adapter.

Tensors are renamed, never copied, cast or merged: what is mapped from disk stays there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from diffusers import WanVACETransformer3DModel
from torch import Tensor

from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_config import LORA_TARGETS, AdapterConfig
from genhoi.models.wan.official_parts import filled_transformer, sorted_parts
from genhoi.models.wan.official_sizes import (
    check_sizes,
    count_blocks,
    shape_of,
    trunk_sizes,
)
from genhoi.models.wan.vace.official_names import is_low_rank, official_name, rename
from genhoi_kernels.reference import GATE_NORM_EPS

__all__ = ["GatesWarning", "from_official", "infer_config", "is_vace", "to_official"]


class GatesWarning(UserWarning):
    """A LoRA file holds gates that are not used."""


_GATE = "vace_blocks.0.self_attn.attn.gate.mlp.0.weight"


def is_vace(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether weights are of the VACE version, by their official names."""
    return any(name.startswith(("vace_blocks.", "vace_patch_embedding.")) for name in state_dict)


def from_official(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    lora: Mapping[str, Tensor] | None,
    gates_from: Literal["base", "lora"],
) -> tuple[WanVACETransformer3DModel, GenHOIAdapter]:
    """Build both; see `genhoi.models.wan.convert.from_official`."""
    if gates_from not in ("base", "lora"):
        raise ValueError(f"gates_from: got {gates_from!r}, wanted 'base' or 'lora'")
    weights = _with_lora(state_dict, lora or {}, gates_from)
    sizes = _checked_sizes(weights, config)
    of_transformer, of_adapter = sorted_parts(weights, rename)
    transformer = filled_transformer(
        WanVACETransformer3DModel,
        sizes,
        of_transformer,
        name="state_dict (trunk and VACE branch)",
        vace_layers=sizes["vace_layers"],
        vace_in_channels=sizes["vace_in_dim"],
    )
    adapter_config = _adapter_config(sizes, of_adapter)
    return transformer, GenHOIAdapter.from_state_dict(adapter_config, of_adapter)


def to_official(
    transformer: WanVACETransformer3DModel, adapter: GenHOIAdapter
) -> dict[str, Tensor]:
    """Undo ``from_official``, low-rank weights in peft's names."""
    weights = {**transformer.state_dict(), **adapter.state_dict()}
    return {official_name(name): x for name, x in weights.items()}


def infer_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the configuration from the weights' shapes: all but ``eps`` and ``vace_layers``."""
    sizes = trunk_sizes(state_dict)
    head_dim = shape_of(state_dict, _GATE)[0]
    return sizes | {
        "num_heads": sizes["dim"] // head_dim,
        "head_dim": head_dim,
        "vace_in_dim": shape_of(state_dict, "vace_patch_embedding.weight")[1],
    }


def _with_lora(
    state_dict: Mapping[str, Tensor], lora: Mapping[str, Tensor], gates_from: str
) -> dict[str, Tensor]:
    """Join what two files hold, with the gates of one of them."""
    gates = {name: x for name, x in lora.items() if not is_low_rank(name)}
    if others := [n for n in gates if ".attn.gate." not in n]:
        raise ValueError(
            f"lora: got {others[0]!r}, wanted low-rank weights in peft's names and gates alone"
        )
    if lora and len(gates) == len(lora):
        raise ValueError("lora: got no low-rank weight, wanted names with lora_A and lora_B")
    known = [name for name in gates if name in state_dict]
    if gates_from == "base" and known:
        # Both files are of one training, or of two: nobody but the user can know.
        different = [n for n in known if not torch.equal(gates[n], state_dict[n])]
        if different:
            warnings.warn(
                f"lora: it holds {len(gates)} gate tensors, of which {len(different)} differ from "
                f"the VACE branch's; the branch's are used, as in the release. gates_from='lora' "
                f"(--gates-from lora) takes the LoRA file's",
                GatesWarning,
                stacklevel=5,
            )
        gates = {name: x for name, x in gates.items() if name not in state_dict}
    return {**state_dict, **{n: x for n, x in lora.items() if is_low_rank(n)}, **gates}


def _checked_sizes(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Take sizes from the weights, eps and the VACE blocks' places from the config."""
    sizes = infer_config(weights)
    check_sizes(sizes, config, others=("eps", "gate_eps", "vace_layers", "has_image_input"))
    if (eps := config.get("gate_eps", GATE_NORM_EPS)) != GATE_NORM_EPS:
        raise ValueError(f"config['gate_eps']: got {eps}, wanted {GATE_NORM_EPS}")
    count, layers = count_blocks(weights, "vace_blocks"), sizes["num_layers"]
    spread = list(range(0, layers, max(1, layers // count)))[:count]
    places = list(config.get("vace_layers", spread))
    if len(places) != count:
        raise ValueError(
            f"config['vace_layers']: got {places}, wanted {count} places, one for each VACE block "
            f"of the weights"
        )
    return sizes | {"eps": config.get("eps", 1e-6), "vace_layers": places}


def _adapter_config(sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> AdapterConfig:
    """Take the low-rank weights' rank and layers from themselves; the rest is the release's."""
    found = {m[1]: x for n, x in weights.items() if (m := re.search(r"lora\.(\w+)\.down$", n))}
    return AdapterConfig(
        num_heads=sizes["num_heads"],
        head_dim=sizes["head_dim"],
        num_layers=len(sizes["vace_layers"]),
        image_attention=False,
        rank=len(next(iter(found.values()))) if found else 0,
        gate_init="neutral",
        mask_gate=False,
        flow_gate="token",
        schedule="release",
        references="frames",
        ffn_dim=sizes["ffn_dim"],
        lora_targets=tuple(name for name in LORA_TARGETS if name in found) if found else None,
    )
