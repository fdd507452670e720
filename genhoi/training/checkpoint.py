"""Checkpoints of a training run: whole or absent, and the same on one process or many.

A checkpoint is a folder step-000123 with state.safetensors (weights, their moving average, the
optimiser's moments) and state.json. It is written under another name and then renamed, so that a
program killed at any moment leaves whole checkpoints only. Sharded tensors are written whole, so a
run may go on with another number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = [
    "copy_into",
    "latest_checkpoint",
    "load_checkpoint",
    "read_state",
    "remove_old",
    "save_checkpoint",
    "whole",
]

_PREFIX, _UNFINISHED = "step-", ".unfinished"
_TENSORS, _STATE = "state.safetensors", "state.json"


def whole(x: Tensor) -> Tensor:
    """A copy of a tensor, of all processes' shards, on the CPU; every process has to call this."""
    x = x.detach()
    return x.full_tensor().cpu() if isinstance(x, DTensor) else x.to("cpu", copy=True)


def copy_into(target: Tensor, value: Tensor) -> None:
    """Write a whole tensor into one that may be sharded."""
    value = value.to(target.device, target.dtype)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements)
    with torch.no_grad():
        target.copy_(value)


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], *, keep: int
) -> Path:
    """Write a checkpoint; older ones beyond `keep` are removed after it is safe.

    Args:
        folder: of all checkpoints.
        step: its number.
        tensors: on the CPU, whole.
        state: plain JSON values.
        keep: how many there may be.

    Raises:
        OSError: it cannot be written, because the disk is full, say; earlier ones stay whole.
    """
    target = folder / f"{_PREFIX}{step:06}"
    if target in _all(folder):
        return target  # a run is the same every time, so this is it
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = _hidden(target)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a program that was killed
    try:
        unfinished.mkdir()
        _write_tensors(unfinished / _TENSORS, tensors)
        words = json.dumps(state | {"step": step}) + "\n"
        (unfinished / _STATE).write_text(words, encoding="utf-8")
        for path in (unfinished / _TENSORS, unfinished / _STATE, unfinished):
            _flush(path)
        if target.exists():
            shutil.rmtree(target)  # not whole, or it would have been found above
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _flush(folder)
    remove_old(folder, keep=keep)
    return target


def remove_old(folder: Path, *, keep: int) -> None:
    """Remove all checkpoints but the last ones, and what killed programs left unfinished."""
    for old in _all(folder)[:-keep]:
        # Out of sight first: half removed, it would look whole.
        os.replace(old, _hidden(old))
    for left in folder.glob(f".*{_UNFINISHED}"):
        shutil.rmtree(left)


def latest_checkpoint(folder: Path) -> Path | None:
    """The last whole one."""
    return next(iter(_all(folder)[::-1]), None)


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state alone."""
    state: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
    return state


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state.

    Raises:
        OSError: the file was damaged after it was written.
    """
    try:
        return load_file(path / _TENSORS), read_state(path)
    except SafetensorError as error:
        raise OSError(
            f"checkpoint: {path} is damaged ({error}); remove it to go on from the one before"
        ) from error


def _all(folder: Path) -> list[Path]:
    found = folder.glob(f"{_PREFIX}*") if folder.is_dir() else ()
    whole_ones = {
        int(path.name.removeprefix(_PREFIX)): path
        for path in found
        if path.name.removeprefix(_PREFIX).isdecimal() and (path / _STATE).is_file()
    }
    return [path for _, path in sorted(whole_ones.items())]


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}{_UNFINISHED}")


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        save_file({name: x.contiguous() for name, x in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(f"checkpoint: {path} cannot be written: {error}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
