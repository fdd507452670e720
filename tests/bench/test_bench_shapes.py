"""Named shapes, sweeps, and the mask of a moving box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.bench_cases import CPU, CUDA

from benchmarks.shapes import merge_equal, sweep_shapes
from benchmarks.suites import Selection, select
from genhoi_kernels.tune.shapes import SHAPES, reduce_shape


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_mask_is_a_box_in_every_frame(name: str) -> None:
    shape = SHAPES[name]
    mask = shape.mask().view(shape.grid)
    assert abs(mask.float().mean() - shape.density) < 0.05
    boxes = set()
    for frame in mask:
        rows, cols = frame.any(1).nonzero()[:, 0], frame.any(0).nonzero()[:, 0]
        assert frame.sum() == len(rows) * len(cols)
        assert frame[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].all()
        boxes.add((int(rows[0]), int(cols[0])))
    assert len(boxes) > 1, "it moves"


def test_large_shapes_are_reduced_and_say_so() -> None:
    shape = SHAPES["wan14b-480p-401f"]
    smaller = reduce_shape(shape, 0.3e12)
    assert smaller.heads == 1 and smaller.grid[0] < 101 and smaller.grid[1:] == shape.grid[1:]
    assert smaller.reduced.startswith("reduced to 1 of 40 heads, reduced to ")
    assert reduce_shape(SHAPES["tiny"], 0.3e12) == SHAPES["tiny"]


def test_shapes_that_became_equal_are_measured_once() -> None:
    long, short = SHAPES["wan14b-480p-401f"], SHAPES["wan14b-480p"]
    reduced = [reduce_shape(x, 0.15e12, most_frames=0.6e12) for x in (short, long, SHAPES["tiny"])]
    first, last = merge_equal(reduced)
    assert first.name == "wan14b-480p" and first.n == short.n and first.heads == 1
    assert "stands for wan14b-480p-401f too" in first.reduced and last == SHAPES["tiny"]


def test_sweeps_vary_what_they_say() -> None:
    sweeps = sweep_shapes()
    assert {shape.m for shape in sweeps["M"]} >= {0, 32768}
    assert len({shape.n for shape in sweeps["N"]}) == len(sweeps["N"])
    assert {shape.density for shape in sweeps["density"]} >= {0.0, 1.0}


@pytest.mark.parametrize(
    ("suite", "more"),
    [
        ("attention", ["wan1.3b-480p", "wan14b-720p"]),
        ("fused", ["wan1.3b-480p"]),
        ("norm_rope", ["wan1.3b-480p"]),
        ("reference_frames", ["wan1.3b-480p"]),
        ("block", []),
    ],
)
def test_a_gpu_has_time_for_larger_shapes(suite: str, more: list[str]) -> None:
    def shapes(device: torch.device, **options: Any) -> set[tuple[str, str]]:
        cases = select((suite,), Selection(device, 1, **options))
        return {(case.direction, case.shape.name) for case in cases}

    added = shapes(CUDA) - shapes(CPU)
    assert {name for _, name in added} == set(more)
    directions = {direction for direction, _ in shapes(CPU)}
    assert len(added) == len(more) * len(directions)
    assert shapes(CUDA, shapes=("tiny",)) == {(direction, "tiny") for direction in directions}
