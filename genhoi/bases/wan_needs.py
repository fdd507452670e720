"""What VAE and encoders of a Wan pipeline need, from their configurations alone.

Each is built without weights, on the meta device, and does there what an edit has it do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from genhoi.bases.needs import (
    DENOISING,
    DENOISING_2,
    TRANSFORMER,
    TRANSFORMER_2,
    BaseNeeds,
    Phase,
)
from genhoi.bases.wan_files import read_json
from genhoi.conditioning.grid import Strides
from genhoi.models.counted import counting
from genhoi.models.wan.family import latent_channels

__all__ = ["wan_needs"]

# Of Wan2.1, for a component whose configuration is missing; the VAE's are its class's defaults.
_WAN21: dict[str, dict[str, Any]] = {
    "vae": {},
    "text_encoder": {
        "vocab_size": 256384,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
}
_BUILD: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "vae": AutoencoderKLWan.from_config,
    "text_encoder": lambda config: UMT5EncoderModel(UMT5Config.from_dict(config)),
    "image_encoder": lambda config: CLIPVisionModel(CLIPVisionConfig.from_dict(config)),
}
# The VAE works through a clip 4 frames at a time: from the third on, each adds as much.
_COUNTED = (9, 13)


def wan_needs(
    folder: Path,
    transformer: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    frames: int,
    size: tuple[int, int],
    text_tokens: int,
    offload_order: tuple[str, ...],
    two_experts: bool = False,
) -> BaseNeeds:
    """Count what VAE and encoders take.

    Args:
        folder: of the pipeline; only its configurations are read.
        transformer: the transformer's configuration.
        dtype: of the text encoder; the others stay in float32.
        frames, size: of a window, size as (height, width).
        text_tokens: that the text encoder gets; 0 where there is none.
        offload_order: as for `BaseNeeds`.
        two_experts: whether two transformers share the noise levels.
    """
    names = ["vae"] + ["text_encoder"] * (text_tokens > 0)
    takes_images = transformer.get("image_dim") is not None
    if takes_images:
        names.append("image_encoder")
    models, assumed = {}, []
    for name in names:
        path = folder / name / "config.json"
        if not path.is_file():
            assumed.append(name)
        is_known = name != "vae" or latent_channels(transformer) == 16
        config = _WAN21[name] if is_known and not path.is_file() else read_json(path)
        with torch.device("meta"):
            models[name] = _BUILD[name](config).eval()
    phases = []
    if text_tokens:
        phases.append(_text_phase(models["text_encoder"].to(dtype), text_tokens))
    phases.append(_vae_phase("encoding frames", _encoding, models["vae"], frames, size))
    image = None
    if takes_images:
        images = 1 if transformer.get("pos_embed_seq_len") is None else 2
        image_phase, image = _image_phase(models["image_encoder"], images)
        phases.append(image_phase)
    phases.append(Phase(DENOISING, TRANSFORMER, 0))
    if two_experts:
        phases.append(Phase(DENOISING_2, TRANSFORMER_2, 0))
    phases.append(_vae_phase("decoding frames", _decoding, models["vae"], frames, size))
    return BaseNeeds(
        weight_bytes={name: _weight_bytes(model) for name, model in models.items()},
        assumed=tuple(assumed),
        phases=tuple(phases),
        image=image,
        offload_order=tuple(
            name for name in offload_order if name in {*names, *(phase.uses for phase in phases)}
        ),
    )


def _text_phase(encoder: Any, tokens: int) -> Phase:
    with counting() as counter:
        encoder(torch.empty(1, tokens, dtype=torch.long, device="meta"))
    return Phase("encoding text", "text_encoder", counter.peak_bytes, each_window=False)


def _image_phase(encoder: Any, images: int) -> tuple[Phase, tuple[int, int, int]]:
    side = encoder.config.image_size
    with counting() as counter:
        states = encoder(torch.empty(images, 3, side, side, device="meta")).last_hidden_state
    count, tokens, width = states.shape
    return Phase("encoding images", "image_encoder", counter.peak_bytes), (count, tokens, width)


def _vae_phase(
    name: str,
    work: Callable[[Any, int, tuple[int, int]], object],
    vae: Any,
    frames: int,
    size: tuple[int, int],
) -> Phase:
    """Count a window's work, beyond 13 frames in a straight line from shorter ones."""
    few, more = _COUNTED
    if frames <= more:
        return Phase(name, "vae", _peak(work, vae, frames, size))
    low, high = (_peak(work, vae, count, size) for count in _COUNTED)
    return Phase(name, "vae", high + (high - low) * (frames - more) // (more - few))


def _peak(
    work: Callable[[Any, int, tuple[int, int]], object],
    vae: Any,
    frames: int,
    size: tuple[int, int],
) -> int:
    with counting() as counter:
        work(vae, frames, size)
    return counter.peak_bytes


def _encoding(vae: Any, frames: int, size: tuple[int, int]) -> object:
    pixels = torch.empty(1, 3, frames, *size, device="meta")
    return vae.encode(pixels).latent_dist.mode()


def _decoding(vae: Any, frames: int, size: tuple[int, int]) -> object:
    strides = Strides(space=vae.config.scale_factor_spatial)
    f = strides.latent_frames(frames)
    height, width = (side // strides.space for side in size)
    latents = torch.empty(1, vae.config.z_dim, f, height, width, device="meta")
    return vae.decode(latents, return_dict=False)


def _weight_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
