"""Synthetic clips: seeded, with exact masks; nothing of the test split occurs in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from genhoi.data import sprites, synthetic
from genhoi.data.sample import HOISample
from genhoi.data.synthetic import SyntheticHOI
from genhoi.media import media

pytest.importorskip("skimage", reason="scikit-image carries the photographs")

F, SIZE = 9, (64, 80)


def some(split: sprites.Split = "train", **options: object) -> SyntheticHOI:
    defaults: dict[str, object] = {"clips": 6, "frames": F, "size": SIZE}
    return SyntheticHOI(split, **defaults | options)  # type: ignore[arg-type]


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
    for names in (sprites.PHOTOGRAPHS, sprites.LETTERS):
        assert not set(names["train"]) & set(names["test"])
    pictures = {
        split: {x.object.numpy().tobytes() for x in some(split, clips=40, frames=1)}
        for split in ("train", "test")
    }
    assert len(pictures["train"]) == 40 and not pictures["train"] & pictures["test"]


def test_masks_are_what_they_say(samples: list[HOISample]) -> None:
    for sample in samples:
        object_, hand = sample.object_mask, sample.hand_mask
        assert object_ is not None and hand is not None and sample.object_boxes is not None
        assert not (object_ & hand).any()
        assert (sample.mask | ~(object_ | hand)).all(), "the mask covers both"
        share = sample.mask.float().mean((1, 2))
        assert share.min() > 0.03 and share.max() < 0.45
        assert hand.flatten(1).sum(1).min() > 40 and object_.flatten(1).sum(1).min() > 40
        for inside, box in zip(object_, sample.object_boxes.long().tolist(), strict=True):
            left, top, right, bottom = box
            outside = inside.clone()
            outside[top:bottom, left:right] = False
            assert not outside.any()


def test_fingers_lie_before_the_object(samples: list[HOISample]) -> None:
    """Some of the hand's pixels are where the object would be."""
    hidden = 0
    for i, sample in enumerate(samples):
        whole = some().coordinates(i, cell=1).abs().amax(-1) < 0.6
        assert sample.hand_mask is not None
        hidden += int((whole & sample.hand_mask).sum())
    assert hidden > 100


def test_coordinates_lie_on_the_object(samples: list[HOISample]) -> None:
    for i, sample in enumerate(samples):
        inside = some().coordinates(i, cell=1).abs().amax(-1) <= 1
        assert sample.object_mask is not None
        assert (inside | ~sample.object_mask).all()
    assert some().coordinates(0).shape == (F, SIZE[0] // 8, SIZE[1] // 8, 2)


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
        assert max(height, width) == 96 and min(height, width) > 60
        corner = sample.object[0, 0].int()
        assert (corner - 128).abs().max() <= 3
        assert sample.object[height // 2, width // 2].tolist() != [128, 128, 128]


def test_box_masks_are_rectangles(samples: list[HOISample]) -> None:
    boxed = some(mask="box")
    for tight, sample in zip(samples, boxed, strict=True):
        assert torch.equal(tight.clip.frames, sample.clip.frames)
        assert (sample.mask | ~tight.mask).all()
        for mask in sample.mask:
            assert int(mask.sum()) == int(mask.any(1).sum()) * int(mask.any(0).sum())
    mixed = [x.mask.sum() for x in some(mask="mixed", clips=12)]
    kinds = {
        "box" if int(m) == int(b.mask.sum()) else "tight"
        for m, b in zip(mixed, some(mask="box", clips=12), strict=True)
    }
    assert kinds == {"box", "tight"}


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
