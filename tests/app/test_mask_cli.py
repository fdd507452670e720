"""`genhoi mask`: end to end on a small clip, and every refusal as one sentence before any work."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from support.tiny_sam import save_tiny_sam2

from genhoi.cli import main
from genhoi.cli.progress import progress_bar
from genhoi.masking.areas import grown_frames
from genhoi.masking.cues import Box, Text
from genhoi.masking.protocol import Track
from genhoi.media import Clip, read_clip, read_image, read_mask, write_clip, write_image, write_mask

HEIGHT, WIDTH = 48, 80


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Five frames of a red square that moves over noise, without loss."""
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(90, 150, (HEIGHT // 4, WIDTH // 4, 3), generator=random)
    frames = frames.to(torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1)
    frames = frames.repeat(5, 1, 1, 1)
    for frame in range(5):
        frames[frame, 14:34, 20 + 2 * frame : 44 + 2 * frame] = torch.tensor(
            [210, 30, 20], dtype=torch.uint8
        )
    return write_clip(tmp_path / "clip", Clip(frames))


def run(video: Path, out: Path, *arguments: str) -> Result:
    options = ["mask", "--video", str(video), "--out", str(out), *arguments]
    return CliRunner().invoke(main, options)


def refused(result: Result, *words: str) -> None:
    """One sentence, no traceback, exit code above 0."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    for word in words:
        assert word in result.output


def test_a_box_gives_mask_overlay_picture_and_table(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "mask.mp4"
    result = run(video, out, "--box", "18,12,28,24", "--grow", "2")
    assert result.exit_code == 0, result.output
    clip = read_clip(video)
    mask = read_mask(out, like=clip)
    with (out.parent / "mask-areas.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["pixels"]) for row in rows] == mask.sum((1, 2)).tolist()
    assert [row["state"] for row in rows] == ["cue", *["tracked"] * 4]
    assert all(int(row["tracked_pixels"]) < int(row["pixels"]) for row in rows)
    assert read_clip(out.parent / "mask-overlay.mp4").frames.shape == clip.frames.shape
    assert read_image(out.parent / "mask-preview.png").shape[1] > 4 * 300
    assert "lost" not in result.output


def test_json_and_lines_of_progress(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(progress_bar.__kwdefaults__, "seconds", 0.0)
    result = run(video, tmp_path / "mask.mp4", "--box", "18,12,28,24", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["frames"] == 5 and record["lost"] == []
    assert Path(record["files"]["mask"]) == tmp_path / "mask.mp4"
    assert "100%" in result.stderr and "left" in result.stderr


def test_a_frame_with_its_coordinates(video: Path, tmp_path: Path) -> None:
    result = run(video, tmp_path / "mask.mp4", "--rulers", "3")
    assert result.exit_code == 0, result.output
    assert "--box x,y,w,h" in result.output and "@3" in result.output
    assert [p.name for p in tmp_path.glob("mask*")] == ["mask-rulers.png"]
    picture = read_image(tmp_path / "mask-rulers.png").float()
    red = (picture[..., 0] > 150) & (picture[..., 1] < 90)
    columns = red.any(0).nonzero().flatten()
    left = 26 / WIDTH  # of the square in frame 3, in a picture that is little wider than the frame
    assert abs(float(columns.min()) / picture.shape[1] - left) < 0.05
    refused(run(video, tmp_path / "mask.mp4", "--rulers", "5", "--force"), "want 0 to 4")


def test_a_mask_from_a_folder_to_a_folder_as_boxes(video: Path, tmp_path: Path) -> None:
    drawn = torch.zeros(1, 2 * HEIGHT, 2 * WIDTH).bool()
    drawn[:, 28:68, 44:92] = True  # of frame 1, at twice the size
    write_mask(tmp_path / "drawn", drawn)
    picture = next((tmp_path / "drawn").iterdir())
    out = tmp_path / "masks"
    cues = ["--from", f"{picture}@1", "--not-point", "70,40@2"]
    result = run(video, out, *cues, "--kind", "box", "--frames", "3")
    assert result.exit_code == 0, result.output
    mask = read_mask(out)
    assert mask.shape == (3, HEIGHT, WIDTH)
    for plane in mask:
        assert plane.sum() == plane.any(0).sum() * plane.any(1).sum() > 0


def test_lost_frames_are_said_with_what_to_do(video: Path, tmp_path: Path) -> None:
    frames = read_clip(video).frames.clone()
    frames[3:] = 40  # a cut to black
    write_clip(tmp_path / "cut", Clip(frames))
    result = run(tmp_path / "cut", tmp_path / "mask", "--box", "18,12,28,24")
    assert result.exit_code == 0, result.output
    assert "Warning: lost in 2 of 5 frames" in result.output and "3-4" in result.output
    assert "--box x,y,w,h@3" in result.output


def test_a_mask_that_runs_out_is_warned_of() -> None:
    mask = torch.zeros(5, HEIGHT, WIDTH, dtype=torch.bool)
    mask[:, :10, :10] = True
    mask[2:4, :20, :10] = True
    track = Track(mask, torch.ones(5), torch.zeros(5, dtype=torch.bool))
    assert grown_frames(track, [Box(0, 0, 10, 10)]) == [2, 3]
    assert grown_frames(track, [Box(0, 0, 10, 10), Box(0, 0, 20, 10, frame=2)]) == []
    assert grown_frames(track, [Text("mug")]) == []


def test_a_model_from_a_folder(video: Path, tmp_path: Path) -> None:
    model = save_tiny_sam2(tmp_path / "sam2")
    out = tmp_path / "mask.mp4"
    arguments = ["--model", str(model), "--box", "18,12,28,24@1", "--point", "30,24@1"]
    result = run(video, out, *arguments, "--frames", "3")
    assert result.exit_code == 0, result.output
    assert read_mask(out).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "want --box, --point, --from, or --text with --model; --rulers 0"),
        (["--box", "1,2,3"], "--box: got '1,2,3', want x,y,w,h"),
        (["--box", "1,2,nan,4"], "--box: got '1,2,nan,4'"),
        (["--box", "1,2,3,4@x"], "want x,y,w,h@frame"),
        (["--box", "70,2,30,4"], "box 70,2,30,4@0: reaches outside the frame"),
        (["--box", "1,2,30,4@5"], "got frame 5, want 0 to 4"),
        (["--point", "5"], "--point: got '5', want x,y"),
        (["--not-point", "5,5"], "cues: got none that says where the thing is"),
        (["--text", "mug"], "the built-in engine knows no words"),
        (["--from", "nowhere.png@2"], "there is no file or folder nowhere.png"),
        (["--box", "1,1,9,9", "--model", "nowhere"], "nothing is downloaded unasked"),
        (["--box", "1,1,9,9", "--out", "mask.png"], "want a name ending in .mp4"),
        (["--box", "1,1,9,9", "--device", "cuda"], "got cuda without --model"),
        (["--box", "1,1,9,9", "--device", "gpu", "--model", "x"], "device: got gpu, want cpu"),
    ],
)
def test_refusals(video: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    refused(run(video, tmp_path / "mask.mp4", *arguments), words)
    assert not list(tmp_path.glob("mask*"))


def test_a_drawn_mask_of_another_shape_is_refused(video: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "square.png", torch.full((50, 50, 3), 255, dtype=torch.uint8))
    result = run(video, tmp_path / "mask.mp4", "--from", str(tmp_path / "square.png"))
    refused(result, "is 50x50, another shape than the clip's 80x48")


@pytest.mark.parametrize("name", ["mask.mp4", "mask-overlay.mp4", "mask-areas.csv"])
def test_existing_results_are_kept_unless_forced(video: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    arguments = ("--box", "18,12,28,24", "--frames", "1")
    refused(run(video, tmp_path / "mask.mp4", *arguments), f"{name} exists already", "--force")
    assert (tmp_path / name).read_text() == "mine"
    assert run(video, tmp_path / "mask.mp4", *arguments, "--force").exit_code == 0
