"""Finished windows of a long edit, kept on disk until the whole clip is done.

A folder holds job.json, which says what is being made, and one file of frames for every finished
window, without loss. Each file appears whole or not at all, so a killed program leaves windows that
are either finished or absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genhoi.media import atomic_path
from genhoi_kernels.files import remove_unfinished

__all__ = ["Parts", "fingerprint"]

_JOB = "job.json"
_VALUES_A_WEIGHT = 64


class Parts:
    """Keeps an edit's finished windows in a folder.

    Args:
        folder: made if it isn't there.
        job: a fingerprint of everything that determines the result.
        discard: throw away what another job left there, instead of refusing.

    Raises:
        FileExistsError: the folder holds another job's windows and `discard` is False, or something
            that is none of ours.
    """

    def __init__(self, folder: str | os.PathLike[str], job: str, *, discard: bool = False) -> None:
        self.folder = Path(folder)
        known = self.folder / _JOB
        if self.folder.exists() and not known.is_file() and any(self._visible()):
            raise FileExistsError(f"parts: {self.folder} is not a folder of unfinished windows")
        if known.is_file() and json.loads(known.read_text())["job"] != job:
            if not discard:
                raise FileExistsError(
                    f"parts: {self.folder} holds windows of an unfinished edit with other inputs "
                    f"or settings; repeat that one to finish it, or discard it (--force)"
                )
            self.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(self.folder)
        if not known.is_file():
            with atomic_path(known) as temporary:
                temporary.write_text(json.dumps({"job": job}) + "\n")

    def _visible(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name[0] != "."]

    def load(self, window: int) -> Tensor | None:
        """Read a finished window's frames, uint8 [F, H, W, 3]; None of an unfinished one."""
        path = self._path(window)
        return torch.from_numpy(np.load(path)) if path.is_file() else None

    def save(self, window: int, frames: Tensor) -> None:
        """Keep a window's frames, uint8 [F, H, W, 3]."""
        with (
            atomic_path(self._path(window), overwrite=True) as temporary,
            temporary.open("wb") as file,
        ):
            np.save(file, frames.cpu().numpy())
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Remove the folder: the clip is done."""
        shutil.rmtree(self.folder)

    def _path(self, window: int) -> Path:
        return self.folder / f"window-{window:04}.npy"


def fingerprint(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor | None], models: Sequence[nn.Module]
) -> str:
    """Hash settings, every byte of some tensors, and a few values of every weight."""
    hashed = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, x in tensors.items():
        hashed.update(f"{name}: {None if x is None else tuple(x.shape)}".encode())
        if x is not None:
            hashed.update(x.contiguous().cpu().numpy().data)
    for name, weight in chain.from_iterable(model.named_parameters() for model in models):
        hashed.update(f"{name}: {tuple(weight.shape)} {weight.dtype}".encode())
        if not weight.is_meta:
            values = weight.detach().flatten()[:_VALUES_A_WEIGHT].double().cpu()
            hashed.update(values.numpy().tobytes())
    return hashed.hexdigest()
