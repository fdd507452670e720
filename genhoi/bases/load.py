"""A base by name: the tiny one, a folder of one like it, or a pipeline in diffusers' format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from genhoi.bases.base import Base, EditDefaults

__all__ = [
    "base_config",
    "base_defaults",
    "base_kind",
    "check_base",
    "load_base",
    "shipped_adapter",
]

# Module and class of each kind. The first that takes a name has it, and the last takes them all.
_KINDS = (
    ("genhoi.bases.tiny", "TinyBase"),
    ("genhoi.bases.wan", "WanBase"),
)


def base_kind(name: str | os.PathLike[str]) -> type[Base]:
    """Tell which kind of base a name means; nothing is loaded, and there may be no such base."""
    return next(kind for kind in _kinds() if kind.takes(name))


def base_config(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the transformer's configuration; its weights need not be there.

    Raises:
        FileNotFoundError, ValueError: no such base, or one of another kind.
    """
    return base_kind(name).read_config(name)


def check_base(name: str | os.PathLike[str], *, own_transformer: bool = True) -> None:
    """Check that everything is there that `load_base` reads; nothing is loaded.

    Args:
        name: as for `load_base`.
        own_transformer: whether its transformer's weights are wanted too.

    Raises:
        FileNotFoundError, ValueError: no such base, a part of one, or one of another kind.
    """
    base_kind(name).check_complete(name, own_transformer=own_transformer)


def base_defaults(name: str | os.PathLike[str]) -> EditDefaults:
    """Say how a base is best used, without loading it."""
    return base_kind(name).defaults


def load_base(
    name: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    transformer: Any = None,
) -> Base:
    """Load a base; its encoders stay where they are until they are placed.

    Args:
        name: "tiny", trained and shipped with the package; "tiny-untrained", random weights; the
            folder of a tiny base; the folder of a diffusers Wan2.1 image-to-video pipeline, or the
            name of one on the Hugging Face Hub that has been downloaded before.
        device: where to compute.
        dtype: of the transformer, and of a text encoder.
        seed: of random weights.
        transformer: a loaded one of the base's sizes, in its own's place.

    Raises:
        FileNotFoundError: no such base; the message says what to fetch.
        ValueError: one of another kind.
    """
    return base_kind(name).load(
        name, device=device, dtype=dtype, seed=seed, transformer=transformer
    )


def shipped_adapter(name: str | os.PathLike[str]) -> Path | None:
    """Return the folder of the adapter that comes with a base; None where none does."""
    return base_kind(name).shipped_adapter(name)


def _kinds() -> Iterator[type[Base]]:
    for module, name in _KINDS:
        yield getattr(import_module(module), name)
