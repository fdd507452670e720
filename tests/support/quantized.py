"""Quantised transformers as diffusers loads them, each with an ordinary one of the same values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import GGUFQuantizationConfig, TorchAoConfig, WanTransformer3DModel
from torch import Tensor, nn

from genhoi import GenHOIAdapter, to_official
from support.tiny_wan import tiny_wan

QUANTIZERS = ("Q8_0", "Q4_0", "int8", "int8 with activations")
WIDE = {"attention_head_dim": 32, "ffn_dim": 128}
"""Blocks of the formats have 32 numbers."""


def quantized_wan(kind: str, folder: Path) -> WanTransformer3DModel:
    """Load a tiny Wan in bfloat16, by one of `QUANTIZERS`; skips without its package."""
    if kind in ("Q8_0", "Q4_0"):
        return _gguf(kind, folder)
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    configs: dict[str, Callable[[], Any]] = {
        "int8": quantization.Int8WeightOnlyConfig,
        "int8 with activations": quantization.Int8DynamicActivationInt8WeightConfig,
    }
    tiny_wan(**WIDE).to(torch.bfloat16).save_pretrained(folder)
    model = WanTransformer3DModel.from_pretrained(
        folder, quantization_config=TorchAoConfig(configs[kind]()), torch_dtype=torch.bfloat16
    )
    return model.eval()


def plain_wan(quantized: WanTransformer3DModel) -> WanTransformer3DModel:
    """An ordinary one with the same values."""
    model = tiny_wan(**WIDE).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in quantized.named_parameters():
            model.get_parameter(name).copy_(_values(weight))
    return model


def _values(weight: nn.Parameter) -> Tensor:
    if type(weight).__name__ == "GGUFParameter":
        from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

        values: Tensor = dequantize_gguf_tensor(weight)
        return values
    return weight.dequantize() if hasattr(weight, "qdata") else weight.data


def _gguf(kind: str, folder: Path) -> WanTransformer3DModel:
    """Write a file as people share them: the blocks' matrices in few bits, by their first names."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    model = tiny_wan(**WIDE)
    model.save_config(folder)
    bits = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(folder / "wan.gguf", "wan")
    adapter = GenHOIAdapter.for_transformer(model, rank=1)
    for name, weight in to_official(model, adapter).items():
        if "_loras." in name or ".gate." in name:
            continue
        values = weight.detach().numpy()
        if name.startswith("blocks.") and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, bits), raw_dtype=bits)
        else:
            writer.add_tensor(name, values)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return WanTransformer3DModel.from_single_file(
        str(folder / "wan.gguf"),
        config=str(folder),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
        torch_dtype=torch.bfloat16,
    ).eval()
