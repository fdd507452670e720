"""A transformer from a folder of its own, or a GGUF file, in the place of a base's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from genhoi.bases.wan_files import has_weights, variant_of
from genhoi.extras import is_installed
from genhoi.models.registry import empty_model

__all__ = ["check_same_sizes", "check_transformer", "load_transformer"]

_WANTED = "wanted the folder transformer/ that genhoi convert or diffusers writes"


def check_transformer(
    folder: str | os.PathLike[str], config: Mapping[str, Any], *, weights: bool
) -> None:
    """Check that a folder holds a transformer that fits a base; nothing is loaded.

    A GGUF file says nothing of its sizes that could be compared; it is judged when it is loaded.

    Args:
        folder: of a transformer as diffusers saves it, or a file in GGUF.
        config: of the base's own.
        weights: whether its weights have to be there.

    Raises:
        FileNotFoundError: there is none, or no weights.
        TypeError, ValueError: it is another model, or does not fit.
    """
    if is_gguf(folder):
        if not is_installed("gguf"):
            raise ImportError("transformer: a GGUF file needs the package gguf (pip install gguf)")
        if not Path(folder).is_file():
            raise FileNotFoundError(f"transformer: there is no file {folder}")
        return
    if weights and not has_weights(Path(folder)):
        raise FileNotFoundError(f"transformer: there are no weights in {folder}; {_WANTED}")
    own = _read_config(folder)
    try:
        check_same_sizes(own, config, what=f"the one in {folder}")
    except TypeError as error:
        raise TypeError(
            f"transformer: {folder} holds a {own.get('_class_name')}; {_WANTED}"
        ) from error


def check_same_sizes(config: Mapping[str, Any], wanted: Mapping[str, Any], *, what: str) -> None:
    """Compare configurations of transformers; what one leaves out has diffusers' default.

    Args:
        config: of the transformer that came.
        wanted: of the base's own.
        what: came, in words.

    Raises:
        ValueError: they differ. TypeError: no family of models takes one of them.
    """
    came, own = _complete(config), _complete(wanted)
    if came["class"] != own["class"]:
        raise ValueError(
            f"transformer: got {what}, a {came['class']}, wanted a {own['class']} as the base's own"
        )
    names = [name for name in sorted({*came, *own}) if came.get(name) != own.get(name)]
    if names:
        differ = ", ".join(f"{name} {came.get(name)} instead of {own.get(name)}" for name in names)
        raise ValueError(f"transformer: got {what}, wanted the base's sizes: it has {differ}")


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Tell a GGUF file by its name."""
    return Path(path).suffix == ".gguf"


def load_transformer(
    folder: str | os.PathLike[str], config: Mapping[str, Any], *, dtype: torch.dtype
) -> Any:
    """Load a transformer as diffusers saves it, in this dtype, or from GGUF, on the CPU.

    Args:
        folder: of the transformer, or a file in GGUF, whose weights stay in few bits.
        config: of the base's own.
        dtype: of the weights, or computed in.

    Raises:
        ValueError: a GGUF file of another model.
    """
    if is_gguf(folder):
        return _load_gguf(Path(folder), config, dtype)
    with torch.device("meta"):
        kind = type(empty_model(_read_config(folder)).transformer)
    return kind.from_pretrained(
        os.fspath(folder),
        local_files_only=True,
        dtype=dtype,
        variant=variant_of(Path(folder), [""]),
    )


def _load_gguf(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    from diffusers import GGUFQuantizationConfig

    with torch.device("meta"):
        kind = type(empty_model(config).transformer)
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            return kind.from_single_file(
                str(path),
                config=folder,
                quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
                dtype=dtype,
                local_files_only=True,
            )
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise ValueError(f"transformer: {path} does not fit the base: {error}") from error


def _read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"transformer: there is no {path}; {_WANTED}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return dict(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"transformer: {path} holds no settings: {error}") from error


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add defaults; leave out what has no say in the weights."""
    with torch.device("meta"):
        transformer = empty_model(config).transformer
    values = {n: x for n, x in dict(transformer.config).items() if not n.startswith("_")}
    values.pop("rope_max_seq_len", None)  # the length of a table of angles, not of weights
    values = {n: list(x) if isinstance(x, tuple) else x for n, x in values.items()}
    return values | {"class": type(transformer).__name__}
