"""Two processes on a CPU: the run of one, through DistributedDataParallel and FSDP2."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_training import (
    as_process,
    assert_same_run,
    checkpoint,
    clips_in,
    free_port,
    trainer_in,
)

from genhoi.training.trainer import Trainer, TrainProgress

# Among four samples, some see no reference, in one process or in both.
BATCH: dict[str, Any] = {"batch": 4}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "ddp-parts": {"micro_batch": 1, "checkpointing": True},
    "fsdp-parts": {"micro_batch": 1, "checkpointing": True, "parallel": "fsdp"},
    "ddp-values": {"queries_keys": False, "flow_gate": None},
    "fsdp-values": {"queries_keys": False, "flow_gate": None, "parallel": "fsdp"},
    "fsdp-video": {"video_rank": 2, "parallel": "fsdp"},
    "ddp-both": {"train_base": True},
    "fsdp-both": {"train_base": True, "parallel": "fsdp"},
    "ddp-base": {"stage": "base"},
    "fsdp-base": {"stage": "base", "sample_every": 2, "samples": 1, "parallel": "fsdp"},
}
SAME_AS = {
    "whole": {},
    "values": {"queries_keys": False, "flow_gate": None},
    "video": {"video_rank": 2},
    "both": {"train_base": True},
    "base": {"stage": "base"},
}


def in_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Call it in two processes, which find each other as a launcher's do."""
    spawn = torch.multiprocessing.get_context("spawn")
    port = free_port()
    ranks = [
        spawn.Process(target=_process, args=(function, rank, port, arguments)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0, 0]


def _process(function: Callable[..., None], rank: int, port: int, arguments: Any) -> None:
    as_process(rank, 2, port)
    function(*arguments)
    torch.distributed.destroy_process_group()


def stops(trainer: Trainer, step: int) -> None:
    """Run until a signal to process 1 alone."""

    def callback(progress: TrainProgress) -> None:
        if progress.step == step and trainer.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(callback)


def all_runs(folder: Path) -> None:
    with pytest.raises(ValueError, match="batch: got 3, wanted a multiple of 2"):
        trainer_in(folder, "refused", batch=3)
    for name, changes in RUNS.items():
        trainer = trainer_in(folder, name, **BATCH, **changes)
        assert trainer._sharded.is_sharded == (changes.get("parallel") == "fsdp")
        trainer.run()
    for parallel in ("ddp", "fsdp"):
        # Both stop after the next step, for the signal came after they last agreed.
        stops(trainer_in(folder, f"two-{parallel}", parallel=parallel, **BATCH), 1)
        trainer = trainer_in(folder, f"one-{parallel}", parallel=parallel, **BATCH)
        assert trainer.step == 2
        trainer.run()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of one process, and all of two."""
    folder = tmp_path_factory.mktemp("runs")
    clips_in(folder)
    for name, changes in SAME_AS.items():
        trainer_in(folder, name, **BATCH, **changes).run()
    for parallel in ("ddp", "fsdp"):
        trainer = trainer_in(folder, f"one-{parallel}", **BATCH)

        def stop(progress: TrainProgress) -> None:
            if progress.step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.run(stop)
    pytest.importorskip("peft")
    in_processes(all_runs, folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_as_one(runs: Path, name: str) -> None:
    kind = name.split("-")[-1]
    assert_same_run(runs / name, runs / (kind if kind in SAME_AS else "whole"))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_goes_on_after_two_and_two_after_one(runs: Path, parallel: str) -> None:
    trainer = trainer_in(runs, f"two-{parallel}", **BATCH)
    assert trainer.step == 2
    trainer.run()
    assert_same_run(runs / f"two-{parallel}", runs / "whole")
    assert_same_run(runs / f"one-{parallel}", runs / "whole")


def test_results_are_whole(runs: Path) -> None:
    from genhoi import GenHOIAdapter
    from genhoi.bases.mosaic import MosaicBase

    for name in ("ddp", "fsdp"):
        state = GenHOIAdapter.from_pretrained(runs / name / "adapter").state_dict()
        for key, x in checkpoint(runs / name, 5).items():
            if key.startswith("ema/"):
                assert torch.equal(state[key.removeprefix("ema/")], x)
    weights = [
        MosaicBase(runs / name / "base").transformer.state_dict()
        for name in ("video", "fsdp-video")
    ]
    for name, x in weights[0].items():
        torch.testing.assert_close(weights[1][name], x, rtol=0, atol=1e-4, msg=name)
    assert (runs / "fsdp-base" / "samples" / "step-000004" / "sheet.png").is_file()
