"""Files of weights, mapped into memory."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genhoi.extras import needed_for
from genhoi.models.weight_kinds import Kind, describe, kind_of

__all__ = ["load_weights"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
# What trainers and compilers put before every name.
_PREFIXES = (
    "module.",
    "model.diffusion_model.",
    "diffusion_model.",
    "model.",
    "_orig_mod.",
    "pipe.dit.",
)
_LISTED = 8


def load_weights(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Tensor]:
    """Read weights, mapped into memory: nothing is loaded before it is used.

    A file is recognised by what it holds; its name may be any. A prefix that all names have, such
    as "module." or "model.diffusion_model.", is left out.

    Args:
        paths: of files that safetensors or torch.save wrote, of the index of a sharded checkpoint
            (*.index.json), or of folders. Of a folder the index decides; without one, all files
            of weights in it are taken, and other files are passed over. Several: their union.

    Returns:
        Tensors by name. Those of a file that torch before 1.6 wrote cannot be mapped: they are
        loaded.

    Raises:
        OSError: no such file.
        TypeError: one path instead of several.
        ValueError: another kind of file; other content than tensors by name; a name that comes
            twice.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"weights: got {os.fspath(paths)!r}, wanted a list of paths")
    weights: dict[str, Tensor] = {}
    came: dict[str, Path] = {}
    for path in paths:
        for file in _files(Path(path)):
            for name, tensor in _load_file(file).items():
                if name in weights:
                    raise ValueError(
                        f"weights: {name} comes twice, in {came[name]} and in {file}; name one of "
                        f"them"
                    )
                weights[name], came[name] = tensor, file
    return _without_prefix(weights)


# ------------------------------------------------------------------------------ which files


def _files(path: Path) -> list[Path]:
    """List the files that hold the weights."""
    if path.is_dir():
        return _files_of_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    return _files_of_index(path) if path.name.endswith(".index.json") else [path]


def _files_of_folder(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.index.json"))
    if len(indices) > 1:
        raise ValueError(f"weights: {folder} has {_listed(indices)}; name one of them")
    if indices:
        return _files_of_index(indices[0])
    kinds = {x: kind_of(x) for x in sorted(folder.iterdir()) if x.is_file() and x.name[0] != "."}
    files = [x for x, kind in kinds.items() if kind not in (Kind.POINTER, Kind.OTHER)]
    if not files:
        others = [f"{x.name} is {describe(x)}" for x in kinds]
        raise FileNotFoundError(
            f"weights: no file in {folder} holds weights: {_shortened(others) or 'it is empty'}"
        )
    suffixes = {x.suffix for x in files}
    unfetched = [x for x, k in kinds.items() if k is Kind.POINTER and x.suffix in suffixes]
    if unfetched:
        raise ValueError(f"weights: {unfetched[0]} is {describe(unfetched[0])}")
    if len({kinds[x] is Kind.SAFETENSORS for x in files}) > 1:
        raise ValueError(
            f"weights: {folder} has weights of safetensors and of torch.save: {_listed(files)}; "
            f"name those that are wanted"
        )
    return files


def _files_of_index(path: Path) -> list[Path]:
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        return [path.parent / name for name in sorted(names)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"weights: {path} is no index of a sharded checkpoint: wanted its weight_map"
        ) from error


def _listed(files: Sequence[Path]) -> str:
    return _shortened([file.name for file in files])


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------- what they hold


def _load_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights: no such file: {path}")
    kind = kind_of(path)
    if kind is Kind.SAFETENSORS:
        with needed_for("a .safetensors file"):
            from safetensors.torch import load_file

        return load_file(path)
    if kind in (Kind.TORCH, Kind.LEGACY):
        return _unwrapped(_load_pickle(path, mapped=kind is Kind.TORCH), path)
    raise ValueError(
        f"weights: {path} is {describe(path)}; wanted weights that safetensors or torch.save wrote"
    )


def _load_pickle(path: Path, *, mapped: bool) -> Any:
    if path.suffix == ".safetensors":
        # torch.load goes by this name.
        raise ValueError(f"weights: {path} was written by torch.save; give it another suffix")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a {found[1]}" if found else "something else than tensors"
        raise ValueError(
            f"weights: {path} holds {what}, wanted tensors alone: anything else in a pickle may "
            f"run a program"
        ) from error
    except (RuntimeError, EOFError, MemoryError) as error:
        if mapped:
            raise ValueError(f"weights: {path} cannot be read: {_first_line(error)}") from error
        raise ValueError(
            f"weights: {path} is {Kind.LEGACY.value}, which cannot be mapped and has to fit into "
            f"memory, {path.stat().st_size / 1e9:.1f} GB; reading it failed: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Take the tensors by name out of what trainers wrap them in."""
    if isinstance(loaded, Mapping):
        wrapped = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if len(wrapped) > 1:
            raise ValueError(f"weights: {path} holds {' and '.join(wrapped)}, wanted one of them")
        inner = loaded[wrapped[0]] if wrapped else loaded
        odd = [n for n, x in inner.items() if not (isinstance(n, str) and isinstance(x, Tensor))]
        if inner and not odd:
            return dict(inner)
        what = "nothing"
        if odd:
            what = f"{odd[0]!r}, a {type(inner[odd[0]]).__name__}"
    else:
        what = f"a {type(loaded).__name__}"
    raise ValueError(f"weights: {path} holds {what}, wanted tensors by name")


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while weights:
        prefix = next((x for x in _PREFIXES if all(name.startswith(x) for name in weights)), None)
        if prefix is None:
            break
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights
