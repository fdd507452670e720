"""A Wan VACE of four blocks and two VACE blocks, its inputs, and the whole pipeline's folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from torch import Tensor

from support.tiny_base import tiny_text_encoder, tiny_tokenizer, tiny_vae

GRID = (5, 3, 4)  # of two references' frames and three of the video


def tiny_vace(**config: Any) -> WanVACETransformer3DModel:
    """4 heads of 16; norms of q and k that matter."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 24,
        "freq_dim": 32,
        "ffn_dim": 96,
        "num_layers": 4,
        "rope_max_seq_len": 64,
        "vace_layers": [0, 2],
        "vace_in_channels": 96,
    }
    model = WanVACETransformer3DModel(**(sizes | config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm_q" in name or "norm_k" in name:
                p.uniform_(0.5, 1.5)
    return model.eval()


def vace_inputs(
    model: WanVACETransformer3DModel,
    *,
    batch: int = 1,
    grid: tuple[int, int, int] = GRID,
    dtype: torch.dtype = torch.float32,
    seed: int = 2,
) -> dict[str, Any]:
    """Arguments of a forward pass."""
    draw = torch.Generator().manual_seed(seed)
    f, h, w = grid

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    return {
        "hidden_states": normal(batch, 16, f, 2 * h, 2 * w),
        "control_hidden_states": normal(batch, 96, f, 2 * h, 2 * w),
        "encoder_hidden_states": normal(batch, 512, model.config.text_dim),
        "timestep": torch.full((batch,), 731.0),
        "return_dict": False,
    }


def save_tiny_vace_base(folder: Path, transformer: Any = None) -> Path:
    """Write the folder of a whole pipeline, every component tiny and random."""
    model = tiny_vace() if transformer is None else transformer
    torch.manual_seed(5)
    pipe = WanVACEPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=model,
    )
    pipe.save_pretrained(folder)
    return folder
