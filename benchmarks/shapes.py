"""Sweeps around one shape, and shapes that became another's size by reduction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from genhoi_kernels.tune.shapes import Shape

__all__ = ["merge_equal", "sweep_shapes"]


def merge_equal(shapes: Sequence[Shape]) -> list[Shape]:
    """Drop shapes that reduction made equal to another; that one says whom it stands for."""
    merged: list[Shape] = []
    for shape in shapes:
        sizes = replace(shape, name="", reduced="")
        for i, other in enumerate(merged):
            if replace(other, name="", reduced="") == sizes:
                note = f"stands for {shape.name} too ({shape.reduced or 'as it is'})"
                notes = [other.reduced, note] if shape.name != other.name else [other.reduced]
                merged[i] = replace(other, reduced=", ".join(filter(None, notes)))
                break
        else:
            merged.append(shape)
    return merged


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
