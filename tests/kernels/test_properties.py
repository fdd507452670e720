"""Any call that hypothesis can think of keeps the error budget, forward and backward."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cases import DTYPES, Case, backend_params, check_budget

LAYOUTS = ("plain", "fused", "heads", "expanded", "padded")
MASK_DTYPES = (torch.bool, torch.uint8, torch.int32, torch.int64)
small = st.integers(1, 4)
bias_values = st.sampled_from([0.0, 0.5, -1.5, 3.0, -math.inf])


@st.composite
def calls(draw: st.DrawFn) -> Case:
    """A small call; most of its sizes are odd."""
    batch = draw(st.integers(1, 3))
    heads = draw(st.integers(1, 5))
    first_head = draw(st.integers(0, 3))
    roped = draw(st.booleans())
    grid = draw(st.tuples(small, small, small)) if roped else None
    offset = draw(st.integers(0, math.prod(grid) - 1)) if grid else 0
    referenced = draw(st.booleans())
    refs: tuple[tuple[int, int], ...] = ()
    lengths = None
    if referenced and roped:
        refs = tuple(draw(st.lists(st.tuples(small, small), min_size=1, max_size=3)))
    elif referenced:
        lengths = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    segments = len(lengths if lengths is not None else refs)
    masked = referenced and draw(st.booleans())
    biased = referenced and draw(st.booleans())
    layout = draw(st.sampled_from(LAYOUTS))
    keys = None if roped or layout == "fused" else draw(st.none() | st.integers(1, 40))
    schedules = st.sampled_from(["paper", "release", -1.0, 2.5]) | st.lists(
        st.floats(-50, 50), min_size=first_head + heads, max_size=first_head + heads
    ).map(tuple)
    return Case(
        dtype=draw(st.sampled_from(DTYPES)),
        batch=batch,
        grid=grid,
        token_offset=offset,
        rows=draw(st.sampled_from([3, 101, 17, 97, 1, 131, 2, 5])),
        keys=keys,
        heads=heads,
        dim=draw(st.sampled_from([8, 16, 24, 40])),
        refs=refs,
        lengths=lengths,
        ref_batch=draw(st.sampled_from([1, batch])),
        mask=draw(st.sampled_from(["random", "tail", "all", "nothing"])) if masked else "none",
        mask_dtype=draw(st.sampled_from(MASK_DTYPES)),
        mask_batch=draw(st.sampled_from([1, batch])),
        mask_gate=draw(st.booleans()),
        bias=tuple(draw(bias_values) for _ in range(segments)) if biased else None,
        gate=draw(st.sampled_from([None, "token", "sequence", "sum"])),
        schedule=draw(schedules),
        layout=layout,
        scale=draw(st.none() | st.floats(0.01, 0.5)),
        first_head=first_head,
        num_heads=first_head + heads,
        seed=draw(st.integers(0, 2**20)),
    )


@pytest.mark.parametrize("name", backend_params())
@settings(suppress_health_check=list(HealthCheck))
@given(case=calls())
def test_any_call_keeps_the_budget(name: str, case: Case) -> None:
    check_budget(case, name)
