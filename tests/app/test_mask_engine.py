"""Masks without weights: what the engine finds, what cues do, and what is refused."""

from __future__ import annotations

import doctest
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.masks import box_around, iou, measure
from genhoi.data.synthetic import SyntheticHOI
from genhoi.masking import Box, Cue, Drawn, Point, Text, cutout, engine, track, track_mask
from genhoi.masking.overlay import overlay, preview
from genhoi.masking.shape import boxed, grown
from genhoi.media import Clip
from genhoi.media.frame_ranges import frame_ranges

HEIGHT, WIDTH = 64, 96


def moving_square(
    frames: int = 8, *, hidden: range = range(0), step: int = 2, side: int = 20
) -> tuple[Clip, Tensor]:
    """A red square that moves to the right over noise, and its mask; gone in the hidden frames."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(
        90, 160, (HEIGHT // 4, WIDTH // 4, 3), generator=random, dtype=torch.uint8
    )
    ground = noise.repeat_interleave(4, 0).repeat_interleave(4, 1)
    texture = torch.randint(0, 40, (side // 4, side // 4, 3), generator=random, dtype=torch.uint8)
    square = torch.tensor([200, 30, 30], dtype=torch.uint8) + texture.repeat_interleave(
        4, 0
    ).repeat_interleave(4, 1)
    pictures, mask = ground.repeat(frames, 1, 1, 1), torch.zeros(frames, HEIGHT, WIDTH).bool()
    for frame in range(frames):
        if frame not in hidden:
            left = 16 + step * frame
            pictures[frame, 20 : 20 + side, left : left + side] = square
            mask[frame, 20 : 20 + side, left : left + side] = True
    return Clip(pictures), mask


def test_a_box_on_one_frame_masks_all_frames_of_held_out_clips() -> None:
    """The bar of the benchmark on two of its clips, with fewer frames."""
    clips = SyntheticHOI("test", clips=24, frames=25)
    for index in (6, 8):
        sample = clips[index]
        short = {name: getattr(sample, name)[:6] for name in ("mask", "object_mask", "hand_mask")}
        part = type(sample)("", Clip(sample.clip.frames[:6]), object=sample.object, **short)
        assert measure(part)["iou"] > 0.85


def test_tracking_goes_both_ways() -> None:
    clip, mask = moving_square()
    found = track_mask(clip, [replace(box_around(mask[4], 0.1), frame=4)])
    assert iou(found.mask, mask).min() > 0.85
    assert not found.lost.any()


def test_two_runs_agree() -> None:
    clip, mask = moving_square(4)
    first, second = (track_mask(clip, [box_around(mask[0], 0.1)]) for _ in range(2))
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(first.confidence, second.confidence)


def test_a_drawn_mask_is_kept_as_it_is() -> None:
    clip, mask = moving_square(4)
    odd = mask[1].clone()
    odd[20:24, 18:22] = False
    found = track_mask(clip, [Drawn(odd, frame=1)])
    assert iou(found.mask[1:2], odd[None]) > 0.97
    assert iou(found.mask, mask).min() > 0.8


def test_points_alone_find_it_and_points_outside_are_left_out() -> None:
    clip, mask = moving_square(3)
    point = Point(26, 30)
    assert iou(track_mask(clip, [point]).mask, mask).min() > 0.8
    away = Point(20, 24, inside=False)
    found = track_mask(clip, [box_around(mask[0], 0.1), point, away])
    assert found.mask[0, 30, 26] and not found.mask[0, 24, 20]


def test_a_hidden_thing_is_lost_and_found_again() -> None:
    clip, mask = moving_square(10, hidden=range(4, 6), step=1)
    found = track_mask(clip, [box_around(mask[0], 0.1)])
    assert found.lost.tolist() == [frame in (4, 5) for frame in range(10)]
    assert not found.mask[4:6].any()
    assert iou(found.mask, mask).min() > 0.8
    assert frame_ranges(found.lost.nonzero()[:, 0].tolist()) == "4-5"


def test_boxes_on_two_frames_hold_what_is_between_them() -> None:
    clip, mask = moving_square()
    boxes = [box_around(mask[0], 0.1), replace(box_around(mask[7], 0.1), frame=7)]
    found = track_mask(clip, boxes)
    assert iou(found.mask, mask).min() > 0.85
    still = boxes[0]  # the same box again: the square has left it by frame 7
    held = track_mask(clip, [boxes[0], Box(*still.corners[:2], still.width, still.height, 7)])
    assert not held.mask[4, :, int(still.corners[2] + 0.2 * still.width) :].any()


def test_a_frame_with_cues_in_which_nothing_is_found_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A box on plain background may leave nothing; what is tracked from there is lost too."""
    clip, mask = moving_square(3)
    nothing = np.zeros((HEIGHT * 3, WIDTH * 3), np.uint8)
    monkeypatch.setattr(engine, "cut_boxes", lambda *arguments: nothing)
    found = track_mask(clip, [box_around(mask[0], 0.1)])
    assert found.lost.all() and not found.mask.any()


def test_progress_ends_with_all_done() -> None:
    clip, mask = moving_square(5)
    seen: list[tuple[int, int]] = []
    track_mask(
        clip,
        [replace(box_around(mask[1], 0), frame=1), replace(box_around(mask[3], 0), frame=3)],
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("module", [track, cutout])
def test_the_examples_in_docstrings_work(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 3 and result.failed == 0


SQUARE = Drawn(torch.ones(HEIGHT, WIDTH).bool())


@pytest.mark.parametrize(
    ("cues", "words"),
    [
        ([], "got none that says where the thing is"),
        ([Point(1, 1, inside=False)], "got none that says where the thing is"),
        ([Box(90, 10, 20, 20)], "box 90,10,20,20@0: reaches outside the frame"),
        ([Box(-1, 10, 20, 20)], "reaches outside the frame"),
        ([Box(10, 10, 1, 20)], "want width and height of 2 pixels at least"),
        ([Box(10, 10, 20, 20, 3)], "got frame 3, want 0 to 2"),
        ([Point(96, 10)], "point 96,10@0: lies outside the frame"),
        ([Drawn(torch.ones(3, 3).bool())], r"got shape \(3, 3\), want \(64, 96\)"),
        ([Drawn(torch.zeros(HEIGHT, WIDTH).bool())], "nothing is white in it"),
        ([SQUARE, SQUARE], "got two for this frame, want one"),
        ([Text("mug")], "a text needs --model"),
        ([Text(" ")], "want words for the thing"),
    ],
)
def test_bad_cues_are_refused(cues: list[Cue], words: str) -> None:
    clip, _ = moving_square(3)
    with pytest.raises(ValueError, match=words):
        track_mask(clip, cues)


def test_a_mask_grows_by_pixels_in_every_direction() -> None:
    mask = torch.zeros(2, 20, 30).bool()
    mask[0, 10, 15] = True
    wide = grown(mask, 3)
    assert wide[0].nonzero().min(0).values.tolist() == [7, 12]
    assert wide[0].nonzero().max(0).values.tolist() == [13, 18]
    assert not wide[0, 7, 12] and not wide[1].any()  # a disc; and nothing of nothing
    assert torch.equal(grown(mask, 0), mask)


def test_boxes_hold_the_mask_and_move_smoothly() -> None:
    _, mask = moving_square(12)
    shaky = mask.clone()
    shaky[5] = grown(mask, 6)[5]
    shaky[8] = False
    made = boxed(shaky)
    assert (made | ~shaky).all() and not made[8].any()
    areas = made.flatten(1).sum(1)[[4, 5, 6]].float()
    assert areas.max() / areas.min() < 1.1
    for plane in made[[0, 5]]:
        rows, columns = plane.any(1).sum(), plane.any(0).sum()
        assert plane.sum() == rows * columns


def test_the_overlay_leaves_the_rest_of_the_clip_alone() -> None:
    clip, mask = moving_square(3)
    drawn = overlay(clip, mask)
    near = grown(mask, 1)
    assert torch.equal(drawn.frames[~near], clip.frames[~near])
    assert (drawn.frames[mask] != clip.frames[mask]).any(1).float().mean() > 0.95


def test_the_preview_shows_eight_frames_with_those_of_the_cues() -> None:
    clip, mask = moving_square(30)
    track = track_mask(Clip(clip.frames[:3]), [box_around(mask[0], 0.1)])
    assert preview(Clip(clip.frames[:3]), track, []).shape[1] < 3 * 330
    whole = type(track)(mask, torch.ones(30), torch.zeros(30).bool())
    picture = preview(clip, whole, [Box(10, 10, 20, 20, 7), Point(20, 20, 7)])
    assert picture.shape[1] == 4 * 320 + 3 * 4
