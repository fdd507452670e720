"""Synthetic clips: seeded, with exact masks; nothing of the test split occurs in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn import functional

from genhoi import media
from genhoi.data import synthetic
from genhoi.data.labels import LETTERS
from genhoi.data.photographs import PHOTOGRAPHS, Split
from genhoi.data.sample import HOISample
from genhoi.data.scene import Scene
from genhoi.data.synthetic import SyntheticHOI

pytest.importorskip("skimage", reason="scikit-image carries the photographs")

F, SIZE = 9, (64, 80)


def some(split: Split = "train", **options: object) -> SyntheticHOI:
    defaults: dict[str, object] = {"clips": 6, "frames": F, "size": SIZE}
    return SyntheticHOI(split, **defaults | options)  # type: ignore[arg-type]


def scene(seed: int, *, frames: int = 5, split: Split = "train") -> Scene:
    return Scene(np.random.default_rng(seed), split, frames, SIZE)


@pytest.fixture(scope="module")
def samples() -> list[HOISample]:
    return list(some())


def test_shapes(samples: list[HOISample]) -> None:
    """`HOISample` checks the rest."""
    assert len(samples) == len(some()) == 6
    for sample in samples:
        assert sample.clip.frames.shape == (F, *SIZE, 3)
        assert sample.object_mask is not None and sample.hand_mask is not None


def test_a_sample_depends_on_its_index_alone(samples: list[HOISample]) -> None:
    again = some(clips=100)[3]
    assert torch.equal(again.clip.frames, samples[3].clip.frames)
    assert torch.equal(again.object, samples[3].object) and again.name == samples[3].name
    for other in (some(seed=1)[3], some("test")[3], samples[2]):
        assert not torch.equal(other.clip.frames, samples[3].clip.frames)
        assert not torch.equal(
            other.object.float().mean((0, 1)), samples[3].object.float().mean((0, 1))
        )


def test_the_splits_have_nothing_in_common() -> None:
    for names in (PHOTOGRAPHS, LETTERS):
        assert not set(names["train"]) & set(names["test"])
    pictures = {
        split: {x.object.numpy().tobytes() for x in some(split, clips=20, frames=1, size=(32, 32))}
        for split in ("train", "test")
    }
    assert len(pictures["train"]) == 20 and not pictures["train"] & pictures["test"]


def test_masks_are_what_they_say(samples: list[HOISample]) -> None:
    for sample in samples:
        object_, hand = sample.object_mask, sample.hand_mask
        assert object_ is not None and hand is not None and sample.object_boxes is not None
        assert not (object_ & hand).any()
        assert (sample.mask | ~(object_ | hand)).all(), "the mask covers both"
        share = sample.mask.float().mean((1, 2))
        assert share.min() > 0.08 and share.max() < 0.6
        assert hand.flatten(1).sum(1).min() > 40 and object_.flatten(1).sum(1).min() > 150
        for inside, box in zip(object_, sample.object_boxes.long().tolist(), strict=True):
            left, top, right, bottom = box
            outside = inside.clone()
            outside[top:bottom, left:right] = False
            assert not outside.any()


def test_the_hand_hides_what_a_drawing_without_it_shows() -> None:
    """The object's pixels are those without a hand, less the hand's; fingers lie before it."""
    hidden = 0
    for seed in range(5):
        frames, object_, hand, boxes = scene(seed).draw()
        alone, whole, none, same = scene(seed).draw(hand=False)
        assert not none.any() and torch.equal(boxes, same)
        assert (whole & ~hand | ~object_).all()
        # The rest is behind the arm, which belongs to neither.
        assert int((whole & ~hand & ~object_).sum()) <= 0.02 * int(whole.sum())
        hidden += int((whole & hand).sum())
        untouched = whole & object_ & ~_near(hand, 6)
        apart = (frames.int() - alone.int()).abs().amax(-1)
        # The arm may have a small part of a pixel.
        assert untouched.any() and float((apart[untouched] > 0).float().mean()) < 0.03
        assert float(apart[hand].float().mean()) > 10
    assert hidden > 1000


def _near(mask: Tensor, pixels: int) -> Tensor:
    return functional.max_pool2d(mask.float()[:, None], 2 * pixels + 1, 1, pixels)[:, 0] > 0


def test_boxes_hold_the_whole_object_and_no_more() -> None:
    _, whole, _, boxes = scene(3).draw(hand=False)
    for inside, (left, top, right, bottom) in zip(whole, boxes.long().tolist(), strict=True):
        columns, rows = inside.any(0).nonzero()[:, 0], inside.any(1).nonzero()[:, 0]
        assert (left, right) == (int(columns[0]), int(columns[-1]) + 1)
        assert (top, bottom) == (int(rows[0]), int(rows[-1]) + 1)


def test_the_arm_is_background() -> None:
    """It is drawn and reaches the frame's edge, where no hand is, and no mask covers it."""
    arms = 0
    for seed in range(6):
        drawn = scene(seed)
        with_arm, object_, hand, _ = drawn.draw()
        without, *_ = scene(seed).draw(hand=False)
        changed = (with_arm.int() - without.int()).abs().amax(-1) > 20
        edge = torch.ones(SIZE, dtype=torch.bool)
        edge[2:-2, 2:-2] = False
        arms += int((changed & edge & ~object_ & ~hand).flatten(1).any(1).all())
    assert arms >= 4


def test_the_object_turns_and_its_picture_is_from_another_side() -> None:
    beyond = 0
    for seed in range(30):
        drawn = scene(seed, frames=49)
        start, picture = np.degrees(drawn.yaw[0]), np.degrees(drawn.picture_angles[0])
        assert 14.9 < abs(picture - start) < 40.1 and abs(picture) < 32.1
        assert np.degrees(np.abs(drawn.yaw).max()) <= 40
        beyond += np.degrees(np.ptp(drawn.yaw)) > 10
    assert beyond > 20


def test_hand_object_light_and_background_move(samples: list[HOISample]) -> None:
    for sample in samples:
        frames = sample.clip.frames.float()
        still = ~(sample.mask[0] | sample.mask[-1])
        assert (frames[0] - frames[-1])[still].abs().mean() > 2
        assert (sample.mask[0] ^ sample.mask[-1]).sum() > 50
    smooth = some(frames=49)[0].clip.frames.float()
    steps = (smooth[1:] - smooth[:-1]).abs().mean((1, 2, 3))
    assert steps.max() < 3 * steps.mean(), "no jumps"


def test_the_picture_shows_the_object_upright_on_grey(samples: list[HOISample]) -> None:
    for sample in samples:
        height, width, _ = sample.object.shape
        assert 96 <= max(height, width) <= 135 and min(height, width) > 45
        edge = torch.cat(
            [sample.object[[0, -1]].flatten(0, 1), sample.object[:, [0, -1]].flatten(0, 1)]
        )
        assert (edge == 128).all(), "nothing is cut"
        assert sample.object[height // 2, width // 2].tolist() != [128, 128, 128]
        filled = (sample.object != 128).any(-1)
        assert float(filled.float().mean()) > 0.4


def test_box_masks_are_rectangles(samples: list[HOISample]) -> None:
    boxed = some(mask="box")
    for tight, sample in zip(samples, boxed, strict=True):
        assert torch.equal(tight.clip.frames, sample.clip.frames)
        assert (sample.mask | ~tight.mask).all()
        for mask in sample.mask:
            assert int(mask.sum()) == int(mask.any(1).sum()) * int(mask.any(0).sum())


def test_grown_masks_are_wider_by_some_pixels(samples: list[HOISample]) -> None:
    """By 4 to 12 where the shorter side is 128, so 2 to 6 here; dents may be filled."""
    reached = set()
    for tight, sample in zip(samples, some(mask="grown"), strict=True):
        assert tight.object_mask is not None and tight.hand_mask is not None
        assert torch.equal(tight.clip.frames, sample.clip.frames)
        assert (sample.mask | ~tight.mask).all()
        seen, area = tight.object_mask | tight.hand_mask, int(sample.mask.sum())
        beyond = [int((sample.mask & ~_near(seen, k)).sum()) / area for k in range(10)]
        assert beyond[1] > 0.03 and beyond[6] < 0.01 and beyond[9] == 0
        reached.add(next(k for k in range(10) if beyond[k] < 0.01))
    assert len(reached) > 1


def test_mixed_masks_are_of_all_kinds() -> None:
    options = {"clips": 10, "frames": 1, "size": (48, 48)}
    plain = {kind: some(mask=kind, **options) for kind in ("tight", "box")}
    kinds = []
    for i, sample in enumerate(some(mask="mixed", **options)):
        same = [kind for kind, clips in plain.items() if torch.equal(clips[i].mask, sample.mask)]
        kinds.append(same[0] if same else "grown")
    assert set(kinds) == {"tight", "box", "grown"}


@pytest.mark.parametrize(("frames", "size"), [(1, (32, 32)), (2, (96, 96)), (3, (272, 480))])
def test_other_sizes_and_lengths(frames: int, size: tuple[int, int]) -> None:
    sample = some("test", frames=frames, size=size, mask="grown")[1]
    assert sample.clip.frames.shape == (frames, *size, 3)
    assert sample.object_mask is not None and sample.hand_mask is not None
    for part in (sample.object_mask, sample.hand_mask):
        assert part.flatten(1).any(1).all()
    assert not sample.mask.all()


def test_a_clip_drawn_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many frames are drawn at once changes rounding alone."""
    once = scene(4, frames=7).draw()
    monkeypatch.setattr("genhoi.data.scene._CHUNK", 3 * 4 * SIZE[0] * SIZE[1])
    pieces = scene(4, frames=7).draw()
    apart = (once[0].int() - pieces[0].int()).abs()
    assert float((apart > 1).float().mean()) < 1e-3
    for one, other in zip(once[1:3], pieces[1:3], strict=True):
        assert int((one ^ other).sum()) <= 5


def test_the_fingerprint_names_what_samples_depend_on() -> None:
    prints = {
        some(**options).fingerprint()  # type: ignore[arg-type]
        for options in ({}, {"seed": 1}, {"mask": "grown"}, {"size": (64, 64)}, {"clips": 7})
    }
    assert len(prints) == 5 and all(text.startswith("synthetic 2: train") for text in prints)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mask": "round"}, "mask: got 'round'"),
        ({"frames": 0}, "wanted at least 0 and 1"),
        ({"size": (16, 64)}, "size: got"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        some(**options)
    with pytest.raises(ValueError, match="split: got 'all'"):
        some("all")  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="got 6, wanted 0 to 5"):
        some()[6]


def test_the_command(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "a"), "--frames", "5", "--size", "64x48", "--index", "2"]
    result = CliRunner().invoke(synthetic.main, arguments)
    assert result.exit_code == 0, result.output
    clip = media.read_clip(tmp_path / "a" / "video.mp4")
    wanted = SyntheticHOI("test", clips=3, frames=5, size=(48, 64))[2]
    assert clip.frames.shape == (5, 48, 64, 3)
    assert (clip.frames.float() - wanted.clip.frames.float()).abs().mean() < 12
    again = CliRunner().invoke(synthetic.main, arguments)
    assert again.exit_code == 1 and "exists already" in again.output
    assert CliRunner().invoke(synthetic.main, [*arguments, "--force"]).exit_code == 0
    bad = CliRunner().invoke(synthetic.main, ["--out", str(tmp_path), "--size", "large"])
    assert bad.exit_code == 1 and "want WIDTHxHEIGHT" in bad.output
