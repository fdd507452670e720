"""A base by name: the tiny one, a folder of one like it, or a pipeline in diffusers' format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from genhoi.bases.base import Base, EditDefaults

__all__ = [
    "SHIPPED",
    "UNTRAINED",
    "base_config",
    "base_defaults",
    "is_tiny",
    "load_base",
    "shipped_adapter",
]

SHIPPED = "tiny"
UNTRAINED = "tiny-untrained"


def is_tiny(name: str | os.PathLike[str]) -> bool:
    """Whether it is a tiny base, which lives on pixels, trained or not."""
    from genhoi.bases.tiny import is_tiny_base

    return str(name) in (SHIPPED, UNTRAINED) or is_tiny_base(Path(name))


def base_config(name: str | os.PathLike[str]) -> dict[str, Any]:
    """The transformer's configuration, without loading it.

    Raises:
        FileNotFoundError, ValueError: no such base, or one of another kind.
    """
    if is_tiny(name):
        from genhoi.bases.tiny import TINY_CONFIG

        return dict(TINY_CONFIG)
    from genhoi.bases.wan import locate_base, read_config

    return read_config(locate_base(name))


def base_defaults(name: str | os.PathLike[str]) -> EditDefaults:
    """How a base is best used, without loading it."""
    if is_tiny(name):
        from genhoi.bases.tiny import TinyBase

        return TinyBase.defaults
    return Base.defaults


def load_base(
    name: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Base:
    """Load a base; its encoders stay where they are until they are placed.

    Args:
        name: "tiny", trained and shipped with the package; "tiny-untrained", random weights; the
            folder of a tiny base; the folder of a diffusers Wan2.1 image-to-video pipeline, or the
            name of one on the Hugging Face Hub that has been downloaded before.
        device: where to compute.
        dtype: of the transformer, and of a text encoder.
        seed: of random weights.

    Raises:
        FileNotFoundError: no such base; the message says what to fetch.
        ValueError: one of another kind.
    """
    if is_tiny(name):
        from genhoi.bases.tiny import SHIPPED_BASE, TinyBase

        folder = {SHIPPED: SHIPPED_BASE, UNTRAINED: None}.get(str(name), Path(name))
        return TinyBase(folder, seed=seed, device=device, dtype=dtype)
    from genhoi.bases.wan import WanBase, locate_base

    return WanBase(locate_base(name), device=device, dtype=dtype)


def shipped_adapter(name: str | os.PathLike[str]) -> Path | None:
    """The folder of the adapter that comes with a base; None where none does."""
    from genhoi.bases.tiny import SHIPPED_ADAPTER

    return SHIPPED_ADAPTER if str(name) == SHIPPED else None
