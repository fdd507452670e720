"""RMS norm and rotation: against slow loops, and every backend within the error budget."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from support import loops
from support.cases import (
    DTYPES,
    Results,
    assert_within_budget,
    device_of,
    rounded,
    skip_unless_supported,
)
from torch import Tensor

from genhoi_kernels import (
    HeadSlidingRope,
    ReferenceFramesRope,
    VideoRope,
    apply_rope,
    head_frames,
    qk_norm_rope,
)
from genhoi_kernels.spec import RopeCall

Rope = VideoRope | HeadSlidingRope | ReferenceFramesRope

# (rotation, tokens, heads): whole grids, shards of them, other schedules and bases.
ROPES: list[tuple[Rope, int, int]] = [
    (VideoRope((2, 3, 2), head_dim=8), 12, 1),
    (VideoRope((3, 2, 5), head_dim=24), 30, 3),
    (VideoRope((3, 2, 5), head_dim=40, token_offset=7, theta=500.0), 11, 2),
    (VideoRope((1, 1, 1), head_dim=16), 1, 2),
    (VideoRope((2, 2, 2), head_dim=128, token_offset=0), 0, 2),
    (VideoRope((2, 2, 3), head_dim=128), 12, 5),
    (HeadSlidingRope((3, 2, 2), ((2, 3),), head_dim=16, num_heads=5), 6, 5),
    (
        HeadSlidingRope(
            (4, 2, 2),
            ((2, 3), (1, 1), (4, 2)),
            head_dim=24,
            num_heads=7,
            first_head=3,
            schedule="release",
        ),
        15,
        4,
    ),
    (HeadSlidingRope((4, 2, 2), ((2, 3),), head_dim=128, num_heads=3, schedule=-1.0), 6, 3),
    (HeadSlidingRope((4, 2, 2), ((3, 1),), head_dim=64, num_heads=2, schedule=(0.5, -9.25)), 3, 2),
    (HeadSlidingRope((4, 2, 2), ((1, 3),), head_dim=8, num_heads=9, first_head=2), 3, 2),
    (ReferenceFramesRope((4, 3, 1), (0, 1), head_dim=40, num_heads=9, schedule="release"), 12, 9),
    (
        ReferenceFramesRope(
            (3, 1, 5), (1,), head_dim=24, num_heads=7, first_head=3, token_offset=4, theta=500.0
        ),
        8,
        3,
    ),
    (ReferenceFramesRope((2, 1, 3), (0, 1), head_dim=128, num_heads=2, schedule=-1.0), 6, 2),
    (ReferenceFramesRope((2, 2, 2), (0,), head_dim=16, num_heads=2, token_offset=8), 0, 2),
]


def name_of(value: object) -> str:
    """Test ids."""
    if isinstance(value, torch.dtype):
        return str(value)[6:]
    if isinstance(value, tuple):
        rope, tokens, heads = value
        return f"{type(rope).__name__}-D{rope.head_dim}-N{tokens}-H{heads}"
    return str(value)


def rotate_in_loops(x: np.ndarray, rope: Rope) -> np.ndarray:
    if isinstance(rope, VideoRope):
        return loops.rotate_video(x, rope.grid, rope.first_token, rope.theta)
    if isinstance(rope, ReferenceFramesRope):
        return loops.rotate_reference_frames(
            x, rope.grid, rope.sliding, rope.frames, rope.first_token, rope.theta
        )
    return loops.rotate_reference(x, rope.video_grid, rope.ref_grids, rope.frames, rope.theta)


def draw(rope: Rope, tokens: int, heads: int, dtype: torch.dtype, weight: torch.dtype) -> Results:
    """q, k, their weights and upstream gradients, in float64."""
    generator = torch.Generator().manual_seed(tokens + 100 * heads)
    dim = heads * rope.head_dim

    def normal(*shape: int, kept: torch.dtype = dtype) -> Tensor:
        return rounded(torch.randn(*shape, generator=generator, dtype=torch.float64), kept)

    values = {name: 3 * normal(2, tokens, dim) for name in ("q", "k")}
    values |= {f"{n}_weight": rounded(1 + 0.3 * normal(dim), weight) for n in ("q", "k")}
    return values | {f"up_{n}": normal(2, tokens, heads, rope.head_dim) for n in ("q", "k")}


def run_norm_rope(
    values: Results,
    rope: Rope,
    backend: str,
    dtype: torch.dtype,
    weight: torch.dtype,
    eps: float = 1e-6,
    strided: bool = False,
) -> Results:
    device = device_of(backend)

    def leaf(name: str) -> Tensor:
        kept = weight if name.endswith("weight") else dtype
        x = values[name].to(device, kept, copy=True)
        if strided and x.dim() == 3:  # a chunk of a fused projection
            x = torch.cat((x, x.flip(0)), -1)[..., : x.shape[-1]]
        return x.requires_grad_()

    inputs = {name: leaf(name) for name in ("q", "k", "q_weight", "k_weight")}
    outs = qk_norm_rope(**inputs, rope=rope, eps=eps, backend=backend)
    toward = [values[f"up_{name}"].to(device, dtype) for name in ("q", "k")]
    grads = torch.autograd.grad(outs, list(inputs.values()), toward)
    results = dict(zip(("out_q", "out_k"), outs, strict=True))
    for (name, x), grad in zip(inputs.items(), grads, strict=True):
        assert grad.dtype == x.dtype and grad.shape == x.shape
        results[f"d{name}"] = grad
    return {name: x.detach().cpu().double() for name, x in results.items()}


@pytest.mark.parametrize("rotation", ROPES, ids=name_of)
def test_eager_is_the_loops(rotation: tuple[Rope, int, int]) -> None:
    rope, tokens, heads = rotation
    values = draw(rope, tokens, heads, torch.float64, torch.float64)
    results = run_norm_rope(values, rope, "eager", torch.float64, torch.float64, eps=1e-3)
    for name in ("q", "k"):
        normed = loops.rms_norm(values[name].numpy(), values[f"{name}_weight"].numpy(), 1e-3)
        wanted = rotate_in_loops(normed.reshape(2, tokens, heads, rope.head_dim), rope)
        torch.testing.assert_close(
            results[f"out_{name}"], torch.from_numpy(wanted), rtol=0, atol=1e-12
        )
    x = values["up_q"]
    alone = apply_rope(x, rope, backend="eager")
    wanted = torch.from_numpy(rotate_in_loops(x.numpy(), rope))
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-12)


def composed(x: Tensor, rope: ReferenceFramesRope, backend: str) -> Tensor:
    """x rotated by a VideoRope, and the rows of each reference by a HeadSlidingRope of its own."""
    frames, h, w = rope.grid
    at = slice(rope.first_token, rope.first_token + x.shape[1])
    whole = x.new_zeros(x.shape[0], rope.grid_tokens, *x.shape[2:])
    whole[:, at] = x
    options = {"head_dim": rope.head_dim, "theta": rope.theta}
    rotated = apply_rope(whole, VideoRope(rope.grid, **options), backend=backend)
    for i in rope.sliding:
        rows = slice(i * h * w, (i + 1) * h * w)
        of_reference = HeadSlidingRope(
            (frames, (i + 1) * h, (i + 1) * w),
            ((h, w),),
            num_heads=rope.num_heads,
            schedule=head_frames(rope.schedule, frames, rope.num_heads),
            first_head=rope.first_head,
            **options,
        )
        rotated[:, rows] = apply_rope(whole[:, rows], of_reference, backend=backend)
    return rotated[:, at]


@pytest.mark.parametrize("head_dim", [2, 8, 26, 64, 128])
@pytest.mark.parametrize("schedule", ["paper", "release", -1.0])
def test_reference_frames_are_composed(head_dim: int, schedule: str | float) -> None:
    """One pass is a VideoRope's and a HeadSlidingRope's for each reference, in float64."""
    generator = torch.Generator().manual_seed(head_dim)
    options: dict[str, Any] = {"head_dim": head_dim, "num_heads": 5, "schedule": schedule}
    for frames in range(1, 8):
        h, w = (3, 5) if frames % 2 else (5, 1)
        last, tokens = min(2, frames - 1), frames * h * w
        x = torch.randn(2, tokens, 5, head_dim, generator=generator, dtype=torch.float64)
        for sliding in {(0,), tuple(range(last + 1)), (last,), (frames - 1,)}:
            rope = ReferenceFramesRope((frames, h, w), sliding, theta=1000.0 * frames, **options)
            wanted = composed(x, rope, "eager")
            rotated = apply_rope(x, rope, backend="eager")
            torch.testing.assert_close(rotated, wanted, rtol=0, atol=1e-14)
            first, stop, head = tokens // 3, tokens - 1, frames % 3
            shard = dataclasses.replace(rope, token_offset=first, first_head=head)
            part = (slice(None), slice(first, stop), slice(head, 4))
            got = apply_rope(x[part], shard, backend="eager")
            torch.testing.assert_close(got, wanted[part], rtol=0, atol=1e-14)


def test_reference_frames_and_the_composition(backend: str) -> None:
    """Of kernels, the same angles: equal but for the order of multiply-adds."""
    rope = ReferenceFramesRope((5, 3, 5), (0, 1), head_dim=24, num_heads=7, schedule="release")
    skip_unless_supported(backend, RopeCall(device_of(backend), torch.float32, 24))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 75, 7, 24, generator=generator).to(device_of(backend))
    rotated = apply_rope(x, rope, backend=backend)
    torch.testing.assert_close(rotated, composed(x, rope, backend), rtol=0, atol=1e-6)
    plain = apply_rope(x, VideoRope(rope.grid, head_dim=24), backend=backend)
    assert torch.equal(rotated[:, 30:], plain[:, 30:])
    assert not torch.isclose(rotated[:, :30], plain[:, :30], atol=0.1).all(-1).any()
    none = dataclasses.replace(rope, sliding=())
    assert torch.equal(apply_rope(x, none, backend=backend), plain)


@pytest.mark.parametrize("rotation", [ROPES[0], ROPES[10], ROPES[12]], ids=name_of)
def test_eager_gradients_are_finite_differences(rotation: tuple[Rope, int, int]) -> None:
    rope, tokens, heads = rotation
    rope = dataclasses.replace(rope, head_dim=4)
    values = draw(rope, tokens, heads, torch.float64, torch.float64)
    inputs = [values[n].requires_grad_() for n in ("q", "k", "q_weight", "k_weight")]
    assert torch.autograd.gradcheck(
        lambda *x: qk_norm_rope(*x, rope, eps=1e-3, backend="eager"), inputs
    )
    x = values["up_q"].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, rope, backend="eager"), [x])


@pytest.mark.parametrize("strided", [False, True], ids=["plain", "strided"])
@pytest.mark.parametrize("wide_weight", [True, False], ids=["float32 weight", "weight as q"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rotation", ROPES, ids=name_of)
def test_norm_rope_budget(
    backend: str,
    rotation: tuple[Rope, int, int],
    dtype: torch.dtype,
    wide_weight: bool,
    strided: bool,
) -> None:
    rope, tokens, heads = rotation
    skip_unless_supported(backend, RopeCall(device_of(backend), dtype, rope.head_dim))
    weight = torch.float32 if wide_weight else dtype
    values = draw(rope, tokens, heads, dtype, weight)
    x = run_norm_rope(values, rope, backend, dtype, weight, strided=strided)
    e = run_norm_rope(values, rope, "eager", dtype, weight)
    t = run_norm_rope(values, rope, "eager", torch.float64, torch.float64)
    for name in t:
        assert_within_budget(x[name], e[name], t[name], dtype, name=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rotation", ROPES, ids=name_of)
def test_apply_rope_budget(
    backend: str, rotation: tuple[Rope, int, int], dtype: torch.dtype
) -> None:
    rope, tokens, heads = rotation
    skip_unless_supported(backend, RopeCall(device_of(backend), dtype, rope.head_dim))
    values = draw(rope, tokens, heads, dtype, dtype)

    def turn(backend: str, dtype: torch.dtype, **layout: Any) -> list[Tensor]:
        x = values["up_q"].to(device_of(backend), dtype)
        if layout:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        x.requires_grad_()
        y = apply_rope(x, rope, backend=backend)
        assert y.dtype == dtype
        (dx,) = torch.autograd.grad(y, x, values["up_k"].to(y.device, dtype))
        return [y.detach().cpu().double(), dx.cpu().double()]

    wanted = zip(turn("eager", dtype), turn("eager", torch.float64), strict=True)
    for name, (e, t), x, strided in zip(
        ("y", "dx"), wanted, turn(backend, dtype), turn(backend, dtype, strided=True), strict=True
    ):
        assert_within_budget(x, e, t, dtype, name=name)
        assert torch.equal(x, strided), name


@pytest.mark.parametrize("rotation", ROPES, ids=name_of)
def test_gradient_is_inverse_and_adjoint(backend: str, rotation: tuple[Rope, int, int]) -> None:
    """<R x, y> = <x, dx> and R dx = y, with dx the gradient of R x toward y."""
    rope, tokens, heads = rotation
    skip_unless_supported(backend, RopeCall(device_of(backend), torch.float32, rope.head_dim))
    values = draw(rope, tokens, heads, torch.float32, torch.float32)
    x = values["up_q"].to(device_of(backend), torch.float32).requires_grad_()
    y = values["up_k"].to(x.device, torch.float32)
    turned = apply_rope(x, rope, backend=backend)
    (dx,) = torch.autograd.grad(turned, x, y)
    torch.testing.assert_close(apply_rope(dx, rope, backend=backend), y, rtol=0, atol=1e-5)
    left = (turned.double() * y.double()).sum()
    torch.testing.assert_close(left, (x.double() * dx.double()).sum(), rtol=1e-5, atol=1e-4)
    if tokens > 1:
        assert not torch.allclose(turned, x, atol=0.1)


def test_norm_rope_is_deterministic(backend: str) -> None:
    """Bitwise, whatever the number of threads."""
    rope = VideoRope((3, 5, 5), head_dim=24)
    skip_unless_supported(backend, RopeCall(device_of(backend), torch.float32, 24))
    values = draw(rope, 75, 3, torch.float32, torch.float32)
    before = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            runs.append(run_norm_rope(values, rope, backend, torch.float32, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        for name in other:
            assert torch.equal(other[name], runs[0][name]), name


def test_nan_stays_in_its_row(backend: str) -> None:
    rope = VideoRope((3, 5, 2), head_dim=24)
    skip_unless_supported(backend, RopeCall(device_of(backend), torch.float32, 24))
    values = draw(rope, 30, 2, torch.float32, torch.float32)
    clean = run_norm_rope(values, rope, backend, torch.float32, torch.float32)
    values["q"][1, 17, 5] = torch.nan
    results = run_norm_rope(values, rope, backend, torch.float32, torch.float32)
    assert results["out_q"][1, 17].isnan().all() and results["dq"][1, 17].isnan().all()
    others = torch.ones(2, 30, dtype=torch.bool)
    others[1, 17] = False
    for name in ("out_q", "dq"):
        assert torch.equal(results[name][others], clean[name][others])
    assert torch.equal(results["out_k"], clean["out_k"])
