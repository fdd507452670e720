"""What the codec learns from: crops of synthetic clips and of photographs.

Clips are drawn once, by all cores, into a file that is mapped into memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from genhoi.data.sample import HOIDataset

__all__ = ["Crops", "draw_clips"]

_PHOTOGRAPHS = 0.15  # share of the samples that are photographs, sharp, panned over
_SPEED = 1.5  # pixels a frame, of the pan

_dataset: HOIDataset


def draw_clips(dataset: HOIDataset, path: Path, *, processes: int) -> np.ndarray:
    """Draw a dataset's clips into a file, or map the file where it holds them already.

    Args:
        dataset: of clips of one size and length.
        path: of the .npy file; its settings are written beside it.
        processes: that draw.

    Returns:
        uint8 [clips, F, H, W, 3].
    """
    mark = path.with_suffix(".txt")
    if mark.is_file() and mark.read_text(encoding="utf-8") == dataset.fingerprint():
        return np.load(path, mmap_mode="r")
    path.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    shape = (len(dataset), *dataset[0].clip.frames.shape)
    clips = open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    context = get_context("spawn")
    with context.Pool(processes, partial(_start, dataset)) as pool:
        drawn = pool.imap(_draw, range(len(dataset)))
        for i, frames in enumerate(track(drawn, "Drawing clips", len(dataset))):
            clips[i] = frames
    clips.flush()
    mark.write_text(dataset.fingerprint(), encoding="utf-8")
    return clips


def _start(dataset: HOIDataset) -> None:
    global _dataset
    _dataset = dataset
    torch.set_num_threads(1)


def _draw(index: int) -> np.ndarray:
    return _dataset[index].clip.frames.numpy()


class Crops:
    """Draws batches.

    Args:
        clips: uint8 [clips, F, H, W, 3].
        photograph: chooses one, float32 [3, h, w], 0 to 1; None: clips alone.
    """

    def __init__(
        self, clips: np.ndarray, photograph: Callable[[np.random.Generator], Tensor] | None
    ) -> None:
        self.clips, self.photograph = clips, photograph

    def batch(self, rng: np.random.Generator, *, count: int, frames: int, side: int) -> Tensor:
        """Cut a batch.

        Args:
            rng: says which.
            count, frames, side: its shape.

        Returns:
            float32 [count, 3, frames, side, side], -1 to 1.
        """
        return torch.stack([self._crop(rng, frames, side) for _ in range(count)])

    def _crop(self, rng: np.random.Generator, frames: int, side: int) -> Tensor:
        if self.photograph is not None and rng.random() < _PHOTOGRAPHS:
            crop = _pan(self.photograph(rng), rng, frames, side)
        else:
            crop = self._cut(rng, frames, side)
        return crop.flip(-1) if rng.random() < 0.5 else crop

    def _cut(self, rng: np.random.Generator, frames: int, side: int) -> Tensor:
        count, length, height, width, _ = self.clips.shape
        clip = self.clips[rng.integers(count)]
        start = rng.integers(length - frames + 1)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        part = clip[start : start + frames, top : top + side, left : left + side]
        return torch.from_numpy(part.copy()).permute(3, 0, 1, 2).float() / 127.5 - 1


def _pan(photo: Tensor, rng: np.random.Generator, frames: int, side: int) -> Tensor:
    """Move a window over a photograph, which is up to 2.5 times as wide as the window."""
    part = 1 / rng.uniform(1.0, 2.5)
    speed = torch.from_numpy(rng.uniform(-_SPEED, _SPEED, 2) * 2 / side * part).float()
    centre = torch.from_numpy(rng.uniform(-0.4, 0.4, 2)).float()
    theta = torch.zeros(frames, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = part
    theta[:, :, 2] = centre + torch.arange(frames)[:, None] * speed
    grid = F.affine_grid(theta, [frames, 3, side, side], align_corners=False)
    photos = photo.expand(frames, -1, -1, -1)
    window = F.grid_sample(photos, grid, padding_mode="reflection", align_corners=False)
    return _colours(rng)(window).transpose(0, 1) * 2 - 1


def _colours(rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
    """Choose another order of the channels, and a contrast."""
    order, contrast = rng.permutation(3).tolist(), rng.uniform(0.5, 1.0)
    return lambda x: ((x[:, order] - 0.5) * contrast + 0.5).clamp(0, 1)
