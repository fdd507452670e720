"""A training that takes seconds: noise for clips, a small base, a few steps, one process or two."""

from __future__ import annotations

import csv
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from genhoi.bases import mosaic
from genhoi.bases.mosaic import MosaicBase
from genhoi.data.encoded import EncodedClips, encode_dataset
from genhoi.data.sample import HOISample
from genhoi.media import Clip
from genhoi.training.config import TrainConfig
from genhoi.training.parallel import make_accelerator
from genhoi.training.trainer import Trainer

SIDE, FRAMES, CLIPS, LEARNING_RATE = 32, 9, 5, 1e-2
SMALL = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 64, "num_layers": 2}


class Noise:
    """Clips of coloured noise with a box to rebuild; no two are alike."""

    def __init__(self, clips: int = CLIPS, *, frames: int = FRAMES, side: int = SIDE) -> None:
        self.clips, self.frames, self.side = clips, frames, side

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> HOISample:
        if not 0 <= index < self.clips:
            raise IndexError(index)
        draw = torch.Generator().manual_seed(index)
        shape = (self.frames, self.side, self.side, 3)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
        mask = torch.zeros(shape[:3], dtype=torch.bool)
        mask[:, 4:20, 2 + index : 20 + index] = True
        picture = frames[0, :16, :24].contiguous()
        return HOISample(f"noise-{index}", Clip(frames), mask, picture)

    def __iter__(self) -> Iterator[HOISample]:
        return (self[i] for i in range(len(self)))

    def fingerprint(self) -> str:
        return f"noise {self.clips} {self.frames} {self.side}"


def small_base(**options: Any) -> MosaicBase:
    """A tiny base of two blocks, random weights."""
    with mock.patch.dict(mosaic.MOSAIC_CONFIG, SMALL):
        return MosaicBase(**options)


def small_config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "base": "mosaic-untrained",
        "frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
        "steps": 5,
        "batch": 2,
        "warmup": 2,
        "learning_rate": LEARNING_RATE,
        "rank": 4,
        "log_every": 1,
        "checkpoint_every": 1,
        "keep": 2,
        "precision": "no",
        "given": {"mixed": 0.5, "first": 0.3, "none": 0.2},
        "reference_dropout": 0.3,
    }
    return TrainConfig(**(values | changes))


def clips_in(folder: Path) -> EncodedClips:
    """The clips, encoded once."""
    return encode_dataset(small_base(), Noise(), folder / "latents", given=("none",))


def forget_accelerator() -> None:
    """Let the next accelerator of this process have settings of its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state="RANK" not in os.environ)


def fresh_accelerator(config: TrainConfig) -> Any:
    """Make one of this process, or of all that the environment names."""
    forget_accelerator()
    return make_accelerator(config, cpu=True)


def trainer_in(folder: Path, out: str = "run", **changes: Any) -> Trainer:
    """A run on them."""
    config = small_config(**changes)
    dtype = getattr(torch, config.base_dtype)
    return Trainer(
        config,
        folder / out,
        clips_in(folder),
        base=small_base(dtype=dtype),
        accelerator=fresh_accelerator(config),
    )


def curve(out: Path) -> list[tuple[int, str, str]]:
    """(step, loss, norm of the gradient) of every step, as they were written."""
    with (out / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return [(int(row["step"]), row["loss"], row["grad_norm"]) for row in rows]


def losses(out: Path) -> list[float]:
    return [float(loss) for _, loss, _ in curve(out)]


def checkpoint(out: Path, step: int) -> dict[str, Tensor]:
    return load_file(out / "checkpoints" / f"step-{step:06}" / "state.safetensors")


def assert_same_run(one: Path, other: Path, step: int = 5) -> None:
    """Up to rounding: losses, gradients' norms, means of gradients, weights and their average."""
    assert losses(one) == pytest.approx(losses(other), rel=1e-6)
    norms = [[float(norm) for _, _, norm in curve(out)] for out in (one, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    state, wanted = checkpoint(one, step), checkpoint(other, step)
    assert state.keys() == wanted.keys()
    largest = max(x.abs().max().item() for n, x in wanted.items() if n.startswith("exp_avg/"))
    for name, x in wanted.items():
        kind, _, weight = name.partition("/")
        if kind in ("weight", "ema"):
            # Adam divides gradients by their size, also where they are nothing but rounding.
            known = wanted[f"exp_avg/{weight}"].abs() > 1e-2 * largest
            torch.testing.assert_close(
                state[name][known], x[known], rtol=0, atol=2e-3 * LEARNING_RATE, msg=name
            )
        elif kind == "exp_avg":
            torch.testing.assert_close(state[name], x, rtol=0, atol=1e-5 * largest, msg=name)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def as_process(rank: int, ranks: int, port: int) -> None:
    """Set what a launcher sets."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)


def main() -> None:
    """FOLDER OUT CHANGES [RANK RANKS PORT]: one process of a run, from a command line."""
    folder, out, changes, *place = sys.argv[1:]
    if place:
        as_process(*map(int, place))
    torch.set_num_threads(1)
    trainer = trainer_in(Path(folder), out, **json.loads(changes))
    trainer.run()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
