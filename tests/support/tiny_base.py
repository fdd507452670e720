"""A whole Wan image-to-video pipeline in diffusers' format, every component tiny and random."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanImageToVideoPipeline
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from support.tiny_wan import tiny_wan

WORDS = ["<pad>", "</s>", "<unk>", "a", "hand", "holds", "cup", "red", "blurry"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and an end."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_text_encoder() -> UMT5EncoderModel:
    """One layer, random."""
    config = UMT5Config(
        vocab_size=len(WORDS),
        d_model=24,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config).eval()


def tiny_vae() -> AutoencoderKLWan:
    """Of three channels, random."""
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).eval()


def tiny_image_encoder() -> dict[str, Any]:
    """Two layers, random, and what prepares its images."""
    config = CLIPVisionConfig(
        hidden_size=20,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    return {
        "image_processor": CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        "image_encoder": CLIPVisionModel(config).eval(),
    }


def save_tiny_base(folder: Path, **config: Any) -> Path:
    """Write the pipeline's folder; config changes the transformer's."""
    transformer = tiny_wan(**config)
    if transformer.condition_embedder.image_embedder.pos_embed is not None:
        nn.init.normal_(transformer.condition_embedder.image_embedder.pos_embed)
    torch.manual_seed(5)
    pipe = WanImageToVideoPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        **tiny_image_encoder(),
        transformer=transformer,
    )
    pipe.save_pretrained(folder)
    return folder
