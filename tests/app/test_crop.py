"""The box that is edited: it holds the masks, has the model's aspect, and comes back in place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genhoi.bases.base import Base
from genhoi.bases.mosaic import MosaicBase
from genhoi.bases.settings import resolve
from genhoi.bases.wan import WanBase
from genhoi.editing.crop import Crop, choose_crop, scaled_down
from genhoi.editing.paste import cut_boxes, cut_frames, cut_masks, paste
from genhoi.editing.plan import plan_edit

TINY, WAN = (96, 96), (480, 832)


def boxes(frame: tuple[int, int], *places: tuple[int, int, int, int]) -> Tensor:
    """A rectangle (top, left, height, width) in each frame."""
    mask = torch.zeros(len(places), *frame, dtype=torch.bool)
    for plane, (top, left, height, width) in zip(mask, places, strict=True):
        plane[top : top + height, left : left + width] = True
    return mask


def held(mask: Tensor, crop: Crop) -> bool:
    return int(cut_boxes(mask, crop).sum()) == int(mask.sum())


@pytest.mark.parametrize(
    "frame, place",
    [
        ((272, 480), (147, 320, 100, 120)),
        ((1080, 1920), (0, 0, 300, 200)),
        ((1080, 1920), (700, 1700, 380, 220)),
        ((1920, 1080), (900, 400, 500, 300)),
        ((720, 1280), (100, 50, 500, 1100)),
        ((101, 479), (3, 200, 90, 130)),
    ],
)
@pytest.mark.parametrize("native", [TINY, WAN])
def test_the_box_holds_the_mask_and_has_the_models_aspect(
    frame: tuple[int, int], place: tuple[int, int, int, int], native: tuple[int, int]
) -> None:
    mask = boxes(frame, *[place] * 5)
    crop = choose_crop(mask, native=native)
    assert held(mask, crop) and not crop.moves
    assert crop.size[0] % 16 == crop.size[1] % 16 == 0
    assert (
        0.5 * math.prod(native) < math.prod(crop.size) <= 1.1 * math.prod(native) or crop.is_whole
    )
    if not crop.is_whole:
        stretch = (crop.box[1] / crop.box[0]) / (crop.size[1] / crop.size[0])
        assert 0.96 < stretch < 1.04
        assert crop.box[0] >= crop.size[0] - 1, "nothing is enlarged"
        corners = crop.corners
        assert (corners >= 0).all() and (
            corners + torch.tensor(crop.box) <= torch.tensor(frame)
        ).all()


def test_there_is_a_margin_around_the_mask_where_the_frame_has_room() -> None:
    mask = boxes((1080, 1920), *[(400, 800, 200, 300)] * 5)
    crop = choose_crop(mask, native=TINY)
    assert crop.size == TINY and crop.box == (480, 480), "300 and 0.3 of it on both sides"
    assert crop.corners[0].tolist() == [260, 710]


def test_a_box_that_follows_is_smooth_and_holds_every_frame() -> None:
    """The hand crosses the frame and trembles; its box does not."""
    steps = torch.linspace(0, 1700, 81)
    tremble = 6 * torch.sin(torch.arange(81) * 2.0)
    places = [(500, int(x + t) + 10, 100, 90) for x, t in zip(steps, tremble, strict=True)]
    mask = boxes((1080, 1920), *places)
    crop = choose_crop(mask, native=TINY)
    assert crop.moves and held(mask, crop)
    assert crop.box[1] < 480, "a box that stands still would be as wide as the frame"
    left = crop.corners[:, 1].float()
    assert left.diff().min() >= 0
    inside = left[(left > 0) & (left < 1920 - crop.box[1])]  # the frame's edges stop it
    assert len(inside) > 60 and inside.diff().diff().abs().max() <= 2
    assert (crop.corners[:, 0] == crop.corners[0, 0]).all()
    record = crop.as_record()
    assert record is not None and len(record["x_y_by_frame"]) == 81


def test_frames_without_a_mask_get_what_lies_between() -> None:
    mask = boxes((200, 800), *[(50, 10 + 75 * i, 40, 40) for i in range(9)])
    mask[[0, 4, 8]] = False
    crop = choose_crop(mask, native=(48, 48))
    assert held(mask, crop)


@pytest.mark.parametrize("native, whole", [(TINY, False), (WAN, True)])
def test_where_a_crop_pays(native: tuple[int, int], whole: bool) -> None:
    """Wan edits a frame of its own size as it is; the tiny base has to look closer."""
    mask = boxes((480, 832), *[(100, 100, 100, 100)] * 5)
    assert choose_crop(mask, native=native).is_whole is whole
    assert choose_crop(mask, native=native, mode="none").is_whole


def test_wan_crops_below_a_third_of_the_frame() -> None:
    below = WanBase.settings.defaults.crop_below
    small = boxes((1080, 1920), *[(400, 800, 200, 200)] * 5)
    crop = choose_crop(small, native=WAN, below=below)
    assert crop.size == WAN and crop.box == WAN and crop.share < 1 / 3
    large = boxes((1080, 1920), *[(200, 400, 700, 900)] * 5)
    whole = choose_crop(large, native=WAN, below=below)
    assert whole.is_whole and whole.size == (464, 832)
    standing = choose_crop(small.transpose(1, 2), native=WAN, below=below)
    assert standing.size == (832, 480)


@pytest.mark.parametrize(
    "frame, native, size",
    [
        ((272, 480), WAN, (272, 480)),
        ((1080, 1920), WAN, (464, 832)),
        ((1920, 1080), WAN, (832, 464)),
        ((272, 480), TINY, (48, 96)),
        ((7, 500), TINY, (16, 96)),
    ],
)
def test_the_size_of_a_whole_frame(
    frame: tuple[int, int], native: tuple[int, int], size: tuple[int, int]
) -> None:
    assert scaled_down(frame, max(native)) == size


def test_what_was_cut_comes_back_in_place() -> None:
    """A picture without fine detail survives the model's smaller size; all else is untouched."""
    rows, columns = torch.arange(300)[:, None] / 3, torch.arange(500)[None] / 3
    picture = (rows + columns)[..., None].expand(300, 500, 3).round().byte()
    source = torch.stack([picture] * 5)
    mask = boxes((300, 500), *[(100, 200 + i, 90, 80) for i in range(5)])
    crop = choose_crop(mask, native=TINY)
    back = paste(source, cut_frames(source, crop), mask, crop, keep_background=True)
    assert (back.int() - source.int()).abs().max() <= 1
    inverted = 255 - cut_frames(source, crop)
    edited = paste(source, inverted, mask, crop, keep_background=True)
    assert ((edited[mask].int() - (255 - source[mask].int())).abs() <= 2).all()
    far = torch.nn.functional.max_pool2d(mask.float(), 41, 1, 20) == 0
    assert torch.equal(edited[far], source[far])
    raw = paste(source, inverted, mask, crop, keep_background=False)
    top, left = crop.corners[0].tolist()
    middle = raw[0, top + 20 : top + 60, left + 20 : left + 60].int()
    assert (
        (middle - (255 - source[0, top + 20 : top + 60, left + 20 : left + 60].int())).abs() <= 2
    ).all()
    assert torch.equal(raw[:, : top - 1], source[:, : top - 1])
    step = raw[0, top + 50, left - 2 : left + 12].int().diff(dim=0).abs().max()
    assert step < 40, "the box's own edge is soft"


def test_masks_are_cut_as_the_frames_are() -> None:
    mask = boxes((300, 500), *[(100, 200, 90, 80)] * 5)
    crop = choose_crop(mask, native=TINY)
    seen = cut_masks(mask, crop)
    assert seen.shape == (5, *TINY)
    wanted = mask[0].sum() / math.prod(crop.box)
    assert float(seen[0].float().mean()) == pytest.approx(float(wanted), rel=0.05)


# ------------------------------------------------------------------------------------------- plan


def notes(mask: Tensor, base: type[Base] = MosaicBase, **given: object) -> str:
    settings = resolve(base.settings.defaults, **given)
    return "\n".join(plan_edit(base.settings, [mask], settings=settings).notes)


def round_mask(frames: int = 49, side: int = 300, radius: float = 60) -> Tensor:
    y, x = torch.meshgrid(*[torch.arange(side) - side / 2] * 2, indexing="ij")
    return (x**2 + y**2 < radius**2)[None].repeat(frames, 1, 1)


def test_a_plan_near_training_says_nothing() -> None:
    assert notes(round_mask()) == ""


@pytest.mark.parametrize(
    "mask, given, words",
    [
        (round_mask(), {"crop": "none"}, "Mask: 13 %"),
        (round_mask(side=96, radius=6), {}, "Mask: 1 % of what the model sees"),
        (round_mask(frames=5), {}, "Frames: the model makes 5 at once, far from the 49"),
        (round_mask(frames=97), {"window": 97}, "Frames: the model makes 97 at once"),
        (boxes((300, 300), *[(100, 100, 80, 80)] * 49), {}, "Mask: a rectangle"),
    ],
)
def test_what_is_far_from_training_is_said(
    mask: Tensor, given: dict[str, object], words: str
) -> None:
    if "13 %" in words:
        assert notes(mask, **given) == "", "a whole frame scaled down is near enough here"
    else:
        assert words in notes(mask, **given)


def test_a_size_far_from_training_is_said() -> None:
    settings = resolve(MosaicBase.settings.defaults)
    plan = plan_edit(MosaicBase.settings, [round_mask()], settings=settings, size=(272, 272))
    assert "works at 272x272, far from the 96x96" in "\n".join(plan.notes)


def test_the_last_frame_is_repeated_for_the_model() -> None:
    plan = plan_edit(
        MosaicBase.settings, [round_mask(frames=50)], settings=resolve(MosaicBase.settings.defaults)
    )
    assert plan.frames == 53 and len(plan.crop.corners) == 53 and len(plan.masks[0]) == 53
