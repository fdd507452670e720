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
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["copy_into", "latest_checkpoint", "load_checkpoint", "save_checkpoint", "whole"]

_PREFIX = "step-"
_TENSORS, _STATE = "state.safetensors", "state.json"


def whole(x: Tensor) -> Tensor:
    """A tensor of all processes' shards, on the CPU; every process has to call this."""
    x = x.detach()
    return (x.full_tensor() if isinstance(x, DTensor) else x).cpu()


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
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.unfinished"):
        shutil.rmtree(left)  # of a program that was killed
    target = folder / f"{_PREFIX}{step:06}"
    unfinished = folder / f".{target.name}.unfinished"
    unfinished.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, unfinished / _TENSORS)
    (unfinished / _STATE).write_text(json.dumps(state | {"step": step}) + "\n", encoding="utf-8")
    for path in (unfinished / _TENSORS, unfinished / _STATE, unfinished):
        _flush(path)
    if target.exists():  # the same step of a run that went on from before it
        shutil.rmtree(target)
    os.replace(unfinished, target)
    _flush(folder)
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The last whole one."""
    return next(iter(_all(folder)[::-1]), None)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state."""
    state: dict[str, Any] = json.loads((path / _STATE).read_text(encoding="utf-8"))
    return load_file(path / _TENSORS), state


def _all(folder: Path) -> list[Path]:
    found = folder.glob(f"{_PREFIX}*") if folder.is_dir() else ()
    whole_ones = (path for path in found if (path / _STATE).is_file())
    return sorted(whole_ones, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
