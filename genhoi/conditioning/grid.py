"""How pixels become latents, and latents the tokens of a model: the one place for these numbers.

A clip has 1 + 4 n frames: latent frame 0 is pixel frame 0, each later one is 4 pixel frames. A
latent pixel is 8 x 8 pixels, and a token is 2 x 2 latent pixels of one latent frame.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STRIDES", "Grid", "Strides"]

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Strides:
    """Steps from pixels to latents to tokens; the defaults are those of Wan 2.1.

    Args:
        time: pixel frames of every latent frame but the first.
        space: pixels that a latent pixel is wide and high.
        patch: latent pixels that a token is wide and high.
    """

    time: int = 4
    space: int = 8
    patch: int = 2

    @property
    def token(self) -> int:
        """Return the pixels that a token is wide and high; frames are multiples of it."""
        return self.space * self.patch

    def latent_frames(self, frames: int) -> int:
        """Count the latent frames of a clip."""
        return 1 + (frames - 1) // self.time

    def pixel_frames(self, latent_frames: int) -> int:
        """Count the frames of a clip that has so many latent frames."""
        return 1 + self.time * (latent_frames - 1)

    def longest(self, frames: int) -> int:
        """Count the frames of the longest clip within so many frames."""
        return self.pixel_frames(self.latent_frames(frames))

    def is_whole(self, frames: int) -> bool:
        """Tell whether the frames fill latent frames: 1, 5, 9, ..."""
        return frames >= 1 and (frames - 1) % self.time == 0

    def is_clip(self, frames: int) -> bool:
        """Tell whether it is the length of a clip: whole, and more than a still picture."""
        return frames > 1 and self.is_whole(frames)

    def fits(self, height: int, width: int) -> bool:
        """Tell whether a frame of this size is cut into whole tokens."""
        return height % self.token == 0 and width % self.token == 0

    def side(self, pixels: float) -> int:
        """Round a side down to whole tokens, but to one token at least."""
        return max(self.token, int(pixels) // self.token * self.token)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Count the tokens (f, h, w) of a clip."""
        return self.latent_frames(frames), height // self.token, width // self.token

    def latent_grid(self, latent_frames: int, height: int, width: int) -> Grid:
        """Count the tokens (f, h, w) of latents, height and width in latent pixels."""
        return latent_frames, height // self.patch, width // self.patch


STRIDES = Strides()
