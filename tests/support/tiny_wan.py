"""A Wan of two blocks, an adapter whose every weight matters, inputs, and the data folder."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from genhoi import GenHOIAdapter

GRID = (3, 4, 6)
TOKENS = 3 * 4 * 6
OPTIONS = [(False, None), (True, None), (False, "token"), (True, "token"), (True, "sequence")]


def tiny_wan(*, layers: int = 2, image: bool = True, **config: Any) -> WanTransformer3DModel:
    """Image-to-video (or, without image, text-to-video with 16 channels); 4 heads of 16."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 36 if image else 16,
        "out_channels": 16, "text_dim": 24, "freq_dim": 32, "ffn_dim": 96, "num_layers": layers,
        "image_dim": 20 if image else None, "rope_max_seq_len": 64,
    }  # fmt: skip
    sizes |= config
    dim = sizes["num_attention_heads"] * sizes["attention_head_dim"]
    model = WanTransformer3DModel(added_kv_proj_dim=dim if image else None, **sizes)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm_q" in name or "norm_k" in name:
                p.uniform_(0.5, 1.5)
    return model.eval()


def lively_adapter(model: WanTransformer3DModel, **options: Any) -> GenHOIAdapter:
    """Random weights all over, so that nothing is left out unnoticed."""
    adapter = GenHOIAdapter.for_transformer(model, rank=options.pop("rank", 8), **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in adapter.named_parameters():
            nn.init.normal_(p, mean=float("norm.weight" in name), std=0.3)
    return adapter


def inputs(
    model: WanTransformer3DModel, *, batch: int = 1, seed: int = 2, grid: tuple[int, ...] = GRID,
    dtype: torch.dtype = torch.float32, step: float = 731.0,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of a forward pass."""
    draw = torch.Generator().manual_seed(seed)
    config = model.config

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    f, h, w = grid
    image = None if config.image_dim is None else normal(batch, 257, config.image_dim)
    return {
        "hidden_states": normal(batch, config.in_channels, f, 2 * h, 2 * w),
        "encoder_hidden_states": normal(batch, 512, config.text_dim),
        "encoder_hidden_states_image": image,
        "timestep": torch.full((batch,), step),
        "return_dict": False,
    }


def reference(
    h: int = 8, w: int = 6, *, batch: int = 1, channels: int = 16, seed: int = 3
) -> Tensor:
    """A reference's latent."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, 1, h, w, generator=draw)


def some_tokens(batch: int = 1, seed: int = 4) -> Tensor:
    """A mask over tokens, a third of them inside."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(batch, TOKENS, generator=draw) < 0.33


def shared_folder() -> Path:
    """$GENHOI_SHARED, else ``shared`` beside the repository; skips where there is none."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    path = Path(os.environ.get("GENHOI_SHARED", beside))
    if not path.is_dir():
        pytest.skip(f"no data folder at {path}; name one in GENHOI_SHARED")
    return path
