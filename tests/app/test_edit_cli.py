"""`genhoi edit`: files in, files out, on the tiny base; kills, repeats, and every refusal."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from support.command_lines import command_line, options_of
from support.tiny_base import save_tiny_base

from genhoi import media
from genhoi.cli import main
from genhoi.media import Clip

ROOT = Path(__file__).parents[2]
RESULTS = ["attention.png", "edit.json", "edited.mp4", "sheet.png", "side_by_side.mp4"]
F, H, W = 11, 32, 48


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A clip of 11 frames, masks, objects, and finished frames."""
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 200, (H, W, 3), generator=draw, dtype=torch.uint8)
    media.write_clip(tmp_path / "video.mp4", Clip(frames.repeat(F, 1, 1, 1), 12))
    for name, left in (("mask", 0), ("mask2", 32)):
        mask = torch.zeros(F, H, W, dtype=torch.bool)
        mask[:, :16, left : left + 16] = True
        media.write_mask(tmp_path / f"{name}.mp4", mask, fps=12)
    for i, name in enumerate(("object", "object2")):
        media.write_image(tmp_path / f"{name}.png", frames[: 16 + i, 4 * i : 20])
    media.write_image(tmp_path / "finished.png", 255 - frames)
    media.write_image(tmp_path / "small.png", frames[:20])
    return tmp_path


def arguments(files: Path, *more: str) -> list[str]:
    command = command_line(
        "edit",
        video=files / "video.mp4",
        mask=files / "mask.mp4",
        object=files / "object.png",
        steps=2,
        window=5,
        out=files / "out",
        base="tiny-untrained",
    )
    return [*command, *more]


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def frames_of(files: Path) -> torch.Tensor:
    return media.read_clip(files / "out" / "edited.mp4").frames


def edited_hash(files: Path, out: str = "out") -> str:
    """A hash of the edited frames before a lossy codec took them, whose bytes may differ."""
    digest: str = json.loads((files / out / "edit.json").read_text())["edited_frames_sha256"]
    return digest


def refused(result: Result, *words: str) -> None:
    """One sentence, no traceback, exit code above 0."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.output.strip().splitlines()[-1].startswith("Error: "), result.output
    for word in words:
        assert word in result.output


# ------------------------------------------------------------------------------------- the whole


def test_files_in_files_out(files: Path) -> None:
    result = run(*arguments(files))
    assert result.exit_code == 0, result.output
    for phrase in ("UNTRAINED", "frame 0 is generated too", "the first 9 of 11", "edited.mp4"):
        assert phrase in result.output
    out = files / "out"
    assert sorted(p.name for p in out.iterdir()) == RESULTS
    edited = media.read_clip(out / "edited.mp4")
    assert edited.frames.shape == (9, H, W, 3) and edited.fps == 12
    both = media.read_clip(out / "side_by_side.mp4")
    assert both.frames.shape == (9, H, 2 * W, 3) and both.fps == 12
    source = media.read_clip(files / "video.mp4").frames[:9]
    assert (both.frames[:, :, :W].float() - source.float()).abs().mean() < 10
    record = json.loads((out / "edit.json").read_text())
    assert record["windows"] == [[0, 5], [4, 9]] and record["reference_passes"] == 1
    assert record["settings"]["guidance"] == 1 and record["keep_background"] is False
    assert record["base"]["trained"] is False and record["adapter"]["trained"] is False
    assert record["attachment"] == {"mask_gate": True, "flow_gate": "token", "schedule": "paper"}
    shares = record["attention"]["share_by_window_and_latent_frame"]
    assert shares["0"][0] > 0 and shares["1"][0] is None, "where windows join nothing is generated"
    with Image.open(out / "attention.png") as image:
        assert image.format == "PNG"
    assert set(record["inputs"]) == {"video", "mask 1", "object 1"}
    assert all(len(file["sha256"]) == 64 for file in record["inputs"].values())


def test_the_record_repeats_the_edit(files: Path) -> None:
    options = options_of(
        mask=files / "mask2.mp4",
        object=files / "object2.png",
        seed=3,
        first_frame=files / "finished.png",
        last_frame=files / "finished.png",
        prompt="a hand's cup",
        guidance=2,
        schedule=-1,
        preset="release",
        mask_rule="any",
        base=save_tiny_base(files / "base"),
    )
    more = [*options, "--strength", "2", "--strength", "0.5", "--keep-background"]
    result = run(*arguments(files, *more))
    assert result.exit_code == 0, result.output
    assert "frame 0 is generated" not in result.output and "Mask gate: off" in result.output
    record = json.loads((files / "out" / "edit.json").read_text())
    assert record["keep_background"] is True and record["first_frame_given"] is True
    assert record["settings"]["strengths"] == [2.0, 0.5]
    assert record["attachment"]["schedule"] == -1.0
    command = shlex.split(record["repeat"])
    assert command[0] == "genhoi"
    first = edited_hash(files)
    refused(run(*command[1:]), "exists already; --force")
    assert run(*command[1:], "--force").exit_code == 0
    assert edited_hash(files) == first


def test_a_seed_is_a_clip(files: Path) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(*arguments(files, "--seed", seed, "--out", f"{files}/{out}")).exit_code == 0
    assert edited_hash(files, "a") == edited_hash(files, "b") != edited_hash(files, "c")


def test_size_and_frames(files: Path) -> None:
    result = run(
        *arguments(
            files, "--size", "32x16", "--frames", "5", "--mask-rule", "any", "--dtype", "bfloat16"
        )
    )
    assert result.exit_code == 0, result.output
    assert "Size: 32x16, scaled from 48x32" in result.output
    assert frames_of(files).shape == (5, 16, 32, 3)


def test_a_base_in_diffusers_format(files: Path) -> None:
    base = save_tiny_base(files / "base")
    result = run(*arguments(files, "--base", str(base), "--frames", "5", "--prompt", "a hand"))
    assert result.exit_code == 0, result.output
    assert "Base:" not in result.output and "UNTRAINED" in result.output
    assert frames_of(files).shape == (5, H, W, 3)


def test_dry_run_computes_and_writes_nothing(files: Path) -> None:
    for base in ("tiny", "tiny-untrained", str(save_tiny_base(files / "base"))):
        result = run(*arguments(files, "--base", base, "--dry-run"))
        assert result.exit_code == 0, result.output
        for phrase in ("2: frames 0-4, 4-8", "2 x 2 x 3 = 12", "parameters", "about", "48x32"):
            assert phrase in result.output
        assert not (files / "out").exists()


# ---------------------------------------------------------------------------------------- resume


def start(files: Path) -> subprocess.Popen[bytes]:
    """An edit of many steps, in a process of its own, once it has finished its first window."""
    options = arguments(files, "--steps", "25", "--out", f"{files}/killed")
    process = subprocess.Popen(
        [sys.executable, "-m", "genhoi.cli", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A shell's background jobs ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = files / "killed" / ".unfinished" / "window-0000.npy"
    deadline = time.monotonic() + 60
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert first.exists()
    return process


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_edit_leaves_nothing_half_written_and_goes_on(
    files: Path, kind: signal.Signals
) -> None:
    process = start(files)
    process.send_signal(kind)
    try:
        said = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    if kind == signal.SIGINT:
        assert process.returncode == 130 and "The same command goes on" in said
    else:
        assert process.returncode == -kind
    killed = files / "killed"
    assert [p.name for p in killed.iterdir()] == [".unfinished"]
    assert (killed / ".unfinished" / "job.json").exists()

    options = arguments(files, "--steps", "25", "--out", f"{files}/killed")
    refused(run(*options, "--seed", "1"), "unfinished edit with other inputs or settings")
    (killed / ".unfinished" / ".window-0001.12345678.tmp.npy").write_text("cut off")
    # As if it had been killed while writing the results.
    (killed / "edited.mp4").write_text("of the same edit")
    (killed / ".edited.12345678.tmp.mp4").write_text("cut off")
    result = run(*options)
    assert result.exit_code == 0, result.output
    record = json.loads((killed / "edit.json").read_text())
    assert record["windows_of_an_earlier_run"] == 1
    assert sorted(p.name for p in killed.iterdir()) == RESULTS
    assert run(*arguments(files, "--steps", "25")).exit_code == 0
    assert edited_hash(files, "killed") == edited_hash(files)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "more, words",
    [
        (["--video", "none.mp4"], ["clip: there is no file or folder none.mp4"]),
        (["--mask", "none.mp4"], ["--mask: got 2, want 1, one for each --object"]),
        (["--object", "object2.png"], ["--mask: got 1, want 2"]),
        (["--frames", "8"], ["--frames: got 8, want 1 + 4 n"]),
        (["--frames", "13"], ["--frames: got 13, but the clip", "has only 11"]),
        (["--size", "48"], ["--size: got '48', want WIDTHxHEIGHT"]),
        (["--size", "40x32"], ["--size: got 40x32, want both sides multiples of 16"]),
        (["--first-frame", "small.png"], ["--first-frame", "is 48x20, want 48x32"]),
        (["--last-frame", "none.png"], ["there is no file or folder"]),
        (["--strength", "-1"], ["--strength: got [-1.0], wanted 1 positive"]),
        (["--strength", "1", "--strength", "2"], ["--strength: got [1.0, 2.0], wanted 1"]),
        (["--schedule", "fast"], ["--schedule: got 'fast', want paper, release"]),
        (["--steps", "0"], ["steps: got 0"]),
        (["--steps", "0", "--dry-run"], ["steps: got 0"]),
        (["--window", "7"], ["window: got 7, wanted 1 + 4 n"]),
        (["--window", "7", "--dry-run"], ["window: got 7, wanted 1 + 4 n"]),
        (["--shift", "-1"], ["shift: got -1.0"]),
        (["--offload", "model"], ["offload: got 'model' for base tiny-untrained"]),
        (["--base", "nothing-here"], ["base: there is no folder nothing-here", "46 GB"]),
        (["--base", "nothing-here", "--dry-run"], ["base: there is no folder nothing-here"]),
        (["--prompt", "a cup"], ["prompt: got 'a cup', wanted none"]),
        (["--guidance", "5"], ["guidance: got 5.0, wanted 1"]),
        (["--out", "video.mp4"], ["video.mp4 is a file, want a folder"]),
    ],
)
def test_refusals(
    files: Path, more: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    refused(run(*arguments(files, *more)), *words)
    assert not list((files / "out").glob("*.mp4"))


def test_a_mask_of_another_length_is_refused(files: Path) -> None:
    media.write_mask(files / "mask.mp4", torch.ones(7, H, W, dtype=torch.bool), overwrite=True)
    refused(run(*arguments(files)), "has 7 frames, but the clip", "want 11")


def test_an_empty_mask_is_refused(files: Path) -> None:
    media.write_mask(files / "mask.mp4", torch.zeros(F, H, W, dtype=torch.bool), overwrite=True)
    refused(run(*arguments(files)), "no token lies inside mask 1 of 1")


def test_a_missing_adapter_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def none(*_: object, **__: object) -> None:
        raise OSError("no such adapter")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", none)
    refused(run(*arguments(files, "--adapter", "nobody/nothing")), "no such adapter")


def test_the_command_does_not_load_diffusers_for_others() -> None:
    code = "import sys, genhoi, genhoi.cli.group; sys.exit('diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
