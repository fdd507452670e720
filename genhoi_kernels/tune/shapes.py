"""Sizes to measure at: named shapes, and the mask of a moving box."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention call.

    Args:
        name: as `--shapes` takes it.
        grid: (f, h, w) of the video tokens.
        ref_grid: (h_r, w_r) of the reference tokens; (0, 0) is no reference tokens.
        heads, head_dim: H and D.
        density: share of the video tokens that see the reference.
        sweep: what is varied, "" outside a sweep.
        reduced: what was made smaller than the name says, "" if nothing.
    """

    name: str
    grid: Grid
    ref_grid: tuple[int, int] = (16, 16)
    heads: int = 4
    head_dim: int = 128
    density: float = 0.1
    sweep: str = ""
    reduced: str = ""

    @property
    def n(self) -> int:
        """Count the video tokens, N."""
        return math.prod(self.grid)

    @property
    def m(self) -> int:
        """Count the reference tokens, M."""
        return math.prod(self.ref_grid)

    def mask(self) -> Tensor:
        """Mark the video tokens that see the reference, ``[1, N]`` bool: a box that moves.

        In every frame the box is contiguous in rows and columns, as a hand with an object is.
        """
        f, h, w = self.grid
        mask = torch.zeros(self.grid, dtype=torch.bool)
        if self.density > 0:
            rows = min(h, max(1, round(h * math.sqrt(self.density))))
            cols = min(w, max(1, round(self.density * h * w / rows)))
            for t in range(f):
                phase = 2 * math.pi * t / max(f, 2)
                top = round((h - rows) * (0.5 + 0.3 * math.sin(phase)))
                left = round((w - cols) * (0.5 - 0.4 * math.cos(phase)))
                mask[t, top : top + rows, left : left + cols] = True
        return mask.view(1, -1)

    def pairs(self) -> int:
        """Count a head's useful (query, key) pairs: the video's, and those the mask lets see."""
        return self.n * self.n + int(self.mask().sum()) * self.m

    def describe(self) -> str:
        """Give the sizes in one line."""
        reduced = f" ({self.reduced})" if self.reduced else ""
        return (
            f"{self.name}: N={self.n:,} ({'x'.join(map(str, self.grid))}) M={self.m:,} "
            f"H={self.heads} D={self.head_dim}, {100 * self.density:g} % see the reference{reduced}"
        )


HEADLINE = {
    "forward": Shape("headline-8192", (8, 32, 32)),
    "backward": Shape("headline-4096", (8, 16, 32)),
}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", (3, 8, 8), (4, 4), heads=2, head_dim=32),
        *HEADLINE.values(),
        Shape("headline-12-heads", (8, 16, 32), (32, 32), heads=12),
        Shape("headline-dim-64", (8, 32, 32), head_dim=64),
        Shape("wan1.3b-480p", (21, 30, 52), (32, 32), heads=12),
        Shape("wan1.3b-480p-dim-64", (21, 30, 52), (32, 32), heads=24, head_dim=64),
        Shape("wan14b-480p", (21, 30, 52), (32, 32), heads=40),
        Shape("wan14b-720p", (21, 80, 45), (80, 45), heads=40),
        Shape("wan14b-480p-401f", (101, 30, 52), (32, 32), heads=40),
    )
}


def find_shape(name: str) -> Shape:
    """Find a named shape, or make one of a grid of video tokens, "FxHxW".

    The latter has 12 heads of 128 values and a reference of 32 x 32 tokens.

    Raises:
        ValueError: no shape has this name.
    """
    if name in SHAPES:
        return SHAPES[name]
    grid = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", name)
    if grid is None:
        raise ValueError(
            f"--shapes: got {name!r}, wanted one of {', '.join(SHAPES)}, or video tokens as FxHxW, "
            f"such as 21x30x52"
        )
    f, h, w = map(int, grid.groups())
    return Shape(name, (f, h, w), (32, 32), heads=12)


def reduce_shape(shape: Shape, most: float, *, most_frames: float | None = None) -> Shape:
    """Reduce a shape to fewer heads, then fewer frames, until one forward pass fits.

    Heads are independent and frames only make the sequence longer, so both leave the kernel's
    inner loops what they are. The same limit gives the same shape on every machine.

    Args:
        shape: what is wanted.
        most: floating-point operations that a forward pass over all N + M keys may take; heads
            are left out until it does.
        most_frames: the same for leaving out frames, which changes more; default `most`.
    """

    def work(s: Shape) -> float:
        return 4.0 * s.n * (s.n + s.m) * s.heads * s.head_dim

    f, h, w = shape.grid
    smaller = shape
    while work(smaller) > most and smaller.heads > 1:
        smaller = replace(smaller, heads=smaller.heads - 1)
    while work(smaller) > (most_frames or most) and smaller.grid[0] > 1:
        smaller = replace(smaller, grid=(smaller.grid[0] - 1, h, w))
    reductions = []
    if smaller.heads < shape.heads:
        reductions.append(f"reduced to {smaller.heads} of {shape.heads} heads")
    if smaller.grid[0] < f:
        reductions.append(f"reduced to {smaller.grid[0]} of {f} latent frames")
    return replace(smaller, reduced=", ".join(reductions))
