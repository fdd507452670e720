"""Clips of a hand that holds an object, made from a seed, with exact masks and no download.

A photograph drifts and its light changes; before it an articulated hand moves an object with a
texture of its own, whose picture is known. Training and test have no photograph, letter or object
in common. scikit-image carries the photographs. `genhoi.data.synthetic` draws newer ones, in three
dimensions; these know where on the object every pixel lies (`coordinates`), and never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from benchmarks.ablation.flat.scene import Scene
from genhoi.data.photographs import Split
from genhoi.data.sample import HOISample
from genhoi.media import Clip

__all__ = ["FlatHOI", "MaskKind"]

MaskKind = Literal["tight", "box", "mixed"]

_VERSION = 1  # of what is drawn
_MASK_GROWTH = 2  # pixels that a tight mask is wider than hand and object
_BOX_MARGIN = 4


class FlatHOI:
    """Holds a set of such clips; see `HOIDataset`.

    Sample i is a function of (split, seed, i) and the settings alone: the same on every machine up
    to the last bit of a float, and independent of which samples were made before.

    Args:
        split: "train" or "test".
        clips: how many.
        frames: of each clip; the model wants 1 + 4 n.
        size: (height, width) in pixels, at least 32.
        mask: "tight" follows hand and object, "box" is a rectangle around both, "mixed" one of both
            for each clip. The arm is never masked.
        seed: another one gives other clips.
        fps: frames a second.

    Raises:
        ImportError: scikit-image is not installed (from `__getitem__`).
        ValueError: a size, length or option is out of range.
    """

    def __init__(
        self,
        split: Split,
        *,
        clips: int,
        frames: int = 49,
        size: tuple[int, int] = (96, 96),
        mask: MaskKind = "tight",
        seed: int = 0,
        fps: float = 24,
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split: got {split!r}, wanted 'train' or 'test'")
        if mask not in get_args(MaskKind):
            raise ValueError(f"mask: got {mask!r}, wanted one of {get_args(MaskKind)}")
        if clips < 0 or frames < 1:
            raise ValueError(f"clips, frames: got {clips} and {frames}, wanted at least 0 and 1")
        if min(size) < 32:
            raise ValueError(f"size: got {size}, wanted at least (32, 32)")
        self.split, self.clips, self.frames, self.size = split, clips, frames, size
        self.mask, self.seed, self.fps = mask, seed, fps

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> HOISample:
        scene, rng = self._scene(index)
        frames, object_, hand = scene.draw()
        mask = _dilate(object_ | hand, _MASK_GROWTH)
        if self.mask == "box" or (self.mask == "mixed" and rng.random() < 0.5):
            mask = _boxed(mask, _BOX_MARGIN)
        return HOISample(
            name=f"{self.split}-{self.seed}-{index:05}",
            clip=Clip(frames, self.fps),
            mask=mask,
            object=scene.picture(),
            object_mask=object_,
            hand_mask=hand,
            object_boxes=scene.boxes(),
        )

    def __iter__(self) -> Iterator[HOISample]:
        return (self[i] for i in range(len(self)))

    def coordinates(self, index: int, *, cell: int = 8) -> Tensor:
        """Tell where on the object each part of the frame lies: its pose, exactly.

        Args:
            index: of the sample.
            cell: pixels between the points that are asked.

        Returns:
            float32 [F, H / cell, W / cell, 2]: (u, v) at the cells' centres, -1 to 1 over the
            object's picture, beyond outside it.
        """
        scene = self._scene(index)[0]
        height, width = self.size
        x = (torch.arange(width // cell) + 0.5) * cell
        y = (torch.arange(height // cell)[:, None] + 0.5) * cell
        return scene.pose.to_object(x, y, scene.aspect)

    def aspect(self, index: int) -> float:
        """Tell the object's height over its width."""
        return self._scene(index)[0].aspect

    def _scene(self, index: int) -> tuple[Scene, Generator]:
        """Make the scene; its generator serves what else is drawn."""
        if not 0 <= index < self.clips:
            raise IndexError(f"index: got {index}, wanted 0 to {self.clips - 1}")
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), index])
        return Scene(rng, self.split, self.frames, self.size), rng

    def fingerprint(self) -> str:
        """Say all that the samples depend on."""
        return (
            f"flat {_VERSION}: {self.split}, {self.clips} clips of {self.frames} frames of "
            f"{self.size}, {self.mask} masks, seed {self.seed}"
        )


def _dilate(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0


def _boxed(mask: Tensor, margin: int) -> Tensor:
    """Draw the rectangle around each frame's mask, with a margin."""
    rows, columns = (_dilate(mask.any(i)[:, None], margin)[:, 0] for i in (2, 1))

    def filled(line: Tensor) -> Tensor:
        return line.cumsum(1).bool() & line.flip(1).cumsum(1).bool().flip(1)

    return filled(rows)[:, :, None] & filled(columns)[:, None]
