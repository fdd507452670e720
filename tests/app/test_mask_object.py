"""`genhoi object`: cut-outs by transparency and by GrabCut, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from genhoi.cli import main
from genhoi.media import read_image

GREY = [128, 128, 128]
BLUE = (10, 40, 170)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A blue rectangle, 30 x 40, on noisy sand."""
    random = np.random.default_rng(0)
    pixels = random.integers(150, 220, (90, 120, 3), dtype=np.uint8)
    pixels[30:70, 50:80] = BLUE
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def run(photo: Path, *arguments: str) -> Result:
    out = ("--out", str(photo.parent / "object.png")) if "--out" not in arguments else ()
    return CliRunner().invoke(main, ["object", str(photo), *out, *arguments])


def test_a_box_cuts_the_object_out_onto_grey(photo: Path) -> None:
    result = run(photo, "--box", "46,26,38,48", "--size", "96x48")
    assert result.exit_code == 0, result.output
    image = read_image(photo.parent / "object.png")
    assert abs(image.shape[0] - 44) <= 4 and abs(image.shape[1] - 34) <= 4
    assert image[0, 0].tolist() == GREY == image[-1, -1].tolist()
    assert image[image.shape[0] // 2, image.shape[1] // 2].tolist() == list(BLUE)
    preview = read_image(photo.parent / "object-preview.png")
    assert preview.shape == (48, 96, 3) and preview[0, 0].tolist() == GREY
    assert "assumed" not in result.output


def test_without_a_box_one_is_assumed_and_said(photo: Path) -> None:
    result = run(photo, "--base", "mosaic-untrained")
    assert result.exit_code == 0, result.output
    assert "No box was given" in result.output
    assert read_image(photo.parent / "object-preview.png").shape == (96, 96, 3)  # the base's


def test_transparency_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[10:30, 20:50] = (*BLUE, 255)
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    result = run(tmp_path / "cut.png")
    assert result.exit_code == 0, result.output
    assert "assumed" not in result.output
    image = read_image(tmp_path / "object.png")
    assert image.shape == (22, 32, 3)
    assert image[1:-1, 1:-1].reshape(-1, 3).unique(dim=0).tolist() == [list(BLUE)]


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    pixels = np.full((40, 80, 3), 200, np.uint8)
    pixels[10:30, 50:70] = BLUE
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown a quarter turn to the right: (x, y) is at (39 - y, x)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=turned)
    result = run(tmp_path / "photo.png", "--box", "6,46,28,28")
    assert result.exit_code == 0, result.output
    image = read_image(tmp_path / "object.png")
    assert abs(image.shape[0] - 22) <= 2 and abs(image.shape[1] - 22) <= 2


@pytest.mark.parametrize(("side", "word"), [(2, "nearly nothing"), (98, "nearly everything")])
def test_doubtful_cut_outs_are_said(tmp_path: Path, side: int, word: str) -> None:
    pixels = np.zeros((100, 100, 4), np.uint8)
    pixels[1 : 1 + side, 1 : 1 + side] = (*BLUE, 255)
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    assert word in run(tmp_path / "cut.png").output


def test_refusals(photo: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    Image.fromarray(np.zeros((20, 20, 4), np.uint8)).save(empty)
    for path, arguments, words in (
        (photo, ("--box", "100,10,40,40"), "within the picture's 120x90 pixels"),
        (photo, ("--box", "1,2,x,4"), "--box: got '1,2,x,4', want x,y,w,h"),
        (photo, ("--size", "50x50"), "multiples of 16"),
        (photo, ("--out", "object.mp4"), "want a name ending in .png"),
        (tmp_path / "none.jpg", (), "there is no file or folder"),
        (empty, (), "found no object"),
    ):
        result = run(path, *arguments)
        assert result.exit_code == 1, result.output
        assert result.output.splitlines()[-1].startswith("Error: ") and words in result.output
    assert not (tmp_path / "object.png").exists()


def test_an_existing_picture_is_kept_unless_forced(photo: Path) -> None:
    target = photo.parent / "object.png"
    target.write_text("mine")
    assert "exists already" in run(photo).output
    assert target.read_text() == "mine"
    assert run(photo, "--force").exit_code == 0
    assert torch.is_tensor(read_image(target))
