"""A base by name: one that comes with the package, or a folder; its kind is found out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from genhoi.bases.about import BaseSettings
from genhoi.bases.base import Base
from genhoi.bases.replaced import check_transformer, load_transformer
from genhoi.models.experts import Expert

__all__ = [
    "base_config",
    "base_kind",
    "base_settings",
    "check_base",
    "load_base",
    "shipped_adapters",
]

# Module and class of each kind. The first that takes a name has it, and the last takes them all.
_KINDS = (
    ("genhoi.bases.mosaic", "MosaicBase"),
    ("genhoi.bases.wan_experts", "WanVACEExpertsBase"),
    ("genhoi.bases.wan_experts", "WanExpertsBase"),
    ("genhoi.bases.wan_experts", "WanTextExpertsBase"),
    ("genhoi.bases.wan_tokens", "WanTokensBase"),
    ("genhoi.bases.wan_text", "WanTextBase"),
    ("genhoi.bases.wan_vace", "WanVACEBase"),
    ("genhoi.bases.wan", "WanBase"),
)


def base_kind(name: str | os.PathLike[str]) -> type[Base]:
    """Tell which kind of base a name means; nothing is loaded, and there may be no such base."""
    return next(kind for kind in _kinds() if kind.takes(name))


def base_config(
    name: str | os.PathLike[str], *, transformer: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Read the transformer's configuration; its weights need not be there.

    Args:
        name, transformer: as for `load_base`.

    Raises:
        FileNotFoundError, ValueError: no such base, or one of another kind; a transformer that
            does not fit it.
    """
    kind = base_kind(name)
    config = kind.read_config(name)
    if transformer is not None:
        _check_replaces_one(kind)
        check_transformer(transformer, config, weights=False)
    return config


def check_base(
    name: str | os.PathLike[str], *, transformer: str | os.PathLike[str] | None = None
) -> None:
    """Check that everything is there that `load_base` reads; nothing is loaded.

    Args:
        name, transformer: as for `load_base`.

    Raises:
        FileNotFoundError, ValueError: as `base_config`; or a part is missing.
    """
    kind = base_kind(name)
    if transformer is not None:
        _check_replaces_one(kind)
    kind.check_complete(name, own_transformer=transformer is None)
    if transformer is not None:
        check_transformer(transformer, kind.read_config(name), weights=True)


def base_settings(name: str | os.PathLike[str]) -> BaseSettings:
    """Say how a base is used: as its kind, but for what its folder's genhoi.json says.

    Of a base that is not there it is what its kind says.

    Raises:
        ValueError: the folder's genhoi.json is none.
    """
    return base_kind(name).read_settings(name)


def load_base(
    name: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    transformer: str | os.PathLike[str] | None = None,
    expert: Expert | None = None,
) -> Base:
    """Load a base; its encoders stay where they are until they are placed.

    Args:
        name: "tiny", trained and shipped with the package; "mosaic-untrained", random weights; the
            folder of a mosaic base; the folder of a diffusers Wan pipeline (image-to-video, VACE or
            text-to-video, of Wan 2.1 or 2.2), or the name of one on the Hugging Face Hub that has
            been downloaded before.
        device: where to compute.
        dtype: of the transformer, and of a text encoder.
        seed: of random weights.
        transformer: folder of one to take instead of the base's own, which is not loaded: of the
            same sizes, as `genhoi convert` or diffusers writes it; or a GGUF file of one.
        expert: of a base with two transformers, the one to load alone; None: both.

    Raises:
        FileNotFoundError: no such base; the message says what to fetch.
        ValueError: one of another kind; a transformer that does not fit; an expert of a base that
            has none.
    """
    if expert is not None:
        return base_kind(name).load_expert(name, expert, device=device, dtype=dtype)
    check_base(name, transformer=transformer)
    kind, given = base_kind(name), None
    if transformer is not None:
        given = load_transformer(transformer, kind.read_config(name), dtype=dtype)
    base = kind.load(name, device=device, dtype=dtype, seed=seed, transformer=given)
    if transformer is not None:
        base.about += f", with the transformer of {os.fspath(transformer)}"
    return base


def shipped_adapters(name: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the folder of the adapter that comes with a base, or two, one a transformer."""
    return base_kind(name).shipped_adapters(name)


def _check_replaces_one(kind: type[Base]) -> None:
    """Raise ValueError for a transformer in the place of two."""
    if kind.two_experts:
        raise ValueError(
            "transformer: got one for a base of two transformers, wanted none: put yours into the "
            "base's folders transformer/ and transformer_2/"
        )


def _kinds() -> Iterator[type[Base]]:
    for module, name in _KINDS:
        yield getattr(import_module(module), name)
