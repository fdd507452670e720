"""Weights of the authors' release <-> a diffusers Wan transformer and an adapter.

Tensors are renamed, never copied or cast: a state_dict that is mapped from disk stays there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from torch import Tensor

from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_config import AdapterConfig
from genhoi.models.wan.official_names import (
    official_adapter_name,
    official_base_name,
    rename,
)
from genhoi.models.wan.official_parts import filled_transformer, sorted_parts
from genhoi.models.wan.official_sizes import check_sizes, shape_of, trunk_sizes
from genhoi.models.wan.vace import convert as vace

__all__ = ["from_official", "infer_config", "to_official"]


def from_official(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    lora: Mapping[str, Tensor] | None = None,
    gates_from: Literal["base", "lora"] = "base",
) -> tuple[WanTransformer3DModel | WanVACETransformer3DModel, GenHOIAdapter]:
    """Build a diffusers transformer and an adapter from the release's weights.

    Names tell which version they belong to: image-to-video or VACE.

    Args:
        state_dict: every weight under its official name, of VACE the trunk's and the VACE branch's.
            They become the parameters as they are, without a copy or a cast; ``requires_grad`` as
            usual.
        config: sizes under the release's names (``dim``, ``num_heads``, ...). What is left out is
            read from the weights' shapes; eps is then 1e-6, and VACE blocks are evenly spread.
        lora: of VACE, what a LoRA file of the release holds; such weights may lie in `state_dict`
            as well. They become the adapter's, unmerged, and work on all rows.
        gates_from: of VACE, whose gates count where both `state_dict` and `lora` have them; the
            release drops the LoRA file's.

    Returns:
        transformer and adapter, on the weights' device. The adapter's config holds the release's
        settings: mask gate off, its schedule, and a gate per sequence, of VACE per token.

    Raises:
        ValueError: names missing or unknown, or sizes that contradict the weights.

    Warns:
        GatesWarning: the LoRA file's gates differ from the ones in use.

    Example:
        >>> import genhoi
        >>> from genhoi.bases.load import load_base
        >>> transformer = load_base("mosaic-untrained").transformer
        >>> adapter = genhoi.GenHOIAdapter.for_transformer(transformer)
        >>> weights = genhoi.to_official(transformer, adapter)  # else those of the release's files
        >>> again, adapter = genhoi.from_official(weights, {"num_heads": 4})
        >>> adapter.config.schedule
        'release'
    """
    if vace.is_vace(state_dict):
        return vace.from_official(state_dict, config or {}, lora=lora, gates_from=gates_from)
    if lora is not None:
        raise ValueError("lora: got weights beside those of image-to-video, wanted None")
    sizes = _checked_sizes(state_dict, config or {})
    of_transformer, of_adapter = sorted_parts(state_dict, rename)
    image = sizes["has_image_input"]
    transformer = filled_transformer(
        WanTransformer3DModel,
        sizes,
        of_transformer,
        name="state_dict (the base's part)",
        image_dim=sizes["image_dim"] if image else None,
        added_kv_proj_dim=sizes["dim"] if image else None,
    )
    adapter_config = AdapterConfig(
        num_heads=sizes["num_heads"],
        head_dim=sizes["head_dim"],
        num_layers=sizes["num_layers"],
        image_attention=sizes["has_image_input"],
        rank=shape_of(state_dict, "blocks.0.self_attn.q_loras.down.weight")[0],
        gate_init="neutral",
        mask_gate=False,
        flow_gate="sequence",
        schedule="release",
    )
    return transformer, GenHOIAdapter.from_state_dict(adapter_config, of_adapter)


def to_official(
    transformer: WanTransformer3DModel | WanVACETransformer3DModel, adapter: GenHOIAdapter
) -> dict[str, Tensor]:
    """Undo ``from_official``: the same names, shapes, dtypes and values, without a copy.

    Raises:
        ValueError: a transformer that the adapter does not fit, or with weights that the release
            has no name for (fused projections, PEFT adapters).

    Example:
        >>> import genhoi
        >>> from genhoi.bases.load import load_base
        >>> transformer = load_base("mosaic-untrained").transformer
        >>> adapter = genhoi.GenHOIAdapter.for_transformer(transformer)
        >>> weights = genhoi.to_official(transformer, adapter)
        >>> tuple(weights["blocks.0.self_attn.q.weight"].shape)
        (256, 256)
    """
    adapter.check_fits(transformer)
    if adapter.config.references == "frames":
        return vace.to_official(transformer, adapter)
    weights = {official_base_name(n): x for n, x in transformer.state_dict().items()}
    return weights | {official_adapter_name(n): x for n, x in adapter.state_dict().items()}


def infer_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the release's configuration from the weights' shapes: all but ``eps``, and of VACE
    ``vace_layers``.

    Raises:
        ValueError: a weight that tells is missing.
    """
    if vace.is_vace(state_dict):
        return vace.infer_config(state_dict)
    sizes = trunk_sizes(state_dict)
    head_dim = shape_of(state_dict, "blocks.0.self_attn.attn.gate.mlp.0.weight")[0]
    return sizes | {
        "num_heads": sizes["dim"] // head_dim,
        "has_image_input": "img_emb.proj.1.weight" in state_dict,
        "head_dim": head_dim,
    }


def _checked_sizes(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Take sizes from the weights and eps from the config; they may not contradict each other."""
    sizes = infer_config(state_dict)
    check_sizes(sizes, config, others=("eps",))
    sizes["eps"] = config.get("eps", 1e-6)
    if sizes["has_image_input"]:
        sizes["image_dim"] = shape_of(state_dict, "img_emb.proj.1.weight")[1]
    return sizes
