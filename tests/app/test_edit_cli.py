"""`genhoi edit`: files in, files out, on a mosaic base; kills, repeats, and every refusal."""

from __future__ import annotations

import hashlib
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
from support.sound import add_sound, sound_packets
from support.tiny_base import save_tiny_base

from genhoi import GenHOIPipeline, media
from genhoi.cli import main
from genhoi.cli.progress import progress_bar
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
        base="mosaic-untrained",
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
    """All 11 frames, though the model makes 13 of them."""
    result = run(*arguments(files))
    assert result.exit_code == 0, result.output
    for phrase in ("UNTRAINED", "frame 0 is generated too", "no tool for real clips", "edited.mp4"):
        assert phrase in result.output
    out = files / "out"
    assert sorted(p.name for p in out.iterdir()) == RESULTS
    edited = media.read_clip(out / "edited.mp4")
    assert edited.frames.shape == (F, H, W, 3) and edited.fps == 12
    both = media.read_clip(out / "side_by_side.mp4")
    assert both.frames.shape == (F, H, 2 * W, 3) and both.fps == 12
    source = media.read_clip(files / "video.mp4").frames
    assert (both.frames[:, :, :W].float() - source.float()).abs().mean() < 10
    assert (edited.frames[:, 24:].float() - source[:, 24:].float()).abs().mean() < 10, "kept"
    record = json.loads((out / "edit.json").read_text())
    assert record["windows"] == [[0, 5], [4, 9], [8, 13]] and record["reference_passes"] == 1
    settings = record["settings"]
    assert settings["guidance"] == 1 and settings["overlap"] == 1
    assert settings["keep_background"] is True and settings["crop"] == "auto"
    assert record["crop"] is None and record["size"] == {"width": W, "height": H}
    assert record["sound"] is False and record["drift"]["source"]["colour_delta_e"] < 1
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
        frames=9,
        overlap=1,
        base=save_tiny_base(files / "base"),
    )
    more = [*options, "--strength", "2", "--strength", "0.5", "--no-keep-background"]
    more += ["--untrained-adapter", "--match-colour", "--crop", "none"]
    result = run(*arguments(files, *more))
    assert result.exit_code == 0, result.output
    assert "frame 0 is generated" not in result.output and "Mask gate: off" in result.output
    record = json.loads((files / "out" / "edit.json").read_text())
    assert record["settings"]["keep_background"] is False and record["first_frame_given"] is True
    assert record["settings"]["match_colour"] is True and record["settings"]["crop"] == "none"
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
    """`--size` is the model's; the result keeps the clip's."""
    result = run(
        *arguments(
            files,
            *("--size", "32x16", "--crop", "none", "--frames", "6"),
            *("--mask-rule", "any", "--dtype", "bfloat16"),
        )
    )
    assert result.exit_code == 0, result.output
    assert "the first 6 of 11" in result.output
    assert "the model works at 32x16, and the result is scaled back to 48x32" in result.output
    assert frames_of(files).shape == (6, H, W, 3)


def test_a_base_in_diffusers_format(files: Path) -> None:
    base = ["--base", str(save_tiny_base(files / "base"))]
    more = [*base, "--frames", "5", "--prompt", "a hand"]
    refused(run(*arguments(files, *more)), "--adapter: got none", "--untrained-adapter")
    result = run(*arguments(files, *more, "--untrained-adapter"))
    assert result.exit_code == 0, result.output
    assert "Base:" not in result.output and "UNTRAINED" in result.output
    assert frames_of(files).shape == (5, H, W, 3)


def test_dry_run_computes_nothing_and_draws_a_preview(files: Path) -> None:
    for base in ("mosaic-untrained", str(save_tiny_base(files / "base"))):
        result = run(*arguments(files, "--base", base, "--dry-run", "--frames", "9"))
        assert result.exit_code == 0, result.output
        for phrase in ("2: frames 0-4, 4-8", "2 x 2 x 3 = 12", "parameters", "about", "48x32"):
            assert phrase in result.output
        assert [p.name for p in (files / "out").iterdir()] == ["preview.png"]
    with Image.open(files / "out" / "preview.png") as image:
        colours = {c for n, c in image.convert("RGB").getcolors(1 << 24) or [] if n > 50}
    assert (255, 45, 149) in colours and (128, 128, 128) in colours, "outline, and what is hidden"


def large(files: Path, *, sound: str | None = "aac") -> Path:
    """A clip of 240 x 128 pixels and 9 frames with a mask of 40 x 40, and a sound."""
    frames = torch.randint(60, 200, (9, 128, 240, 3), dtype=torch.uint8)
    media.write_clip(files / "large.mp4", Clip(frames, 12))
    if sound is not None:
        add_sound(files / "large.mp4", files / "loud.mp4", codec=sound)
    mask = torch.zeros(9, 128, 240, dtype=torch.bool)
    mask[:, 40:80, 150:190] = True
    media.write_mask(files / "large-mask.mp4", mask, fps=12)
    return files / ("large.mp4" if sound is None else "loud.mp4")


def test_a_large_clip_is_edited_in_a_box_and_keeps_its_size_rate_and_sound(files: Path) -> None:
    clip = large(files)
    options = options_of(video=clip, mask=files / "large-mask.mp4", steps=1, window=9)
    command = ["edit", *options, "--object", f"{files}/object.png", "--out", f"{files}/out"]
    result = run(*command, "--base", "mosaic-untrained")
    assert result.exit_code == 0, result.output
    assert "a box of 96x96 pixels around the mask, 30 % of the frame, at 96x96" in result.output
    edited, source = frames_of(files), media.read_clip(clip)
    assert edited.shape == source.frames.shape
    apart = (edited.float() - source.frames.float()).abs().mean((0, 3))
    assert apart[:, :140].mean() < 6 < 20 < apart[45:75, 155:185].mean()
    record = json.loads((files / "out" / "edit.json").read_text())
    assert record["crop"] == {"x": 122, "y": 12, "width": 96, "height": 96}
    assert record["sound"] is True
    for name in ("edited.mp4", "side_by_side.mp4"):
        assert sound_packets(files / "out" / name) == sound_packets(clip)


@pytest.mark.filterwarnings("ignore::genhoi.editing.plan.EditWarning")
def test_python_does_what_the_command_does(files: Path) -> None:
    """Their defaults come from one place: the same files give the same frames."""
    clip = large(files, sound=None)
    options = options_of(video=clip, mask=files / "large-mask.mp4", steps=2)
    command = ["edit", *options, "--object", f"{files}/object.png", "--out", f"{files}/out"]
    assert run(*command).exit_code == 0
    source = media.read_clip(clip)
    edited = GenHOIPipeline.from_pretrained()(
        source,
        media.read_mask(files / "large-mask.mp4", like=source),
        media.read_image(files / "object.png"),
        steps=2,
    )
    own = hashlib.sha256(edited.frames.numpy().tobytes()).hexdigest()
    assert own == edited_hash(files)


def test_json_and_a_log_file(files: Path) -> None:
    result = CliRunner().invoke(main, [*arguments(files), "--json", "--log-file", f"{files}/log"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert Path(record["files"]["edited"]).is_file() and record["repeat"].startswith("genhoi edit")
    assert "Edited clip:" in result.stderr and "Edited clip:" in (files / "log").read_text()


def test_lines_say_how_far_it_is_where_no_terminal_is(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(progress_bar.__kwdefaults__, "seconds", 0.0)
    result = CliRunner().invoke(main, arguments(files))
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "window 2 of 3" in line]
    assert lines and all("%" in line and "left" in line for line in lines)


@pytest.mark.parametrize("name", ["white", "black", "painted", "standing"])
def test_masks_that_are_none_are_refused(files: Path, name: str) -> None:
    drawn = Image.new("RGB", (W, H) if name != "standing" else (H, W), "white")
    if name == "black":
        drawn = Image.new("RGB", (W, H))
    if name == "painted":
        drawn = Image.fromarray(media.read_clip(files / "video.mp4").frames[0].numpy())
        drawn.paste((255, 0, 0), (4, 4, 20, 20))
    drawn.save(files / "drawn.png")
    words = {
        "white": "white throughout",
        "black": "black throughout",
        "painted": "neither black nor white",
        "standing": "another shape than the clip's",
    }
    command = [x if "mask.mp4" not in x else f"{files}/drawn.png" for x in arguments(files)]
    refused(run(*command), "want", words[name])


def test_masks_that_are_odd_are_warned_of(files: Path) -> None:
    mask = torch.ones(F, H, W, dtype=torch.bool)
    mask[:, 8:24, 8:24] = False
    mask[5:7] = False
    mask[9] = False
    mask[9, :2, :2] = True
    media.write_mask(files / "mask.mp4", mask, fps=12, overwrite=True)
    result = run(*arguments(files, "--dry-run"))
    assert result.exit_code == 0, result.output
    for phrase in (
        "white in 61 % of the frame",
        "looks inverted",
        "nothing in frames 5-6",
        "leaps at frames 9-10",
    ):
        assert phrase in result.output


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
        (["--frames", "4"], ["--frames: got 4, want 5 to 11"]),
        (["--frames", "13"], ["--frames: got 13, want 5 to 11"]),
        (["--overlap", "5"], ["overlap: got 5, wanted 1 + 4 n, at most half of the window of 5"]),
        (["--device", "cuda:99"], ["--device: got cuda:99, but torch sees"]),
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
        (["--offload", "model"], ["offload: got 'model' for base mosaic-untrained"]),
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


def test_a_missing_adapter_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def none(*_: object, **__: object) -> None:
        raise OSError("no such adapter")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", none)
    refused(run(*arguments(files, "--adapter", "nobody/nothing")), "no such adapter")


def test_the_command_does_not_load_diffusers_for_others() -> None:
    code = "import sys, genhoi, genhoi.cli.group; sys.exit('diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
