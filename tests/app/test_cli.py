"""The command line: end to end on a tiny clip, and every refusal as one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import genhoi_kernels
from genhoi.cli import common as cli_common
from genhoi.cli import group, main
from genhoi.media import media
from genhoi.media.media import Clip


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Options of a tiny `genhoi inspect`: 11 frames of 80 x 64, of which 9 get used."""
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 200, (64, 80, 3), generator=random, dtype=torch.uint8).repeat(
        11, 1, 1, 1
    )
    mask = torch.zeros(11, 64, 80, dtype=torch.bool)
    mask[:, 16:48, 32:64] = True
    frames[mask] = torch.tensor([230, 60, 30], dtype=torch.uint8)
    media.write_clip(tmp_path / "video.mp4", Clip(frames, 24))
    media.write_mask(tmp_path / "mask.mp4", mask)
    media.write_image(tmp_path / "object.png", frames[0, 16:48, 32:64])
    return [
        "inspect", "--video", str(tmp_path / "video.mp4"), "--mask", str(tmp_path / "mask.mp4"),
        "--object", str(tmp_path / "object.png"), "--out", str(tmp_path / "out"),
        "--heads", "2", "--head-dim", "16",
    ]  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def refused(result: Result, *words: str) -> None:
    """One sentence, no traceback, exit code above 0."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    for word in words:
        assert word in result.output


def test_inspect_end_to_end(inputs: list[str], tmp_path: Path) -> None:
    result = run(*inputs)
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert numbers["clip"]["frames"] == 9
    assert numbers["grid"] == [3, 4, 5]
    assert numbers["tokens_that_see_the_reference"] == 2 * 4
    with Image.open(tmp_path / "out" / "inspect.png") as image:
        assert image.format == "PNG"
    assert str(tmp_path / "out" / "inspect.png") in result.output
    assert str(tmp_path / "out" / "inspect.json") in result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["inspect.json", "inspect.png"]


def test_options_reach_the_computation(inputs: list[str], tmp_path: Path) -> None:
    options = [
        "--frames",
        "5",
        "--size",
        "48x32",
        "--mask-rule",
        "any",
        "--dtype",
        "bfloat16",
        "--backend",
        "eager",
    ]
    result = run(*inputs, *options)
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert numbers["grid"] == [2, 2, 3]
    assert (numbers["dtype"], numbers["mask_rule"]) == ("bfloat16", "any")
    assert numbers["environment"]["backend"] == "eager"


def test_large_clips_are_scaled_down_by_default(tmp_path: Path) -> None:
    clip = Clip(torch.zeros(5, 360, 640, 3, dtype=torch.uint8))
    assert cli_common.default_size(clip) == (256, 480)
    assert cli_common.default_size(Clip(torch.zeros(5, 100, 90, 3, dtype=torch.uint8))) == (96, 80)


def test_results_are_not_overwritten_and_this_is_said_at_once(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inspect.json").write_text("mine")

    def no_long_work(*_: object, **__: object) -> None:
        raise AssertionError("the check must come first")

    with monkeypatch.context() as patch:
        patch.setattr(cli_common, "read_clip", no_long_work)
        patch.setattr(group, "inspect_clip", no_long_work)
        refused(run(*inputs), "inspect.json exists already; --force overwrites it")
    assert (tmp_path / "out" / "inspect.json").read_text() == "mine"
    assert run(*inputs, "--force").exit_code == 0
    assert json.loads((tmp_path / "out" / "inspect.json").read_text())["heads"] == 2


def test_an_interruption_leaves_nothing_behind(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    result = run(*inputs)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--video", "nowhere.mp4"], ["nowhere.mp4"]),
        (["--object", "nowhere.png"], ["nowhere.png"]),
        (["--frames", "6"], ["--frames: got 6", "1 + 4 n"]),
        (["--frames", "21"], ["--frames: got 21", "has only 11"]),
        (["--size", "big"], ["--size: got 'big'"]),
        (["--size", "50x48"], ["--size: got 50x48", "multiples of 16"]),
        (["--head-dim", "15"], ["head_dim: got 15"]),
        (["--backend", "abacus"], ["abacus"]),
        (["--dtype", "int8"], ["int8"]),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    inputs: list[str], options: list[str], words: list[str]
) -> None:
    refused(run(*inputs, *options), *words)


def test_a_mask_of_another_length_is_refused(inputs: list[str], tmp_path: Path) -> None:
    mask = media.write_mask(tmp_path / "short.mp4", torch.ones(4, 64, 80, dtype=torch.bool))
    refused(run(*inputs, "--mask", str(mask)), "has 4 frames", "has 11")


def test_an_empty_mask_and_a_broken_video_are_refused(inputs: list[str], tmp_path: Path) -> None:
    mask = media.write_mask(tmp_path / "empty.mp4", torch.zeros(11, 64, 80, dtype=torch.bool))
    refused(run(*inputs, "--mask", str(mask)), "no token after frame 0")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    refused(run(*inputs, "--video", str(tmp_path / "broken.mp4")), "broken.mp4")


def test_a_missing_option_is_named() -> None:
    refused(run("inspect"), "--video")


def test_doctor_lists_every_backend_and_version() -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for status in genhoi_kernels.backends():
        assert status.name in result.output
    for word in (torch.__version__, genhoi_kernels.__version__, "triton", "flash-attn", "python"):
        assert word in result.output


def test_version() -> None:
    assert run("--version").output.strip() == f"genhoi, version {genhoi_kernels.__version__}"
