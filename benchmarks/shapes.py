"""Sizes to measure at: named shapes, sweeps around one of them, and the mask of a moving box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = [
    "HEADLINE",
    "SHAPES",
    "Shape",
    "find_shape",
    "merge_equal",
    "reduce_shape",
    "sweep_shapes",
]

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention call.

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
        """Video tokens, N."""
        return math.prod(self.grid)

    @property
    def m(self) -> int:
        """Reference tokens, M."""
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
        """Useful (query, key) pairs of one head: all video pairs, and those the mask lets see."""
        return self.n * self.n + int(self.mask().sum()) * self.m

    def describe(self) -> str:
        """Describe the sizes in one line."""
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
        Shape("wan14b-480p", (21, 30, 52), (32, 32), heads=40),
        Shape("wan14b-720p", (21, 80, 45), (80, 45), heads=40),
        Shape("wan14b-480p-401f", (101, 30, 52), (32, 32), heads=40),
    )
}


def find_shape(name: str) -> Shape:
    """Return a named shape.

    Raises:
        ValueError: no shape has this name.
    """
    if name not in SHAPES:
        raise ValueError(f"--shapes: got {name!r}, wanted one of {', '.join(SHAPES)}")
    return SHAPES[name]


def reduce_shape(shape: Shape, most: float, *, most_frames: float | None = None) -> Shape:
    """Reduce a shape's heads, then its frames, until one forward pass fits.

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
    found = shape
    while work(found) > most and found.heads > 1:
        found = replace(found, heads=found.heads - 1)
    while work(found) > (most_frames or most) and found.grid[0] > 1:
        found = replace(found, grid=(found.grid[0] - 1, h, w))
    words = []
    if found.heads < shape.heads:
        words.append(f"reduced to {found.heads} of {shape.heads} heads")
    if found.grid[0] < f:
        words.append(f"reduced to {found.grid[0]} of {f} latent frames")
    return replace(found, reduced=", ".join(words))


def merge_equal(shapes: Sequence[Shape]) -> list[Shape]:
    """Drop shapes that reduction made equal to another; that one says whom it stands for."""
    found: list[Shape] = []
    for shape in shapes:
        sizes = replace(shape, name="", reduced="")
        for i, other in enumerate(found):
            if replace(other, name="", reduced="") == sizes:
                note = f"stands for {shape.name} too ({shape.reduced or 'as it is'})"
                words = [other.reduced, note] if shape.name != other.name else [other.reduced]
                found[i] = replace(other, reduced=", ".join(filter(None, words)))
                break
        else:
            found.append(shape)
    return found


# ------------------------------------------------------------------------------------------- sweeps

_BASE = Shape("sweep", (8, 16, 16))
_LONG = 32768  # reference tokens


def sweep_shapes() -> dict[str, list[Shape]]:
    """Return the shapes of each sweep; each differs from one base in one thing."""
    sizes = [(2, 16, 16), (4, 16, 16), (8, 16, 16), (8, 16, 32), (8, 32, 32)]
    refs = [(0, 0), (16, 16), (32, 32), (64, 64), (128, 128), (128, _LONG // 128)]
    by = {
        "N": [replace(_BASE, grid=grid) for grid in sizes],
        "M": [replace(_BASE, ref_grid=grid) for grid in refs],
        "density": [
            replace(_BASE, ref_grid=(32, 32), density=d) for d in (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
        ],
        "head dim": [replace(_BASE, head_dim=d) for d in (32, 64, 128, 256)],
        "dtype": [_BASE],
        "threads": [_BASE],
    }
    return {
        name: [replace(shape, name=f"sweep-{name.replace(' ', '-')}", sweep=name) for shape in some]
        for name, some in by.items()
    }
