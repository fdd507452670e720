"""SAM 2 and SAM 3 with the real classes, tiny and random: what they mask means nothing."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["save_tiny_sam2", "save_tiny_sam3"]

_SIDE = 64
_SAM3_SIDE = 56


def save_tiny_sam2(folder: Path) -> Path:
    """Write a Sam2VideoModel."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    torch.manual_seed(0)
    config = Sam2VideoConfig(**_tracker(_SIDE, 16), vision_config=_sam2_vision())
    Sam2VideoModel(config).save_pretrained(folder)
    return folder


def _sam2_vision() -> dict:
    return {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 8,
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 1, 1],
            "blocks_per_stage": [1, 1, 2, 1],
            "global_attention_blocks": [3],
            "image_size": [_SIDE, _SIDE],
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[_SIDE // s, _SIDE // s] for s in (4, 8, 16)],
        "fpn_hidden_size": 128,
    }


def _tracker(side: int, patch: int) -> dict:
    """The parts that SAM 2's and SAM 3's trackers share."""
    return {
        "image_size": side,
        "prompt_encoder_config": {
            "hidden_size": 128,
            "image_size": side,
            "patch_size": patch,
            "mask_input_channels": 4,
        },
        "mask_decoder_config": {
            "hidden_size": 128,
            "mlp_dim": 128,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "iou_head_hidden_dim": 128,
        },
        "memory_attention_hidden_size": 128,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 128,
        "memory_attention_rope_feat_sizes": [side // patch, side // patch],
        "memory_encoder_hidden_size": 128,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": 128,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 128,
        "memory_fuser_num_layers": 1,
    }


def save_tiny_sam3(folder: Path) -> Path:
    """Write a Sam3VideoModel, with a tokenizer that knows letters.

    transformers wants torchvision for its detector, which only boxes drawn on pictures use.
    """
    from transformers import Sam3VideoConfig, Sam3VideoModel

    torch.manual_seed(0)
    vision = _sam3_vision()
    small = {"hidden_size": 128, "intermediate_size": 32, "num_attention_heads": 2}
    layers = {**small, "num_layers": 1}
    text = {**small, "num_hidden_layers": 1, "vocab_size": 64, "projection_dim": 128}
    detector = {
        "vision_config": vision,
        "text_config": {
            **text,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "max_position_embeddings": 32,
        },
        "geometry_encoder_config": layers,
        "detr_encoder_config": layers,
        "detr_decoder_config": {**layers, "num_queries": 4},
        "mask_decoder_config": {"hidden_size": 128, "num_attention_heads": 2},
    }
    tracker = {**_tracker(_SAM3_SIDE, 14), "vision_config": vision}
    config = Sam3VideoConfig(
        detector_config=detector,
        tracker_config=tracker,
        low_res_mask_size=4 * _SAM3_SIDE // 14,
        # Whatever the random weights see counts as found.
        score_threshold_detection=0.0,
        new_det_thresh=0.0,
    )
    Sam3VideoModel(config).save_pretrained(folder)
    _letters().save_pretrained(folder)
    return folder


def _sam3_vision() -> dict:
    side = _SAM3_SIDE // 14
    return {
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": _SAM3_SIDE,
            "pretrain_image_size": _SAM3_SIDE,
            "window_size": 2,
            "global_attn_indexes": [1],
        },
        "fpn_hidden_size": 128,
        "backbone_feature_sizes": [[scale * side, scale * side] for scale in (4, 2, 1)],
    }


def _letters():
    """A tokenizer of letters; the real one's words are no part of the test."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
