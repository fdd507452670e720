"""Whole Wan 2.2 and text-to-video pipelines in diffusers' format, tiny and random."""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVACEPipeline,
)

from support.tiny_base import tiny_text_encoder, tiny_tokenizer, tiny_vae
from support.tiny_vace import tiny_vace
from support.tiny_wan import tiny_wan

Form = Literal["image", "text", "vace"]
PIPELINES = {"image": WanImageToVideoPipeline, "text": WanPipeline, "vace": WanVACEPipeline}


def tiny_expert(form: Form = "image", seed: int = 0) -> Any:
    """A transformer of that form without an image encoder; another seed, other weights."""
    if form == "vace":
        model = tiny_vace()
    elif form == "image":
        model = tiny_wan(image=False, in_channels=36)
    else:
        model = tiny_wan(image=False)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * seed * torch.randn(weight.shape, generator=draw)
    return model


def tiny_tokens_wan() -> Any:
    """A transformer of 48 channels, as that of TI2V."""
    return tiny_wan(image=False, in_channels=48, out_channels=48)


def tiny_tokens_vae() -> AutoencoderKLWan:
    """A VAE of 48 channels at 16 pixels, built as that of TI2V."""
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=48,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 48,
        latents_std=[1.5] * 48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    ).eval()


def save_tiny_pipeline(
    folder: Path,
    form: Form = "image",
    *,
    experts: bool = True,
    tokens: bool = False,
    boundary: float = 0.9,
    **saving: Any,
) -> Path:
    """Write a pipeline's folder.

    Args:
        folder: of the result.
        form: which pipeline.
        experts: with two transformers.
        tokens: as TI2V has it, with timesteps by token.
        boundary: between two transformers.
        saving: for `save_pretrained`.
    """
    transformer = tiny_tokens_wan() if tokens else tiny_expert(form)
    torch.manual_seed(5)
    more: dict[str, Any] = {"expand_timesteps": True} if tokens else {}
    if experts:
        more |= {"transformer_2": tiny_expert(form, 1), "boundary_ratio": boundary}
    pipe = PIPELINES[form](
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_tokens_vae() if tokens else tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=transformer,
        **more,
    )
    pipe.save_pretrained(folder, **saving)
    return folder
