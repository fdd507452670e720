"""What a training run writes down: a CSV of every logged step, and TensorBoard's files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from genhoi.media import atomic_path

__all__ = ["TrainingLog"]


class TrainingLog:
    """Writes metrics.csv, and tensorboard/ where that is installed, into a run's folder.

    Args:
        folder: of the run.
        step: the run goes on after this step; rows of later ones, which an interrupted run left,
            are taken away.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.csv"
        self._fields: list[str] | None = None
        if self.path.is_file():
            self._write([row for row in self._read() if int(row["step"]) <= step])
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board: Any = None
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, **values: float) -> None:
        """Write one step's values."""
        row = {"step": str(step)} | {name: f"{value:.8g}" for name, value in values.items()}
        if self._fields is None:
            self._write([row])
        elif self._fields != list(row):  # an earlier version began it
            self._write([*self._read(), row])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._fields).writerow(row)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def add_picture(self, step: int, pixels: Any) -> None:
        """Show a picture, uint8 [H, W, 3], in TensorBoard."""
        if self._board is not None:
            self._board.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        if self._board is not None:
            self._board.close()

    def _read(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            # A row that a killed program did not finish lacks values.
            return [row for row in csv.DictReader(file) if None not in row.values()]

    def _write(self, rows: list[dict[str, str]]) -> None:
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        self._fields = list(rows[-1])
        with atomic_path(self.path, overwrite=True) as temporary:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._fields, restval="")
                writer.writeheader()
                writer.writerows(rows)
