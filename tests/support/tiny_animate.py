"""A Wan Animate of two blocks, its inputs, and the whole pipeline."""

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
)
from torch import Tensor

from support.tiny_base import tiny_image_encoder, tiny_text_encoder, tiny_tokenizer, tiny_vae

GRID = (3, 4, 6)  # the character's frame and two of the video


def tiny_animate(**config: Any) -> WanAnimateTransformer3DModel:
    """4 heads of 16; faces of 16 x 16 pixels."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "in_channels": 36,
        "latent_channels": 16,
        "out_channels": 16,
        "text_dim": 24,
        "freq_dim": 32,
        "ffn_dim": 96,
        "num_layers": 2,
        "image_dim": 20,
        "added_kv_proj_dim": 64,
        "rope_max_seq_len": 64,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "motion_encoder_size": 16,
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    }
    return WanAnimateTransformer3DModel(**(sizes | config)).eval()


def animate_inputs(
    model: WanAnimateTransformer3DModel, *, dtype: torch.dtype = torch.float32, seed: int = 2
) -> dict[str, Any]:
    """Arguments of a forward pass."""
    draw = torch.Generator().manual_seed(seed)
    f, h, w = GRID

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).to(dtype)

    return {
        "hidden_states": normal(1, 36, f, 2 * h, 2 * w),
        "pose_hidden_states": normal(1, 16, f - 1, 2 * h, 2 * w),
        "face_pixel_values": normal(1, 3, 4 * (f - 2) + 1, 16, 16),
        "encoder_hidden_states": normal(1, 512, 24),
        "encoder_hidden_states_image": normal(1, 257, 20),
        "timestep": torch.full((1,), 731.0),
        "return_dict": False,
    }


def tiny_animate_pipeline() -> WanAnimatePipeline:
    """Every component tiny and random."""
    transformer = tiny_animate()
    torch.manual_seed(5)
    pipe = WanAnimatePipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        **tiny_image_encoder(),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
