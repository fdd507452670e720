"""Rotations as objects: schedules in exact integers, immutability, the split of a head, errors."""

import copy
import dataclasses
import json
import math
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from support import loops

from genhoi_kernels import HeadSlidingRope, ReferenceFramesRope, VideoRope, apply_rope, head_frames
from genhoi_kernels.rope import Rope, axis_dims, decode_rope, encode_rope, token_places


def slide(**options: Any) -> HeadSlidingRope:
    """Over 40 heads unless the options say otherwise."""
    defaults = {"video_grid": (3, 2, 2), "ref_grids": ((2, 3),), "num_heads": 40}
    return HeadSlidingRope(**(defaults | options))


def front(**options: Any) -> ReferenceFramesRope:
    """Four frames, of which the first two are references, unless the options say otherwise."""
    defaults = {"grid": (4, 3, 5), "sliding": (0, 1), "num_heads": 7}
    return ReferenceFramesRope(**(defaults | options))


def test_paper_schedule_is_exact() -> None:
    """ceil(f*n/H), n = 0..H-1, wherever floating point would err (38 of these pairs)."""
    for f in range(1, 82):
        for heads in range(1, 65):
            wanted = [float(math.ceil(Fraction(f * n, heads))) for n in range(heads)]
            assert list(head_frames("paper", f, heads)) == wanted, (f, heads)
    assert head_frames("paper", 21, 40)[:5] == (0.0, 1.0, 2.0, 2.0, 3.0)
    assert head_frames("paper", 21, 40)[-1] == 21.0
    assert list(head_frames("paper", 7, 12)) == loops.ceil_frames(7, 12)


def test_release_schedule() -> None:
    """An integer linspace: floor(f*(n+1)/(H+1)) but for rounding in a few of the pairs."""
    different = 0
    for f in range(1, 82):
        for heads in range(1, 65):
            frames = head_frames("release", f, heads)
            floors = [float(f * (n + 1) // (heads + 1)) for n in range(heads)]
            assert len(frames) == heads
            assert max(abs(a - b) for a, b in zip(frames, floors, strict=True)) <= 1
            different += list(frames) != floors
    assert different == 25
    wanted = [0.0, *(t for t in map(float, range(1, 20)) for _ in "ab"), 20.0]
    assert list(head_frames("release", 21, 40)) == wanted


def test_release_schedule_whatever_the_default_device() -> None:
    wanted = head_frames("release", 21, 40)
    with torch.device("meta"):
        assert head_frames("release", 21, 40) == wanted
        tables = VideoRope((2, 2, 2), head_dim=8).tables(
            device=torch.device("cpu"), dtype=torch.float32
        )
    assert tables.frame.device.type == "cpu"


def test_numbers_as_schedules() -> None:
    assert head_frames(-1.0, 21, 3) == (-1.0, -1.0, -1.0)
    assert head_frames(2, 21, 2) == (2.0, 2.0)
    assert head_frames([0.5, -3], 21, 2) == (0.5, -3.0)
    assert slide(num_heads=2, schedule=[0.5, -3]).frames == (0.5, -3.0)
    assert slide(num_heads=5, first_head=2).frames == head_frames("paper", 3, 5)[2:]


@pytest.mark.shared
def test_schedules_are_the_published_ones(shared: Path) -> None:
    positions = json.loads((shared / "goldens" / "rope_positions.json").read_text())
    assert len(positions) > 20
    for name, wanted in positions.items():
        f, heads = (int(word[1:]) for word in name.split("_"))
        assert list(head_frames("release", f, heads)) == wanted["release"], name
        assert list(head_frames("paper", f, heads)) == wanted["paper_ceil_n0toHm1"], name


def test_axis_split() -> None:
    assert axis_dims(128) == (44, 42, 42)
    assert axis_dims(64) == (24, 20, 20)
    assert axis_dims(8) == (4, 2, 2)
    assert axis_dims(4) == (4, 0, 0)
    assert axis_dims(16) == (8, 4, 4)
    for dim in range(2, 258, 2):
        parts = axis_dims(dim)
        assert sum(parts) == dim and all(part % 2 == 0 for part in parts)
        assert parts == loops.part_sizes(dim)


ROPES = [
    VideoRope((3, 4, 5), head_dim=16),
    VideoRope((3, 4, 5), head_dim=16, token_offset=2),
    slide(schedule=[1] * 40),
    slide(first_head=3),
    front(schedule="release"),
    front(sliding=(), head_dim=16, token_offset=60),
    front(schedule=range(7), first_head=2, token_offset=0, theta=500.0),
]


def twin_of_numbers(rope: Rope) -> Rope:
    """What comes back from an operator: a schedule as its frames, no head before the first."""
    if isinstance(rope, VideoRope):
        return rope
    before = rope.frames[:1] * (rope.first_head or 0)
    return dataclasses.replace(rope, schedule=before + rope.frames)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: type(rope).__name__)
def test_immutable_and_hashable(rope: Rope) -> None:
    for field in dataclasses.fields(rope):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rope, field.name, getattr(rope, field.name))
    twin = dataclasses.replace(rope)
    assert twin is not rope and twin == rope and hash(twin) == hash(rope)
    assert pickle.loads(pickle.dumps(rope)) == rope == copy.deepcopy(rope)
    assert eval(repr(rope)) == rope
    assert decode_rope(*encode_rope(rope)) == twin_of_numbers(rope)
    other = dataclasses.replace(rope, theta=5.0)
    assert other != rope and len({rope, twin, other}) == 2


def test_lists_are_tuples() -> None:
    """What callers hand in as lists is equal to, and as hashable as, tuples."""
    assert VideoRope([3, 4, 5]) == VideoRope((3, 4, 5))  # type: ignore[arg-type]
    lists = HeadSlidingRope([3, 2, 2], [[2, 3], [1, 1]], num_heads=40)  # type: ignore[arg-type]
    assert lists == slide(ref_grids=((2, 3), (1, 1)))
    assert hash(lists) == hash(slide(ref_grids=((2, 3), (1, 1))))
    assert lists.lengths == (6, 1)
    frames = front(grid=[4, 3, 5], sliding=[0, 1], schedule=[1.0] * 7)
    assert frames == front(schedule=(1.0,) * 7)
    assert hash(frames) == hash(front(schedule=(1.0,) * 7))


def test_sizes() -> None:
    rope = VideoRope((3, 4, 5), token_offset=7)
    assert (rope.grid_tokens, rope.max_tokens) == (60, 53)
    assert VideoRope((3, 4, 5), token_offset=60).max_tokens == 0
    whole = VideoRope((3, 4, 5))
    assert (whole.token_offset, whole.first_token, whole.max_tokens) == (None, 0, 60)


def test_a_whole_and_its_first_shard_are_two_things() -> None:
    whole, shard = VideoRope((3, 4, 5)), VideoRope((3, 4, 5), token_offset=0)
    assert whole != shard and len({whole, shard}) == 2
    assert [whole.fits(n) for n in (59, 60, 61)] == [False, True, False]
    assert [shard.fits(n) for n in (0, 60, 61)] == [True, True, False]
    every, some = slide(num_heads=5), slide(num_heads=5, first_head=0)
    assert every != some and every.frames == some.frames
    assert [every.fits(n) for n in (4, 5, 6)] == [False, True, False]
    assert [some.fits(n) for n in (4, 5, 6)] == [True, True, False]


def test_how_many_heads_has_no_default() -> None:
    with pytest.raises(TypeError, match="num_heads"):
        HeadSlidingRope((3, 2, 2), ((2, 3),))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="num_heads"):
        ReferenceFramesRope((3, 2, 2), (0,))  # type: ignore[call-arg]


def test_reference_frames_are_of_the_whole_sequence() -> None:
    """The schedule spans the references' frames too; shards fit as they do elsewhere."""
    assert front(schedule="release").frames == head_frames("release", 4, 7)
    assert front(first_head=2).frames == head_frames("paper", 4, 7)[2:]
    assert [front().fits(n) for n in (59, 60, 61)] == [False, True, False]
    assert [front(token_offset=7).fits(n) for n in (0, 53, 54)] == [True, True, False]
    assert [front().heads_fit(n) for n in (6, 7, 8)] == [False, True, False]
    assert [front(first_head=2).heads_fit(n) for n in (1, 5, 6)] == [True, True, False]


def test_places_of_reference_frames() -> None:
    """Frame, row and column in the tables: below 0 where it turns per head, each at its offset."""
    rope = ReferenceFramesRope((4, 2, 3), (0, 2), num_heads=5, token_offset=5)
    places = token_places(rope, 13, torch.device("cpu"))
    assert places.dtype == torch.int32
    wanted = [[-1, 2 + 1, 3 + 2]]
    wanted += [[5 + 1, y, x] for y in range(2) for x in range(3)]
    wanted += [[-1, 3 * 2 + y, 3 * 3 + x] for y in range(2) for x in range(3)]
    assert places.tolist() == wanted
    assert rope.runs(13) == [(1, True), (6, False), (6, True)]
    assert rope.runs(0) == []


def test_without_a_sliding_frame_it_is_the_video_s() -> None:
    """Bitwise: the tables are the same."""
    rope, video = front(sliding=(), head_dim=40), VideoRope((4, 3, 5), head_dim=40)
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float64}
    for table, wanted in zip(rope.tables(**options), video.tables(**options), strict=True):
        assert torch.equal(table, wanted)
    x = torch.randn(2, 60, 7, 40, dtype=torch.float64)
    assert torch.equal(apply_rope(x, rope), apply_rope(x, video))


def test_tables_are_small_and_accurate() -> None:
    """Per axis, never N x D; angles in float64 before they are rounded."""
    cpu = torch.device("cpu")
    tables = VideoRope((101, 30, 52)).tables(device=cpu, dtype=torch.float32)
    assert [tuple(t.shape) for t in tables] == [(101, 22, 2), (30, 21, 2), (52, 21, 2)]
    exact = VideoRope((101, 30, 52)).tables(device=cpu, dtype=torch.float64)
    for table, wide in zip(tables, exact, strict=True):
        assert torch.equal(table, wide.float())
    i, n = 5, 97
    angle = n * 10000.0 ** (-2 * i / 44)
    wanted = [math.cos(angle), math.sin(angle)]
    assert exact.frame[n, i].tolist() == pytest.approx(wanted, abs=1e-14)
    many = slide(ref_grids=((2, 3), (4, 1)), num_heads=5, first_head=1)
    sizes = [tuple(t.shape) for t in many.tables(device=cpu, dtype=torch.float32)]
    assert sizes == [(4, 22, 2), (4, 21, 2), (3, 21, 2)]
    # At 720p: 79,200 tokens and 40 heads, of which a table would have 3.2 GB.
    release = ReferenceFramesRope((22, 45, 80), (0,), num_heads=40)
    tables = release.tables(device=cpu, dtype=torch.float32)
    assert [tuple(t.shape) for t in tables] == [(62, 22, 2), (90, 21, 2), (160, 21, 2)]


WRONG: list[tuple[str, str, Any]] = [
    ("grid", r"\(3, 4\)", lambda: VideoRope((3, 4))),  # type: ignore[arg-type]
    ("grid", r"\(3, 0, 5\)", lambda: VideoRope((3, 0, 5))),
    ("head_dim", "7", lambda: VideoRope((3, 4, 5), head_dim=7)),
    ("head_dim", "0", lambda: VideoRope((3, 4, 5), head_dim=0)),
    ("theta", "-1", lambda: VideoRope((3, 4, 5), theta=-1.0)),
    ("theta", "inf", lambda: VideoRope((3, 4, 5), theta=math.inf)),
    ("theta", "nan", lambda: VideoRope((3, 4, 5), theta=math.nan)),
    ("token_offset", "-1", lambda: VideoRope((3, 4, 5), token_offset=-1)),
    ("token_offset", "61", lambda: VideoRope((3, 4, 5), token_offset=61)),
    ("video_grid", r"\(3, 4\)", lambda: slide(video_grid=(3, 4))),
    ("video_grid", r"\(0, 4, 5\)", lambda: slide(video_grid=(0, 4, 5))),
    ("ref_grids", "no grid", lambda: slide(ref_grids=())),
    ("ref_grids", r"\(2,\)", lambda: slide(ref_grids=((2,),))),
    ("ref_grids", r"\(2, -3\)", lambda: slide(ref_grids=((1, 1), (2, -3)))),
    ("head_dim", "9", lambda: slide(head_dim=9)),
    ("theta", "0", lambda: slide(theta=0.0)),
    ("num_heads", "0", lambda: slide(num_heads=0)),
    ("first_head", "40", lambda: slide(first_head=40)),
    ("first_head", "-1", lambda: slide(first_head=-1)),
    ("schedule", "'middle'", lambda: slide(schedule="middle")),
    ("schedule", "3 frames", lambda: slide(schedule=(1.0, 2.0, 3.0))),
    ("schedule", "'ceil'", lambda: head_frames("ceil", 3, 4)),
    ("schedule", "2 frames", lambda: head_frames((0, 1), 3, 4)),
    ("schedule", "nan", lambda: slide(schedule=math.nan)),
    ("schedule", "inf", lambda: slide(num_heads=2, schedule=(0.0, math.inf))),
    ("grid", r"\(4, 0, 5\)", lambda: front(grid=(4, 0, 5))),
    ("sliding", r"\(1, 0\)", lambda: front(sliding=(1, 0))),
    ("sliding", r"\(1, 1\)", lambda: front(sliding=(1, 1))),
    ("sliding", r"\(3, 4\)", lambda: front(sliding=(3, 4))),
    ("sliding", r"\(-1,\)", lambda: front(sliding=(-1,))),
    ("head_dim", "5", lambda: front(head_dim=5)),
    ("num_heads", "0", lambda: front(num_heads=0)),
    ("first_head", "7", lambda: front(first_head=7)),
    ("token_offset", "61", lambda: front(token_offset=61)),
    ("theta", "nan", lambda: front(theta=math.nan)),
    ("schedule", "2 frames", lambda: front(schedule=(0.0, 1.0))),
]


@pytest.mark.parametrize(("name", "came", "build"), WRONG, ids=[f"{n}-{c}" for n, c, _ in WRONG])
def test_errors(name: str, came: str, build: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: got .*{came}.*, wanted"):
        build()


WRONG_TYPES: list[tuple[str, str, Any]] = [
    ("grid", r"\(3, 2\.5, 2\)", lambda: VideoRope((3, 2.5, 2))),  # type: ignore[arg-type]
    ("grid", "60", lambda: VideoRope(60)),  # type: ignore[arg-type]
    ("grid", "'345'", lambda: VideoRope("345")),  # type: ignore[arg-type]
    ("head_dim", "64.0", lambda: VideoRope((3, 4, 5), head_dim=64.0)),  # type: ignore[arg-type]
    ("token_offset", "1.5", lambda: VideoRope((3, 4, 5), token_offset=1.5)),  # type: ignore
    ("ref_grids", r"\(6, 6\), .*\[\(6, 6\)\]", lambda: slide(ref_grids=(6, 6))),
    ("ref_grids", "36", lambda: slide(ref_grids=36)),
    ("ref_grids", r"\(6, 6\.0\)", lambda: slide(ref_grids=[(6, 6.0)])),
    ("num_heads", "12.0", lambda: slide(num_heads=12.0)),
    ("first_head", "'0'", lambda: slide(first_head="0")),
    ("schedule", "None", lambda: slide(schedule=None)),
    ("grid", "60", lambda: front(grid=60)),
    ("sliding", "0", lambda: front(sliding=0)),
    ("sliding", r"\(0\.5,\)", lambda: front(sliding=(0.5,))),
    ("num_heads", "7.0", lambda: front(num_heads=7.0)),
    ("token_offset", "1.5", lambda: front(token_offset=1.5)),
    ("schedule", r"\('paper',\)", lambda: slide(num_heads=1, schedule=("paper",))),
    ("schedule", "None", lambda: head_frames(None, 3, 4)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(
    ("name", "came", "build"), WRONG_TYPES, ids=[f"{n}-{c}" for n, c, _ in WRONG_TYPES]
)
def test_types(name: str, came: str, build: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: got {came}") as caught:
        build()
    assert "wanted" in str(caught.value)


def test_an_unknown_schedule_is_told_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'sliding', wanted 'paper', 'release', a number or one"):
        slide(schedule="sliding")
