"""A clip's frames at the size that the built-in engine works at, and masks between both sizes."""

from __future__ import annotations

import cv2
import numpy as np

from genhoi.media import Clip

__all__ = ["Pictures", "work_size"]

_LONG_SIDE = 384
_MOST_ENLARGED = 3  # times; small clips are followed at a larger size, outlines being finer there


def work_size(height: int, width: int) -> tuple[float, tuple[int, int]]:
    """Choose the scale to work at for pictures of a size, and (width, height) at it."""
    scale = min(_LONG_SIDE / max(height, width), float(_MOST_ENLARGED))
    return scale, (max(8, round(width * scale)), max(8, round(height * scale)))


class Pictures:
    """A clip's frames at the size that is worked at, made when they are asked for.

    Args:
        clip: whose frames they are.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self.scale, (self.width, self.height) = work_size(clip.height, clip.width)
        self._grey: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._clip.num_frames

    @property
    def scales(self) -> tuple[float, float]:
        """Return this size over the clip's, in width and height."""
        return self.width / self._clip.width, self.height / self._clip.height

    def grey(self, frame: int) -> np.ndarray:
        """Give a frame in grey, uint8 [H, W]."""
        if frame not in self._grey:
            self._grey[frame] = cv2.cvtColor(self.rgb(frame), cv2.COLOR_RGB2GRAY)
        return self._grey[frame]

    def rgb(self, frame: int) -> np.ndarray:
        """Give a frame in RGB, uint8 [H, W, 3]."""
        pixels = self._clip.frames[frame].cpu().numpy()
        kind = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(pixels, (self.width, self.height), interpolation=kind))

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Bring a mask of the clip's size, bool, to this one."""
        size = (self.width, self.height)
        return np.asarray(
            cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
        )

    def back(self, mask: np.ndarray) -> np.ndarray:
        """Bring a mask, uint8, to the clip's size, bool."""
        size = (self._clip.width, self._clip.height)
        if self.scale == 1:
            return mask > 0
        soft: np.ndarray = mask.astype(np.float32)
        if self.scale < 1:  # its steps would show as stairs
            soft = cv2.GaussianBlur(soft, (0, 0), 1.0)
        kind = cv2.INTER_CUBIC if self.scale < 1 else cv2.INTER_AREA
        return np.asarray(cv2.resize(soft, size, interpolation=kind) > 0.5)
