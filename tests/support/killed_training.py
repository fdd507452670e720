"""FOLDER OUT CHANGES SEED: a run whose process is killed again and again, until it is through.

Two of three kills come before some operation on the files of its checkpoints, or when half of their
tensors are written; the others at any time. Prints the step from which each process went on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # once, not in every process

from genhoi.training import checkpoint
from support.tiny_training import trainer_in

MOST, SAVING = 60, 16  # tries; operations of one checkpoint, about


def killed_at(operation: int, folder: Path) -> None:
    """Kill this process before so many more operations on files in a folder."""
    left = [operation]

    def count() -> bool:
        left[0] -= 1
        return left[0] < 0

    def audit(event: str, arguments: Any) -> None:
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
            if str(folder) in str(arguments[0]) and count():
                os.kill(os.getpid(), signal.SIGKILL)

    def save_half(tensors: Any, path: Path) -> None:
        if count():
            path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        whole_file(tensors, path)

    whole_file: Callable[..., None] = checkpoint.save_file
    checkpoint.save_file = save_half
    sys.addaudithook(audit)


def child(folder: Path, out: str, changes: Any, operation: int | None) -> None:
    if operation is not None:
        killed_at(operation, folder / out / "checkpoints")
    trainer = trainer_in(folder, out, **changes)
    print(trainer.step, flush=True)
    trainer.run()
    os._exit(0)


def main() -> None:
    folder, out, changes = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(1)
    draw = random.Random(int(sys.argv[4]))
    for number in range(MOST):
        last = number == MOST - 1
        operation = None if number % 3 == 2 or last else draw.randrange(2 * SAVING)
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            child(folder, out, changes, operation)
        if operation is None and not last:
            time.sleep(draw.uniform(0.05, 0.5))
            os.kill(process, signal.SIGKILL)
        if os.waitpid(process, 0)[1] == 0:
            return
    sys.exit("not through")


if __name__ == "__main__":
    main()
