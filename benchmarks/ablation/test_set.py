"""The held-out clips, with the regions in which results are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.ablation.flat import FlatHOI
from benchmarks.ablation.plan import SIDE
from benchmarks.ablation.posed import PosedClips
from genhoi.bases.base import Base
from genhoi.conditioning.grid import STRIDES
from genhoi.conditioning.masks import token_mask
from genhoi.data.encoded import EncodedClips, encode_dataset
from genhoi.evaluation.metrics import region_psnr, squared_error

__all__ = ["TestClip", "TestSet"]


@dataclass(frozen=True)
class TestClip:
    """A held-out clip.

    Args:
        truth: uint8 [F, H, W, 3], as the codec gives it back: what a perfect model would paint.
        object, hand, background, far: bool [F, H, W], visible pixels of each. Background is all
            that is not to be generated; far is what lies in tokens that no mask touches: behind a
            mask gate these can know of a reference from other tokens only.
        picture: uint8 [h, w, 3], the object.
    """

    __test__ = False  # for pytest: not a test

    truth: Tensor
    object: Tensor
    hand: Tensor
    background: Tensor
    far: Tensor
    picture: Tensor


class TestSet:
    """Held-out clips of one length.

    Args:
        base: its codec is used.
        folder: where the encoded clips are kept.
        clips, frames: how many, how long.
        pose: whether the model is told the object's pose.
        side: height and width, in pixels.
        progress: called with (done, of how many).
    """

    __test__ = False

    def __init__(
        self,
        base: Base,
        folder: Path,
        *,
        clips: int,
        frames: int,
        pose: bool,
        side: int = SIDE,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self.dataset = FlatHOI("test", clips=clips, frames=frames, size=(side, side))
        self.encoded: EncodedClips = encode_dataset(
            base, self.dataset, folder, given=("none",), workers=2, progress=progress
        )
        if pose:
            self.encoded = PosedClips(folder, self.dataset)
        self.frames = frames
        self._base = base
        self._clips: dict[int, TestClip] = {}

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> TestClip:
        if index not in self._clips:
            sample = self.dataset[index]
            assert sample.object_mask is not None and sample.hand_mask is not None
            self._clips[index] = TestClip(
                truth=self._base.decode(self.encoded.take("clean", [index])),
                object=sample.object_mask,
                hand=sample.hand_mask,
                background=~sample.mask,
                far=_untouched(sample.mask),
                picture=sample.object,
            )
        return self._clips[index]

    def codec_psnr(self, index: int) -> Tensor:
        """Return the codec's own PSNR [F] in the object's region, against the clip itself."""
        clip = self[index]
        error = squared_error(clip.truth, self.dataset[index].clip.frames)
        return region_psnr(error, clip.object)


def _untouched(mask: Tensor) -> Tensor:
    """Mark the pixels, bool [F, H, W], of tokens in which no pixel is masked."""
    frames, height, width = mask.shape
    grid = STRIDES.grid(frames, height, width)
    touched = token_mask(mask, grid, rule="any", kind="pixel").view(grid)
    by_frame = torch.cat([touched[:1], touched[1:].repeat_interleave(STRIDES.time, 0)])
    return ~by_frame.repeat_interleave(STRIDES.token, 1).repeat_interleave(STRIDES.token, 2)
