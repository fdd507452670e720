"""A run: the same after any interruption, in parts or whole, and what it leaves behind."""

from __future__ import annotations

import csv
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_training import (
    Noise,
    assert_same_run,
    checkpoint,
    clips_in,
    curve,
    fresh_accelerator,
    losses,
    small_base,
    small_config,
    trainer_in,
)
from support.tiny_wan import inputs
from torch._dynamo.utils import counters

from genhoi import GenHOIAdapter, GenHOIPipeline
from genhoi.bases.load import load_base
from genhoi.bases.mosaic import MosaicBase
from genhoi.data.encoded import encode_dataset
from genhoi.training import checkpoint as checkpoints
from genhoi.training.log import TrainingLog
from genhoi.training.parallel import Interrupts
from genhoi.training.trainer import Trainer, TrainProgress

ROOT = Path(__file__).parents[2]


def stop_at(step: int) -> Any:
    def callback(progress: TrainProgress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return callback


def same_checkpoints(one: Path, other: Path, step: int = 5) -> None:
    state, wanted = checkpoint(one, step), checkpoint(other, step)
    assert state.keys() == wanted.keys()
    for name, x in wanted.items():
        assert torch.equal(state[name], x), name


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run, `run`, with all its checkpoints, and its latents."""
    folder = tmp_path_factory.mktemp("whole")
    trainer_in(folder, keep=9).run()
    return folder


# ----------------------------------------------------------------------------------- going on again


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"stage": "base"},
        {"ema": 0.0},
        {"train_base": True},
        {"optimizer": "muon"},
        {"optimizer": "muon", "train_base": True, "precision": "bf16"},
    ],
)
def test_resumed_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer_in(tmp_path, "whole", **changes).run()
    with pytest.raises(KeyboardInterrupt):
        trainer_in(tmp_path, "broken", checkpoint_every=0, **changes).run(stop_at(2))
    with pytest.raises(KeyboardInterrupt):
        trainer_in(tmp_path, "broken", **changes).run(stop_at(3))
    trainer = trainer_in(tmp_path, "broken", **changes)
    assert trainer.step == 3
    trainer.run()
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    same_checkpoints(tmp_path / "broken", tmp_path / "whole")
    files = "base/diffusion_pytorch_model" if "stage" in changes else "adapter/adapter"
    made, wanted = (
        load_file(tmp_path / run / f"{files}.safetensors") for run in ("broken", "whole")
    )
    assert all(torch.equal(made[name], x) for name, x in wanted.items())


def test_resuming_changes_nothing(whole_run: Path) -> None:
    """Making the optimiser's state leaves no trace in weights, moments or counters."""
    trainer = trainer_in(whole_run, keep=9)
    path = whole_run / "run" / "checkpoints" / "step-000005"
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    trainer.out = whole_run / "again"
    trainer._saved = None
    trainer.save()
    after = whole_run / "again" / "checkpoints" / "step-000005"
    assert {p.name: p.read_bytes() for p in after.iterdir()} == before


def test_killed_at_any_moment(tmp_path: Path) -> None:
    changes = {"steps": 12}
    trainer_in(tmp_path, "whole", **changes).run()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    finished = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests/support/killed_training.py"),
            str(tmp_path),
            "killed",
            json.dumps(changes),
            "1",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode == 0, finished.stderr
    steps = [int(word) for word in finished.stdout.split()]
    assert steps == sorted(steps) and len(steps) > 3
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    same_checkpoints(tmp_path / "killed", tmp_path / "whole", step=12)
    left = {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()}
    assert left == {"step-000011", "step-000012"}


def test_two_programs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused and changes nothing; the folder is free again after the first."""
    first = trainer_in(tmp_path, "run")
    refused = []

    def other(progress: TrainProgress) -> None:
        if progress.step == 2:
            with pytest.raises(FileExistsError, match="out: another program is training in"):
                trainer_in(tmp_path, "run").run()
            refused.append(progress.step)

    first.run(other)
    assert refused == [2]
    assert len(losses(tmp_path / "run")) == first.config.steps
    trainer_in(tmp_path, "run").run()


def test_ctrl_c_waits_for_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the middle of a step ends the run after it, with a checkpoint that is of it."""
    trainer = trainer_in(tmp_path, "broken", checkpoint_every=0)
    average, stopping = trainer._average, []

    def interrupted() -> None:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        average()

    monkeypatch.setattr(trainer, "_average", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(stopping=lambda: stopping.append(trainer.step))
    assert stopping == [2] and trainer.step == 3
    assert signal.getsignal(signal.SIGINT) is before
    trainer_in(tmp_path, "broken", checkpoint_every=0).run()
    trainer_in(tmp_path, "whole", checkpoint_every=0).run()
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    same_checkpoints(tmp_path / "broken", tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not the one that a launcher sends right after the terminal's."""
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.seen
        now[0] += 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)


def test_other_settings_are_refused(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out: .*seed 0 -> 6.*another folder"):
        trainer_in(whole_run, keep=9, seed=6)
    with pytest.raises(
        ValueError, match=r"steps: got 4, but the run in .* has done 5, .*5 or more"
    ):
        trainer_in(whole_run, keep=9, steps=4)
    with pytest.raises(ValueError, match=r"given "):
        trainer_in(whole_run, given={"first": 0.3, "mixed": 0.5, "none": 0.2})
    config = small_config()
    accelerator = fresh_accelerator(config)
    others = encode_dataset(small_base(), Noise(3), tmp_path / "others", given=("none",))
    with pytest.raises(ValueError, match=r"latents: .*other clips"):
        Trainer(config, whole_run / "run", others, base=small_base(), accelerator=accelerator)
    free = {"keep": 1, "log_every": 3, "micro_batch": 1, "checkpointing": True, "backend": "eager"}
    assert trainer_in(whole_run, **free).step == 5


def test_a_longer_run_is_as_if_from_the_start(tmp_path: Path) -> None:
    """But for the learning rate, where that falls at the end."""
    trainer_in(tmp_path, "long", decay=0.0, steps=7).run()
    trainer_in(tmp_path, "short", decay=0.0, steps=3).run()
    first = load_file(tmp_path / "short" / "adapter" / "adapter.safetensors")
    trainer = trainer_in(tmp_path, "short", decay=0.0, steps=7)
    assert trainer.step == 3
    trainer.run()
    assert curve(tmp_path / "short") == curve(tmp_path / "long")
    same_checkpoints(tmp_path / "short", tmp_path / "long", step=7)
    last = load_file(tmp_path / "short" / "adapter" / "adapter.safetensors")
    wanted = load_file(tmp_path / "long" / "adapter" / "adapter.safetensors")
    assert all(torch.equal(last[name], x) for name, x in wanted.items())
    assert any(not torch.equal(last[name], x) for name, x in first.items())


def test_what_is_smoothed_says_so(tmp_path: Path) -> None:
    """And is the same where the run was interrupted, or begun without it."""
    trainer_in(tmp_path, "whole").run()
    with (tmp_path / "whole" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows]
    for step, row in enumerate(rows, start=1):
        mean = sum(losses[:step]) / step
        assert float(row["loss_smoothed"]) == pytest.approx(mean, rel=1e-6)
    with pytest.raises(KeyboardInterrupt):
        trainer_in(tmp_path, "broken").run(stop_at(2))
    path = tmp_path / "broken" / "metrics.csv"
    trainer_in(tmp_path, "broken").run()
    assert path.read_text().splitlines()[-1].split(",")[:4] == [
        *(rows[-1][name] for name in ("step", "loss", "loss_smoothed", "learning_rate")),
    ]


def test_metrics_of_an_earlier_version_get_the_new_columns(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n3,0.1\n")
    log = TrainingLog(tmp_path, 2)
    log.add(3, loss=0.125, loss_smoothed=0.3)
    log.add(4, loss=0.0625, loss_smoothed=0.2)
    log.close()
    assert (tmp_path / "metrics.csv").read_text().split() == [
        "step,loss,loss_smoothed",
        "1,0.5,",
        "2,0.25,",
        "3,0.125,0.3",
        "4,0.0625,0.2",
    ]


def test_a_finished_run_only_writes_its_result_again(whole_run: Path) -> None:
    adapter = whole_run / "run" / "adapter" / "adapter.safetensors"
    before, rows = adapter.read_bytes(), curve(whole_run / "run")
    adapter.unlink()
    trainer_in(whole_run, keep=9).run()
    assert adapter.read_bytes() == before and curve(whole_run / "run") == rows


# --------------------------------------------------------------------------------- in another way


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch": 1},
        {"micro_batch": 3},
        {"checkpointing": True},
        {"backend": "eager"},
    ],
)
def test_same_curve(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer_in(tmp_path, "plain", batch=4).run()
    trainer_in(tmp_path, "other", batch=4, **changes).run()
    assert_same_run(tmp_path / "other", tmp_path / "plain")


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_same_curve_compiled(tmp_path: Path, checkpointing: bool) -> None:
    trainer_in(tmp_path, "plain", batch=4).run()
    torch._dynamo.reset()
    counters.clear()
    trainer_in(tmp_path, "other", batch=4, compile=True, checkpointing=checkpointing).run()
    assert counters["stats"]["unique_graphs"] > 0
    assert_same_run(tmp_path / "other", tmp_path / "plain")


def test_compiled_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="compile: got it with parallel 'fsdp', wanted"):
        small_config(compile=True, parallel="fsdp")


def test_it_learns_and_all_that_shall(whole_run: Path) -> None:
    before, after = checkpoint(whole_run / "run", 1), checkpoint(whole_run / "run", 5)
    weights = [name for name in after if name.startswith("weight/")]
    still = [name for name in weights if torch.equal(before[name], after[name])]
    assert len(weights) == 34 and not still
    assert not any("layers.1.lora_q" in name for name in weights)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [({"queries_keys": False}, ("lora_q", "lora_k")), ({"flow_gate": None}, ("gate",))],
)
def test_parts_left_out(tmp_path: Path, changes: dict[str, Any], missing: tuple[str, ...]) -> None:
    trainer_in(tmp_path, **changes).run()
    names = {name for name in checkpoint(tmp_path / "run", 5) if name.startswith("weight/")}
    assert names and not any(part in name for name in names for part in missing)
    fresh = trainer_in(tmp_path, "fresh", **changes).adapter
    trained = GenHOIAdapter.from_pretrained(tmp_path / "run" / "adapter")
    assert fresh is not None
    for name, weight in trained.state_dict().items():
        trains = f"weight/{name}" in names
        assert trains != torch.equal(weight, fresh.state_dict()[name]), name


def test_moving_average(whole_run: Path) -> None:
    """Of every step's weights, short at first; it is the result, and training does not see it."""
    out = whole_run / "run"
    average = None
    for step in range(1, 6):
        state = checkpoint(out, step)
        rate = min(0.99, step / (9 + step))
        start = trainer_in(whole_run, "untrained").weights() if average is None else average
        average = {
            name: rate * start[name].detach() + (1 - rate) * state[f"weight/{name}"]
            for name in start
        }
        for name, x in average.items():
            torch.testing.assert_close(state[f"ema/{name}"], x, rtol=0, atol=1e-6)
    result = load_file(out / "adapter" / "adapter.safetensors")
    for name in average:
        assert torch.equal(result[name], state[f"ema/{name}"])
    assert not torch.equal(state["ema/layers.0.lora_v.up"], state["weight/layers.0.lora_v.up"])
    trainer = trainer_in(whole_run, keep=9)
    with trainer.averaged():
        inside = trainer.weights()["layers.0.lora_v.up"].clone()
    assert torch.equal(inside, state["ema/layers.0.lora_v.up"])
    assert torch.equal(trainer.weights()["layers.0.lora_v.up"], state["weight/layers.0.lora_v.up"])


def test_samples_change_nothing(whole_run: Path, tmp_path: Path) -> None:
    held_out = encode_dataset(small_base(), Noise(2), tmp_path / "held", given=("none",))
    config = small_config(sample_every=2, samples=2)
    trainer = Trainer(
        config,
        tmp_path / "run",
        clips_in(tmp_path),
        base=small_base(),
        samples=held_out,
        accelerator=fresh_accelerator(config),
    )
    trainer.run()
    assert curve(tmp_path / "run") == curve(whole_run / "run")
    paths = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("run/samples/*/*"))
    names = ("clips.mp4", "sheet.png")
    assert paths == [f"run/samples/step-00000{step}/{name}" for step in (2, 4) for name in names]


# ----------------------------------------------------------------------------------- going wrong


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number(tmp_path: Path, bad: float) -> None:
    trainer = trainer_in(tmp_path)

    def spoil(progress: TrainProgress) -> None:
        if progress.step == 3:
            with torch.no_grad():
                trainer.weights()["layers.0.self_gate.fc1.weight"].fill_(bad)

    with pytest.raises(FloatingPointError, match=r"loss: .*step 4.*step-000003"):
        trainer.run(spoil)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000003"]
    assert all(x.isfinite().all() for x in checkpoint(tmp_path / "run", 3).values())
    assert not (tmp_path / "run" / "adapter").exists()
    trainer_in(tmp_path).run()


def test_full_disk(tmp_path: Path) -> None:
    """As a limit on a file's size makes it; the last checkpoint is whole, and the run goes on."""
    trainer = trainer_in(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: TrainProgress) -> None:
        if progress.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    try:
        with pytest.raises(OSError, match=r"checkpoint: .*step-000003.* cannot be written"):
            trainer.run(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-000001", "step-000002"]
    again = trainer_in(tmp_path)
    assert again.step == 2
    again.run()


def test_no_half_checkpoint_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever operation fails, there is the old state or the new one."""
    old, new = {"x": torch.zeros(3)}, {"x": torch.ones(3)}
    for name in ("save_file", "_flush", "os.replace"):
        folder = tmp_path / name
        checkpoints.save_checkpoint(folder, 1, old, {}, keep=1)

        def fails(*_: object) -> None:
            raise OSError(errno.EIO, "broken")

        with monkeypatch.context() as patch:
            patch.setattr(f"genhoi.training.checkpoint.{name}", fails)
            with pytest.raises(OSError, match="broken"):
                checkpoints.save_checkpoint(folder, 2, new, {}, keep=1)
        assert [p.name for p in folder.iterdir()] == ["step-000001"]
        checkpoints.save_checkpoint(folder, 2, new, {}, keep=1)
        path = checkpoints.latest_checkpoint(folder)
        assert path is not None and torch.equal(checkpoints.load_checkpoint(path)[0]["x"], new["x"])
        (path / "state.safetensors").write_bytes(b"damaged")
        with pytest.raises(OSError, match=r"damaged .*remove it"):
            checkpoints.load_checkpoint(path)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="backend: got 'no'"):
        trainer_in(tmp_path, backend="no")
    with pytest.raises(FileNotFoundError, match="adapter: there is no folder"):
        trainer_in(tmp_path, adapter=str(tmp_path / "none"))


# ------------------------------------------------------------------------------------ the result


def test_stage_base(tmp_path: Path) -> None:
    """The base itself learns, and is loaded again."""
    trainer = trainer_in(tmp_path, stage="base", steps=12, learning_rate=3e-3, given={"first": 1.0})
    trainer.run()
    by_step = losses(tmp_path / "run")
    assert sum(by_step[-4:]) < 0.8 * sum(by_step[:4])
    base = MosaicBase(tmp_path / "run" / "base")
    assert "12 steps of 2" in base.about
    with trainer.averaged():
        for name, weight in trainer.base.transformer.state_dict().items():
            loaded = base.transformer.state_dict()[name]
            torch.testing.assert_close(loaded, weight.to(torch.bfloat16).float(), rtol=0, atol=0)


def some_pass(base: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        out: torch.Tensor = base.transformer(
            hidden_states=torch.randn(1, 36, 3, 4, 4, generator=draw),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.zeros(1, 1, 8),
            return_dict=False,
        )[0]
    return out


def test_video_rank_on_a_tiny_base(tmp_path: Path) -> None:
    """Low-rank weights of the video's own attention are resumed, and merged into the result."""
    pytest.importorskip("peft")
    with pytest.raises(KeyboardInterrupt):
        trainer_in(tmp_path, video_rank=2, ema=0.0).run(stop_at(2))
    trainer = trainer_in(tmp_path, video_rank=2, ema=0.0)
    trainer.run()
    names = {name for name in checkpoint(tmp_path / "run", 5) if "lora_A" in name}
    assert len(names) == 3 * 2 * 4  # q, k, v of two blocks; weight, two moments, their step
    assert trainer.attachment is not None
    trainer.attachment.detach()
    wanted = some_pass(trainer.base)
    merged = some_pass(MosaicBase(tmp_path / "run" / "base"))
    torch.testing.assert_close(merged, wanted, rtol=0, atol=1e-5)
    assert (some_pass(small_base()) - wanted).abs().max() > 1e-2
    GenHOIAdapter.from_pretrained(tmp_path / "run" / "adapter")


def test_wan_pipeline(tmp_path: Path) -> None:
    """A base in diffusers' format, in bfloat16, with an image encoder and texts."""
    pytest.importorskip("peft")
    from support.tiny_base import save_tiny_base

    folder = save_tiny_base(tmp_path / "base")
    config = small_config(
        base=str(folder),
        base_dtype="bfloat16",
        precision="bf16",
        video_rank=2,
        steps=2,
        learning_rate=0.1,
        given={"first": 0.5, "none": 0.5},
        sample_every=2,
        samples=1,
    )
    base = load_base(folder, dtype=torch.bfloat16)
    clips = encode_dataset(base, Noise(2), tmp_path / "latents", given=("none", "first"))
    accelerator = fresh_accelerator(config)
    trainer = Trainer(config, tmp_path / "run", clips, base=base, accelerator=accelerator)
    trainer.run()
    assert all(x.dtype == torch.float32 for x in trainer.weights().values())
    assert (tmp_path / "run" / "samples" / "step-000002" / "sheet.png").is_file()
    run = tmp_path / "run"
    pipeline = GenHOIPipeline.from_pretrained(
        folder, adapter=run / "adapter", video_lora=run / "video_lora", dtype=torch.bfloat16
    )
    plain = GenHOIPipeline.from_pretrained(folder, adapter=run / "adapter", dtype=torch.bfloat16)
    arguments = inputs(plain.base.transformer, dtype=torch.bfloat16)
    assert trainer.attachment is not None
    trainer.attachment.set_reference(None)
    with trainer.averaged(), torch.no_grad():
        wanted, loaded, without = (
            it.base.transformer(**arguments)[0] for it in (trainer, pipeline, plain)
        )
    # What is left is bfloat16's: low-rank weights are added in float32 in one and not in the other.
    assert (loaded - wanted).float().norm() < 0.1 * (wanted - without).float().norm()
    with pytest.raises(FileNotFoundError, match=r"video_lora: there is no \.safetensors file in"):
        GenHOIPipeline.from_pretrained(folder, adapter=run / "adapter", video_lora=run / "samples")
    with pytest.raises(ValueError, match=r"video_lora: got .*, wanted none for this base"):
        GenHOIPipeline.from_pretrained("mosaic-untrained", video_lora=run / "video_lora")
