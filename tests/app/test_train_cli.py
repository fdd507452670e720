"""`genhoi train`: start, go on, end, and every refusal as one sentence."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from support.command_lines import command_line
from support.tiny_training import (
    FRAMES,
    SMALL,
    checkpoint,
    curve,
    forget_accelerator,
    free_port,
    small_base,
)
from test_folders import make_clip

from genhoi import GenHOIAdapter, extras
from genhoi.bases import mosaic
from genhoi.cli import main
from genhoi.media import read_clip
from genhoi.training import estimate
from genhoi.training.config import TrainConfig, read_config
from genhoi.training.estimate import estimate_training, what_fits
from genhoi.training.trainer import Trainer, TrainProgress

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small base, and accelerate as if nobody had used it yet."""
    for name, value in SMALL.items():
        monkeypatch.setitem(mosaic.MOSAIC_CONFIG, name, value)
    forget_accelerator()


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Options of a training on three clips of one's own, one long enough for two samples."""
    for i, count in enumerate((FRAMES, FRAMES, 2 * FRAMES + 1)):
        make_clip(tmp_path / "clips" / f"clip{i}", count, seed=i)
    return command_line(
        "train",
        base="mosaic-untrained",
        data=tmp_path / "clips",
        frames=FRAMES,
        height=32,
        width=32,
        steps=4,
        batch=2,
        warmup=1,
        checkpoint_every=1,
        log_every=1,
        samples=2,
        sample_every=2,
        device="cpu",
        out=tmp_path / "run",
    )


def run(*arguments: str) -> Result:
    forget_accelerator()
    return CliRunner().invoke(main, arguments)


def refused(result: Result, *words: str) -> None:
    """In words, some of them, which may be on several lines."""
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
    assert "Error: " in result.output and "Traceback" not in result.output
    for word in words:
        assert word in result.output, result.output


def test_a_whole_run(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(*command)
    assert result.exit_code == 0, result.output
    for phrase in (
        "clip2: the first 18 of 19 frames, 1 cut.",
        "UNTRAINED",
        "Encoding 4 clips",
        "Training from the start of 4 on 4 clips: cpu",
        "step 4 of 4, loss ",
        f"Adapter: {out}",
        f"genhoi edit --base mosaic-untrained --adapter {out / 'adapter'} --video V --mask M",
    ):
        assert phrase in result.output, result.output
    names = {path.name for path in out.iterdir()}
    assert names >= {"adapter", "checkpoints", "config.yaml", "latents", "metrics.csv", "samples"}
    assert GenHOIAdapter.from_pretrained(out / "adapter").config.rank == 32
    assert [step for step, _, _ in curve(out)] == [1, 2, 3, 4]
    # A picture, and three times four frames, with gaps; titles, and two clips with their names.
    with Image.open(out / "samples" / "step-000004" / "sheet.png") as sheet:
        assert sheet.size == (13 * 96 + 5 * 8, 24 + 2 * (22 + 96 + 8))
    clip = read_clip(out / "samples" / "step-000002" / "clips.mp4")
    assert (clip.num_frames, clip.height, clip.width) == (FRAMES, 64, 64)


def test_finished_and_fresh(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(*command)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for again in (command, ["train", "--out", str(out), "--device", "cpu"]):
        result = run(*again)
        assert result.exit_code == 0, result.output
        assert "holds the finished run, 4 steps; --fresh starts anew" in result.output
        assert "genhoi edit" in result.output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (out / "mine.txt").write_text("kept")
    first = checkpoint(out, 4)
    result = run(*command, "--fresh", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "from the start" in result.output and "Encoding" not in result.output
    assert (out / "mine.txt").read_text() == "kept"
    second = checkpoint(out, 4)
    assert not torch.equal(first["ema/layers.0.lora_k.down"], second["ema/layers.0.lora_k.down"])
    assert len(list((out / "tensorboard").iterdir())) == 1


def test_longer_and_shorter(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(*command, "--steps", "3").exit_code == 0
    result = run("train", "--out", str(out), "--device", "cpu", "--steps", "6")
    assert result.exit_code == 0, result.output
    assert "Steps: 3 before, now 6. Steps 3 to 3 took the learning rate of 3 steps" in result.output
    assert "Training on from step 3 of 6" in result.output
    assert "step 6 of 6, loss " in result.output and "(mean of the last 20 steps)" in result.output
    assert [step for step, _, _ in curve(out)] == [1, 2, 3, 4, 5, 6]
    made = (out / "adapter" / "adapter.safetensors").read_bytes()
    # As if it had been killed before the result was written: that of 3 steps is not taken for it.
    (out / "finished.json").write_text('{"steps": 3}')
    (out / "adapter" / "adapter.safetensors").write_bytes(b"of 3 steps")
    result = run("train", "--out", str(out), "--device", "cpu")
    assert result.exit_code == 0 and "holds the finished run" not in result.output, result.output
    assert (out / "adapter" / "adapter.safetensors").read_bytes() == made
    assert "holds the finished run, 6 steps" in run("train", "--out", str(out)).output
    refused(run(*command, "--steps", "5"), "--steps: got 5, but the run in", "has done 6")


def test_fresh_removes_nothing_of_others(command: list[str], tmp_path: Path) -> None:
    """A folder without a run keeps what is called like parts of one."""
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "samples" / "drums.wav").write_text("boom")
    assert run(*command, "--fresh").exit_code == 0
    assert (tmp_path / "run" / "samples" / "drums.wav").is_file()


def test_interrupted_and_going_on(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, average = tmp_path / "run", Trainer._average

    def interrupted(self: Trainer) -> None:
        average(self)
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_average", interrupted)
        result = run(*command)
    assert result.exit_code == 130, result.output
    path = out / "checkpoints" / "step-000002"
    assert f"Stopped after step 2. The same command goes on from {path}." in result.output
    assert not (out / "adapter").exists()
    result = run("train", "--out", str(out), "--device", "cpu", "--keep", "5")
    assert result.exit_code == 0, result.output
    assert "Training on from step 2 of 4" in result.output and "Encoding" not in result.output
    assert [step for step, _, _ in curve(out)] == [1, 2, 3, 4]


def test_interrupted_while_encoding(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genhoi.models.wan.model.build_condition", interrupted)
    result = run(*command)
    assert result.exit_code == 130, result.output
    assert "Interrupted while encoding" in result.output
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".latents.lock"]


def test_not_a_number(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(self: Trainer, loss: float, *rest: Any) -> TrainProgress:
        with torch.no_grad():
            self.weights()["layers.0.lora_v.up"].fill_(float("nan"))
        return progress(self, loss, *rest)

    progress = Trainer._progress
    monkeypatch.setattr(Trainer, "_progress", spoiled)
    refused(run(*command, "--checkpoint-every", "0", "--sample-every", "0"), "loss: got nan")


def test_settings_file(command: list[str], tmp_path: Path) -> None:
    """Flags win over it; what was used is written down, and is read back as it was."""
    path = tmp_path / "settings.yaml"
    path.write_text("steps: 2\nlearning_rate: 3e-3\ngiven: {none: 0.5, first: 0.5}\nseed: 3\n")
    flags = ["--steps", "1", "--flow-gate", "none", "--no-queries-keys", "--schedule", "-1"]
    result = run(*command, "--config", str(path), *flags)
    assert result.exit_code == 0, result.output
    config = read_config(tmp_path / "run" / "config.yaml", {})
    assert (config.steps, config.learning_rate, config.seed) == (1, 3e-3, 3)
    assert (config.flow_gate, config.queries_keys, config.schedule) == (None, False, -1.0)
    assert list(config.given) == ["none", "first"]
    adapter_config = GenHOIAdapter.from_pretrained(tmp_path / "run" / "adapter").config
    assert (adapter_config.flow_gate, adapter_config.schedule) == (None, -1.0)


def test_every_setting_has_a_flag_with_words() -> None:
    help_text = " ".join(run("train", "--help").output.split())
    for item in dataclasses.fields(TrainConfig):
        _, _, rest = help_text.partition(f" --{item.name.replace('_', '-')} ")
        own = rest.partition(" --")[0] if "bool" not in item.type else rest.partition("[default")[0]
        assert len(own.split()) > 3, item.name


def test_dry_run(command: list[str], tmp_path: Path) -> None:
    result = run(*command, "--dry-run")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "run").exists()
    output = " ".join(result.output.replace("│", " ").split())
    parameters = sum(p.numel() for p in small_base().transformer.parameters())
    assert (
        f"{parameters:,} parameters" in output and "3 x 2 x 2 = 12, and 4 of the object" in output
    )
    assert "memory on cpu about" in output and "time on cpu at least" in output
    assert "does it fit? yes" in output
    run(*command, "--steps", "1")
    config = read_config(tmp_path / "run" / "config.yaml", {})
    weights = [x for n, x in checkpoint(tmp_path / "run", 1).items() if n.startswith("weight/")]
    assert estimate_training(config).trained == sum(x.numel() for x in weights)


WAN_14B = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 36,
    "ffn_dim": 13824,
    "num_layers": 40,
    "image_dim": 1280,
    "added_kv_proj_dim": 5120,
}


def test_what_makes_it_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the estimate alone: no such run was made."""
    monkeypatch.setattr("genhoi.training.estimate.base_config", lambda name: WAN_14B)
    large = TrainConfig(frames=81, height=480, width=832, batch=8)
    loaded = estimate._load_sizes(large)  # once: it takes a second
    monkeypatch.setattr(estimate, "_load_sizes", lambda config: loaded)
    needs = estimate_training(large)
    assert needs.memory_bytes == needs.weight_bytes + needs.state_bytes + needs.working_bytes
    assert what_fits(large, needs.memory_bytes - 1) == "--micro-batch 1"
    flags = what_fits(large, 80 * 10**9)
    assert flags == "--micro-batch 1 --checkpointing --base-dtype bfloat16"
    fitting = dataclasses.replace(large, micro_batch=1, checkpointing=True, base_dtype="bfloat16")
    assert estimate_training(fitting).memory_bytes <= 80 * 10**9
    shared = what_fits(large, 40 * 10**9)
    assert shared is not None and "--parallel fsdp on 2 GPUs" in shared, shared
    half = estimate_training(dataclasses.replace(fitting, parallel="fsdp"), processes=2)
    assert half.weight_bytes == estimate_training(fitting).weight_bytes // 2
    short = what_fits(dataclasses.replace(large, batch=1), 45 * 10**9)
    assert short is not None and "--frames" in short, short
    assert what_fits(large, 10**8) is None


def test_a_dry_run_says_what_would_fit(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genhoi.cli.device._memory", lambda device: 1_100_000)
    output = " ".join(run(*command, "--dry-run").output.replace("│", " ").split())
    assert "does it fit? no; it would with --micro-batch 1" in output, output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--data", "nowhere"], ["--data: there is no file or folder nowhere"]),
        (["--base", "nowhere"], ["base: there is no folder nowhere"]),
        (["--adapter", "./nowhere"], ["adapter: there is no folder ./nowhere"]),
        (["--backend", "abacus"], ["--backend: got 'abacus', wanted one of", "eager"]),
        (["--steps", "few"], ["--steps: got 'few', wanted an integer"]),
        (["--batch", "0"], ["--batch: got 0"]),
        (["--clips", "7"], ["clips: got 7 with data"]),
        (["--frames", "33"], ["--data: got none that is long enough"]),
        (["--adapter", "./x", "--rank", "3"], ["--rank: got it beside an adapter"]),
        (["--config", "nowhere.yaml"], ["config: there is no file nowhere.yaml"]),
        (["--given", "often"], ["given: got ['often']"]),
    ],
)
def test_refused(command: list[str], tmp_path: Path, changes: list[str], words: list[str]) -> None:
    refused(run(*command, *changes), *words)
    assert not (tmp_path / "run" / "latents").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(command: list[str]) -> None:
    refused(run(*command, "--device", "cuda"), "--device: got cuda, but torch sees no CUDA GPU")


def test_refused_with_a_run(command: list[str], tmp_path: Path) -> None:
    run(*command, "--steps", "1")
    refused(run(*command, "--seed", "4"), "--out: ", "seed 0 -> 4", "another folder")
    make_clip(tmp_path / "clips" / "clip9", FRAMES)
    refused(run(*command, "--fresh"), "latents: ", "other data or settings")


def test_clips_without_a_picture(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "clips" / "clip0" / "object.png").unlink()
    refused(run(*command), "clip0: no picture of the object")
    result = run(*command, "--object-from-mask", "--steps", "1")
    assert result.exit_code == 0, result.output
    assert "clip0: the object's picture is cut out of the clip." in result.output


def test_a_prompt_for_a_base_without_text(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "clips" / "clip1" / "prompt.txt").write_text("a hand")
    refused(run(*command), "prompt: got 'a hand'")


@pytest.mark.parametrize(
    ("module", "changes", "sentence"),
    [
        ("accelerate", [], "training needs accelerate (pip install 'genhoi-kernels[wan]')"),
        (
            "peft",
            ["--video-rank", "2"],
            "--video-rank needs peft (pip install 'genhoi-kernels[train]')",
        ),
        (
            "skimage",
            ["--data", "synthetic"],
            "data synthetic needs scikit-image (pip install 'genhoi-kernels[train]')",
        ),
    ],
)
def test_missing_packages(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    changes: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda name: name != module)
    refused(run(*command, *changes), sentence)


def test_synthetic_clips(tmp_path: Path) -> None:
    """The samples are of clips that are not trained on, and are encoded anew where they change."""
    pytest.importorskip("skimage")
    out = tmp_path / "run"
    command = command_line(
        "train",
        base="mosaic-untrained",
        clips=3,
        frames=5,
        height=32,
        width=32,
        steps=1,
        batch=1,
        sample_every=1,
        samples=1,
        device="cpu",
        out=out,
        latents=tmp_path / "latents",
    )
    assert run(*command).exit_code == 0
    result = run(*command, "--fresh", "--samples", "2")
    assert result.exit_code == 0, result.output
    names = [
        yaml.safe_load((folder / "meta.json").read_text())["names"]
        for folder in (tmp_path / "latents", out / "sample_latents")
    ]
    assert names == [[f"train-0-0000{i}" for i in range(3)], [f"test-0-0000{i}" for i in range(2)]]


def test_two_processes(command: list[str], tmp_path: Path) -> None:
    """Under torchrun: one encodes, both train, one speaks."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--master_port", str(free_port()), "-m", "genhoi.cli"]
    launched = subprocess.Popen(
        [*launcher, *command, "--steps", "2", "--parallel", "fsdp"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = launched.communicate(timeout=200)
    finally:
        if launched.poll() is None:
            os.killpg(launched.pid, signal.SIGKILL)
    assert launched.returncode == 0, errors
    assert output.count("Training from the start of 2 on 4 clips") == 1
    assert [step for step, _, _ in curve(tmp_path / "run")] == [1, 2]
    assert GenHOIAdapter.from_pretrained(tmp_path / "run" / "adapter").config.rank == 32
