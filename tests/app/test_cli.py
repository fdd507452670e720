"""The command line: end to end on a tiny clip, and every refusal as one sentence."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console
from rich.table import Table
from support.command_lines import command_line

import genhoi
import genhoi_kernels
from genhoi import media
from genhoi.cli import main
from genhoi.cli.common import by_flags
from genhoi.cli.device import chosen_device
from genhoi.cli.group import SECTIONS
from genhoi.cli.output import Output, with_output
from genhoi.cli.progress import progress_bar
from genhoi.cli.tune import tune
from genhoi.editing.crop import scaled_down
from genhoi.media import Clip
from genhoi_kernels.tune import command


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
    return command_line(
        "inspect",
        video=tmp_path / "video.mp4",
        mask=tmp_path / "mask.mp4",
        object=tmp_path / "object.png",
        out=tmp_path / "out",
        heads=2,
        head_dim=16,
    )


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


def test_large_clips_are_scaled_down_by_default() -> None:
    assert scaled_down((360, 640), 480) == (256, 480)
    assert scaled_down((100, 90), 480) == (96, 80)


def test_results_are_not_overwritten_and_this_is_said_at_once(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "inspect.json").write_text("mine")

    def no_long_work(*_: object, **__: object) -> None:
        raise AssertionError("the check must come first")

    with monkeypatch.context() as patch:
        patch.setattr("genhoi.editing.inputs.read_clip_and_masks", no_long_work)
        patch.setattr("genhoi.inspection.inspect.inspect_clip", no_long_work)
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
        (["--head-dim", "15"], ["--head-dim: got 15"]),
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


def test_tables_show_the_names_of_extras(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between brackets: rich would take them for markup."""
    table = Table("about")
    table.add_row("pip install 'genhoi-kernels[triton]'")
    Output(log_file=tmp_path / "log").show(table)
    assert "[triton]" in capsys.readouterr().out
    assert "[triton]" in (tmp_path / "log").read_text()


def test_version() -> None:
    assert run("--version").output.strip() == f"genhoi, version {genhoi_kernels.__version__}"


# -------------------------------------------------------------------------- help, and what it costs


def commands() -> list[tuple[str, str]]:
    return [(name, about) for found in SECTIONS.values() for name, (_, about) in found.items()]


def imported_by(*arguments: str) -> set[str]:
    """Name the modules that a command imports, in a process of its own."""
    code = (
        "import sys\nfrom genhoi.cli.__main__ import run\n"
        f"sys.argv = {['genhoi', *arguments]!r}\n"
        "try: run()\nexcept SystemExit: pass\n"
        "print('\\n'.join(['MODULES', *sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.partition("MODULES")[2].split())


def test_the_list_of_commands_waits_for_no_torch() -> None:
    assert not {"torch", "diffusers", "numpy"} & imported_by("--help")
    # Another one's help: of each command that computes nothing before it imports.
    for name in ("edit", "mask", "object", "inspect", "train", "eval", "doctor", "convert", "tune"):
        assert not {"torch", "diffusers"} & imported_by(name, "-h"), name


def test_the_help_of_bench_waits_for_no_torch() -> None:
    code = (
        "import sys\nfrom benchmarks.cli import bench\n"
        "try: bench(['-h'], help_option_names=['-h', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "Appends to results.csv" in done.stdout


def test_the_list_says_what_the_commands_say() -> None:
    for name, about in commands():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert (command.help or "").partition(".")[0] + "." == about.partition(".")[0] + ".", name


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_help_has_whole_sentences(name: str) -> None:
    if name == "bench":  # its help is that of another program
        return
    command = main.get_command(click.Context(main), name)
    assert command is not None
    for option in command.params:
        if isinstance(option, click.Argument):  # the command's own sentence says what it is
            continue
        assert isinstance(option, click.Option)
        text = (option.help or "").partition("  [default")[0]
        assert text.endswith((".", "]")), f"{name} {option.name}: {text}"
    shown = run(name, "-h").output
    assert shown == run(name, "--help").output
    assert "..." not in shown.replace("train ...", "")


def test_the_commands_are_listed_in_order() -> None:
    shown = run("-h").output
    places = [shown.index(f"\n  {name} ") for name, _ in commands()]
    assert places == sorted(places)
    assert shown.index("Start here:") < shown.index("Tools:")
    for _, about in commands():
        assert about in shown


def test_what_tune_says_is_what_the_kernels_say() -> None:
    flags = {
        option.opts[0][2:]: option for option in tune.params if isinstance(option, click.Option)
    }
    assert {name: flag.help for name, flag in flags.items()} == command.OPTIONS
    assert flags["case-seconds"].default == command.CASE_SECONDS


# ----------------------------------------------------------------------------------- what is shared


def test_messages_name_flags() -> None:
    for name, _ in commands():
        found = main.get_command(click.Context(main), name)
        assert found is not None
        for option in found.params:
            if isinstance(option, click.Option):
                flag = max(option.opts, key=len)
                assert by_flags(f"{option.name}: got 1, want 2", found) == f"{flag}: got 1, want 2"
    found = main.get_command(click.Context(main), "train")
    assert found is not None
    assert by_flags("height, width: got 1 and 2", found) == "--height, --width: got 1 and 2"
    assert by_flags("loss: got nan; lower learning_rate (at step 3)", found) == (
        "loss: got nan; lower --learning-rate (at step 3)"
    )
    assert by_flags("path: there is no file x", found, path="data") == "--data: there is no file x"
    paths = "there is no /tmp/learning_rate or my-micro_batch.yaml or 'base_dtype'"
    assert by_flags(paths, found) == paths
    for text in ("video.mp4: no such file", "no such file: steps", "height, depth: got 1", "steps"):
        assert by_flags(text, found) == text


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", ""])
def test_a_device_that_does_not_exist_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"^--device: got .*, want cpu, cuda, or one GPU such as"):
        chosen_device(device)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device(None) == chosen_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^--device: got cuda, but torch sees no CUDA GPU here"):
        chosen_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert chosen_device(None) == torch.device("cuda")
    assert chosen_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"^--device: got cuda:1, but torch sees 1 CUDA GPU"):
        chosen_device("cuda:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_commands_refuse_the_gpu_before_they_read_anything(inputs: list[str]) -> None:
    refused(run(*inputs, "--device", "cuda"), "--device: got cuda, but torch sees no CUDA GPU here")
    refused(run("tune"), "--device: got 'cuda', wanted a GPU")
    refused(run("train", "--device", "cuda"), "--device: got cuda, but torch sees no CUDA GPU here")


def test_json_on_standard_output_and_text_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "doctor.log"
    for _ in range(2):
        result = run("doctor", "--json", "--log-file", str(log))
        assert result.exit_code == 0
        record = json.loads(result.stdout)
        assert record["installation"]["torch"] == torch.__version__
        assert [one["name"] for one in record["backends"]] == [
            status.name for status in genhoi_kernels.backends()
        ]
        assert torch.__version__ in result.stderr
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    assert sum("doctor: started" in line for line in lines) == 2  # appended
    assert sum("Installation" in line for line in lines) == 2


def test_errors_are_json_too(tmp_path: Path) -> None:
    result = run("doctor", "--json", "--colour")
    assert (result.exit_code, json.loads(result.stdout)) == (
        1,
        {"error": "No such option '--colour'."},
    )
    (tmp_path / "file").write_text("")
    result = run("doctor", "--json", "--log-file", str(tmp_path / "file" / "log"))
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"].startswith("--log-file: ")


def test_an_output_stops_and_fails_in_json(tmp_path: Path) -> None:
    @click.command()
    @with_output
    @click.option("--how")
    def work(output: Output, how: str) -> None:
        output.say("working")
        if how == "stop":
            output.stop("Interrupted.", code=130)
        if how == "ctrl-c":
            raise KeyboardInterrupt
        if how == "fail":
            raise ValueError("how: got fail, want better")
        output.finish({"loss": float("nan"), "path": tmp_path, "sizes": (1, 2)})

    group = type(main)("all", commands={"work": work})

    def done(*arguments: str) -> Result:
        return CliRunner().invoke(group, ["work", *arguments])

    log = tmp_path / "log"
    ended = done("--json", "--log-file", str(log))
    assert json.loads(ended.stdout) == {"loss": None, "path": str(tmp_path), "sizes": [1, 2]}
    assert done().stdout == "working\n"
    for how, code, error in (
        ("stop", 130, "Interrupted."),
        ("ctrl-c", 130, "interrupted"),
        ("fail", 1, "--how: got fail, want better"),
    ):
        ended = done("--how", how, "--json", "--log-file", str(log))
        assert (ended.exit_code, json.loads(ended.stdout)) == (code, {"error": error})
        assert error.lower() in log.read_text().lower()
    ended = done("--how", "stop")
    assert (ended.exit_code, ended.stderr) == (130, "Interrupted.\n")


def test_progress_is_lines_where_no_bar_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO())
    with progress_bar(console, seconds=0) as bar:
        task = bar.add_task("reading", total=4)
        bar.update(task, completed=1, description="frame 1 of 4")
        bar.update(task, completed=4)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"25%, 0 s, 0 s left: frame 1 of 4", first)
    assert last.startswith("100%, ")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    with progress_bar(console, seconds=0, disable=True) as bar:
        bar.update(bar.add_task("", total=1), completed=1)
    with progress_bar(console, seconds=1000) as bar:
        bar.update(bar.add_task("", total=1), completed=1)
    assert capsys.readouterr().err == ""


def test_the_package_shows_what_there_is_to_use() -> None:
    shown = [name for name in dir(genhoi) if name != "__version__"]
    assert {"Clip", "GenHOIPipeline", "Trainer", "evaluate", "read_clip"} <= set(shown)
    assert shown == sorted(shown)
    assert not [name for name in shown if name.startswith("_")]
    assert not {"import_module", "Any", "TYPE_CHECKING", "needed_for"} & set(shown)
    for name in shown:
        assert getattr(genhoi, name).__module__.startswith("genhoi"), name


def test_a_clip_in_one_line() -> None:
    frames = torch.zeros(81, 16, 32, 3, dtype=torch.uint8)
    assert repr(Clip(frames, 24)) == "Clip(81 frames, 32x16, 24 fps)"
    assert repr(Clip(frames[:1], 30000 / 1001)) == "Clip(1 frame, 32x16, 29.97 fps)"
