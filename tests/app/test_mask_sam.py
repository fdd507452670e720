"""SAM 2 and SAM 3 through their real classes, with small random weights from a folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_sam import save_tiny_sam2, save_tiny_sam3

from genhoi import extras
from genhoi.masking import Box, Cue, Drawn, Point, Text, track_mask
from genhoi.masking.sam import SAMEngine
from genhoi.media import Clip

HEIGHT, WIDTH = 40, 60


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture
def without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SAM 3 run where torchvision is missing: its parts ask for it unused."""
    package = importlib.import_module("transformers.models.sam3")
    module = importlib.import_module("transformers.models.sam3.modeling_sam3")
    for name in ("Sam3Model", "Sam3VisionModel", "Sam3ViTModel"):
        monkeypatch.setattr(package, name, getattr(module, name), raising=False)
    there = extras.is_installed
    monkeypatch.setattr(extras, "is_installed", lambda name: name == "torchvision" or there(name))


@pytest.fixture
def sam3(without_torchvision: None, tmp_path: Path) -> Path:
    return save_tiny_sam3(tmp_path / "sam3")


@pytest.fixture
def clip() -> Clip:
    random = torch.Generator().manual_seed(0)
    shape = (4, HEIGHT, WIDTH, 3)
    return Clip(torch.randint(0, 256, shape, generator=random, dtype=torch.uint8))


def square() -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH).bool()
    mask[8:32, 12:44] = True
    return mask


def test_sam2_takes_boxes_points_and_drawn_masks(sam2: Path, clip: Clip) -> None:
    kinds: list[list[Cue]] = [
        [Box(10, 10, 20, 20, 2)],
        [Box(10, 10, 20, 20), Box(40, 10, 10, 20), Point(45, 15), Point(5, 5, inside=False)],
        [Point(15, 15, 1), Point(50, 30, 3, inside=False)],
    ]
    for cues in kinds:
        found = track_mask(clip, cues, engine=SAMEngine(sam2))
        assert found.mask.shape == clip.frames.shape[:3] and found.mask.dtype == torch.bool
        assert torch.equal(found.lost, ~found.mask.flatten(1).any(1))
        assert (found.confidence[found.lost] == 0).all()


def test_sam_keeps_a_drawn_mask_on_its_frame(sam2: Path, clip: Clip) -> None:
    """It goes in and comes out at the clip's size; the other frames are the random weights' own."""
    seen: list[int] = []
    found = track_mask(
        clip,
        [Drawn(square(), frame=1)],
        engine=SAMEngine(sam2),
        progress=lambda done, total, what: seen.append(done),
    )
    union = (found.mask[1] | square()).sum()
    assert (found.mask[1] & square()).sum() / union > 0.85
    assert seen[-1] == clip.num_frames


def test_sam3_finds_words_and_its_tracker_takes_drawn_masks(sam3: Path, clip: Clip) -> None:
    engine = SAMEngine(sam3)
    words = track_mask(clip, [Text("hand, mug")], engine=engine)
    assert not words.lost.any() and (words.confidence > 0).all()
    drawn = track_mask(clip, [Drawn(square())], engine=engine)
    assert (drawn.mask[0] & square()).sum() / (drawn.mask[0] | square()).sum() > 0.85
    track_mask(clip, [Box(10, 10, 20, 20, 1), Point(15, 15, 3)], engine=engine)
    with pytest.raises(ValueError, match="got other cues beside it"):
        track_mask(clip, [Text("mug"), Point(1, 1)], engine=engine)


def test_sam3_asks_for_torchvision(sam3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: name != "torchvision")
    with pytest.raises(ImportError, match=r"SAM 3 needs torchvision .*genhoi-kernels\[sam\]"):
        SAMEngine(sam3)


def test_missing_weights_are_said_with_how_to_fetch_them(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "facebook/sam2.1-hiera-small"):
        with pytest.raises(FileNotFoundError, match=r"nothing is downloaded.*hf download .* MB"):
            SAMEngine(name)


def refusals() -> list[Any]:
    return [
        ([Text("mug")], "knows no words, want SAM 3"),
        ([Box(1, 1, 9, 9), Box(20, 1, 9, 9), Box(1, 1, 9, 9, 2)], "got 2, 1 on frames 0, 2"),
        ([Drawn(square()), Point(1, 1)], "got other cues of this frame"),
    ]


@pytest.mark.parametrize(("cues", "words"), refusals())
def test_cues_that_sam2_cannot_take(sam2: Path, clip: Clip, cues: list[Cue], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        track_mask(clip, cues, engine=SAMEngine(sam2))


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a bert, want one of sam2_video"):
        SAMEngine(tmp_path)
