"""Files of weights, mapped into memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from genhoi.extras import needed_for

__all__ = ["load_weights"]

_PICKLES = (".pth", ".pt", ".bin", ".ckpt")


def load_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Read weights, mapped into memory: nothing is loaded before it is used.

    Args:
        paths: of .safetensors files, .pth, .pt, .bin or .ckpt files of tensors, the index of a
            sharded checkpoint (*.index.json), or a folder with one of these. Several: their union.

    Raises:
        OSError: no such file. ValueError: another kind of file, or a name that comes twice.
    """
    weights: dict[str, Tensor] = {}
    for path in paths:
        for file in _files(path):
            for name, tensor in _load_file(file).items():
                if name in weights:
                    raise ValueError(f"weights: {name} comes twice, the second time in {file}")
                weights[name] = tensor
    return weights


def _files(path: Path) -> list[Path]:
    """List the files that hold the weights."""
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        if len(indices) == 1:
            return _files(indices[0])
        files = sorted(path.glob("*.safetensors")) or sorted(
            file for kind in _PICKLES for file in path.glob(f"*{kind}")
        )
        if not files:
            raise FileNotFoundError(f"weights: no .safetensors or .pth file in {path}")
        return files
    if path.name.endswith(".index.json"):
        index = json.loads(path.read_text(encoding="utf-8"))
        return [path.parent / name for name in sorted(set(index["weight_map"].values()))]
    return [path]


def _load_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    if path.suffix == ".safetensors":
        with needed_for("a .safetensors file"):
            from safetensors.torch import load_file

        return load_file(path)
    if path.suffix not in _PICKLES:
        raise ValueError(f"weights: got {path}, wanted .safetensors or {', '.join(_PICKLES)}")
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(x, Tensor) for x in loaded.values()):
        raise ValueError(f"weights: {path} holds something else than tensors by name")
    return loaded
