"""Which weights a run trains: an adapter's, and perhaps low-rank ones of the video's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from genhoi.bases.base import Base
from genhoi.extras import needed_for
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_layers import FramesLayer, StreamLayer
from genhoi.models.experts import Expert

__all__ = ["add_low_rank", "check_expert", "freeze_unused", "load_adapter"]


def check_expert(expert: Expert | None, kind: type[Base]) -> None:
    """Check that one of two transformers is named, and none of a base that has one.

    Raises:
        ValueError: otherwise.
    """
    if kind.two_experts and expert is None:
        raise ValueError(
            "expert: got none, wanted high or low: the base has two transformers, and a run trains "
            "on one, at its noise levels"
        )
    if expert is not None and not kind.two_experts:
        raise ValueError(f"expert: got {expert!r}, wanted none: the base has one transformer")


def add_low_rank(transformer: Any, projections: str, rank: int) -> None:
    """Put low-rank weights, float32, on some projections, through peft.

    Args:
        transformer: a diffusers model.
        projections: regular expression over the names of its modules.
        rank: of the weights.

    Raises:
        ImportError: peft is not installed.
    """
    with needed_for("video_rank"):
        from peft import LoraConfig
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=projections))
    for weight in transformer.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()


def load_adapter(name: str) -> GenHOIAdapter:
    """Load an adapter to go on from, in float32 as trained weights have to be.

    Args:
        name: of a folder, or on the Hugging Face Hub.

    Raises:
        FileNotFoundError: no such folder.
        OSError, ValueError: see `GenHOIAdapter.from_pretrained`.
    """
    if not Path(name).is_dir() and (name.count("/") != 1 or name[0] in "./~"):
        raise FileNotFoundError(f"adapter: there is no folder {name}")
    return GenHOIAdapter.from_pretrained(name).float()


def freeze_unused(adapter: GenHOIAdapter, *, queries_keys: bool) -> None:
    """Leave without gradients what the loss does not reach, which DistributedDataParallel refuses,
    and what is not to be trained.

    Args:
        adapter: without flow gates in its settings, its gates are not used.
        queries_keys: whether the low-rank weights of q and k are trained.
    """
    for module in adapter.layers:
        layer = cast(StreamLayer | FramesLayer, module)
        frozen = () if queries_keys else layer.of_queries_keys
        if adapter.config.flow_gate is None:
            frozen += layer.gates
        for name, part in layer.named_modules():
            if name in frozen:
                part.requires_grad_(False)
