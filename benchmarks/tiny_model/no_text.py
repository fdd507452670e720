"""A text encoder that says nothing, whatever the text: the tiny model was trained without any.

With it the folder is a whole pipeline of diffusers, which loads and runs as any other. genhoi reads
from genhoi.json that there are no texts, and does not load it.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

__all__ = ["silent_text_encoder", "small_tokenizer"]

_WORDS = ("<pad>", "</s>", "<unk>")


def silent_text_encoder(width: int) -> Any:
    """Make an encoder whose last norm multiplies by zero.

    Args:
        width: of a token: the transformer's text_dim.
    """
    config = UMT5Config(
        vocab_size=len(_WORDS),
        d_model=width,
        d_kv=width,
        d_ff=width,
        num_layers=1,
        num_heads=1,
        pad_token_id=0,
        eos_token_id=1,
    )
    encoder = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.zero_()
    return encoder


def small_tokenizer() -> Any:
    """Make a tokenizer that knows no word."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
