"""The cup clip: deterministic, with a mask that fits and an object that is in it."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from genhoi import media
from genhoi.data import cup

pytest.importorskip("skimage", reason="scikit-image carries the photographs")


@pytest.fixture(scope="module")
def made() -> cup.SyntheticClip:
    return cup.make_hoi_clip(num_frames=9, height=136, width=240)


def test_shapes_and_rate(made: cup.SyntheticClip) -> None:
    assert made.clip.frames.shape == (9, 136, 240, 3)
    assert made.clip.fps == 24
    assert made.mask.shape == (9, 136, 240) and made.mask.dtype == torch.bool
    assert made.object.shape[2] == 4


def test_it_is_the_same_every_time(made: cup.SyntheticClip) -> None:
    again = cup.make_hoi_clip(num_frames=9, height=136, width=240)
    assert torch.equal(again.clip.frames, made.clip.frames)
    assert torch.equal(again.mask, made.mask)
    assert torch.equal(again.object, made.object)


def test_the_mask_has_the_share_of_a_real_clip_and_moves(made: cup.SyntheticClip) -> None:
    share = made.mask.float().mean((1, 2))
    assert share.min() > 0.03 and share.max() < 0.16
    columns = made.mask.float().sum(1) @ torch.arange(240.0) / made.mask.float().sum((1, 2))
    assert columns.max() - columns.min() > 0.25 * 240


def test_the_cup_is_inside_the_mask(made: cup.SyntheticClip) -> None:
    """Its coffee is the clip's only area of that orange, outside the suit in the lower third."""
    red, green, blue = made.clip.frames.float().unbind(-1)
    coffee = (red > 170) & (green > 70) & (green < 140) & (blue < 60)
    coffee[:, 95:] = False
    assert coffee.sum() > 500
    assert (coffee & made.mask).sum() > 0.8 * coffee.sum()


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_frames: got 0"):
        cup.make_hoi_clip(num_frames=0)
    with pytest.raises(ValueError, match="size: got 8x272"):
        cup.make_hoi_clip(width=8)


def test_a_missing_scikit_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_skimage(name, *rest, **named):  # type: ignore[no-untyped-def]
        if name.startswith("skimage"):
            raise ModuleNotFoundError("no skimage here", name=name)
        return real(name, *rest, **named)

    cup._photograph.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_skimage)
    with pytest.raises(ImportError, match=r"needs scikit-image \(pip install"):
        cup._photograph("coffee")


def test_the_command_writes_three_files_and_asks_before_overwriting(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "clip"), "--frames", "5", "--size", "96x64"]
    result = CliRunner().invoke(cup.main, arguments)
    assert result.exit_code == 0, result.output
    clip = media.read_clip(tmp_path / "clip" / "video.mp4")
    assert clip.frames.shape == (5, 64, 96, 3)
    assert media.read_mask(tmp_path / "clip" / "mask.mp4", like=clip).any((1, 2)).all()
    assert media.read_image(tmp_path / "clip" / "object.png").ndim == 3
    again = CliRunner().invoke(cup.main, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.output and "Traceback" not in again.output
    assert CliRunner().invoke(cup.main, [*arguments, "--force"]).exit_code == 0


def test_the_command_refuses_a_bad_size(tmp_path: Path) -> None:
    result = CliRunner().invoke(cup.main, ["--out", str(tmp_path), "--size", "large"])
    assert result.exit_code == 1
    assert "want WIDTHxHEIGHT" in result.output
