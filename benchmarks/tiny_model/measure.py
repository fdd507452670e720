"""Measures the tiny model on held-out clips, and compares it with the bars it is held to.

    python -m benchmarks.tiny_model.measure --base results/tiny/leg-3/pipeline --out results/bars

The clips are the first ones of the synthetic test split, seed 0: nothing is chosen. Every clip is
edited by `GenHOIPipeline` with its own object's picture, as a whole frame with no pixel of the
source put back, and once more with an object of no weight. Writes clips.csv, metrics.json and
sheets/. Killed and started again it goes on with the next edit.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.tiny_model.measure_bars import Bar, as_records, bars_of, codec_summary, summarise
from benchmarks.tiny_model.measure_clip import Condition, TestClips, codec_row, edit, edit_row
from benchmarks.tiny_model.measure_files import Rows, base_digest
from benchmarks.tiny_model.measure_sheet import draw_sheet
from genhoi.editing.pipeline import GenHOIPipeline
from genhoi_kernels.files import whole_file

__all__ = ["Measurement"]


class Measurement:
    """Measures a model under some conditions.

    Args:
        pipeline: the model.
        clips: the held-out clips.
        steps: of Euler's method; None for the base's own.
        rows: where rows are kept.
    """

    def __init__(
        self, pipeline: GenHOIPipeline, clips: TestClips, *, steps: int | None, rows: Rows
    ) -> None:
        self.pipeline, self.clips, self.steps, self.rows = pipeline, clips, steps, rows

    def codec(self) -> list[dict[str, Any]]:
        """Measure the codec on every clip."""
        return [self.rows.get(f"codec-{i:03}", lambda i=i: self._codec(i)) for i in self._all()]

    def condition(self, condition: Condition) -> list[dict[str, Any]]:
        """Measure the edits of every clip, and draw their sheets."""
        rows = []
        for i in self._all():
            name = f"{condition}-{i:03}"
            row = self.rows.get(name, lambda i=i: self._edit(condition, i))
            rows.append(row)
            third = ", ".join("-" if x is None else f"{x:.1f}" for x in row["object_psnr"])
            click.echo(f"{name}: object PSNR {third} dB by thirds, {row['seconds']:.1f} s")
        return rows

    def _all(self) -> range:
        return range(self.clips.clips)

    def _pictures(self, index: int) -> list[torch.Tensor]:
        return [
            self.rows.picture(f"{i:03}", lambda i=i: self.clips.sample(i).object)
            for i in self.clips.candidates(index)
        ]

    def _codec(self, index: int) -> dict[str, Any]:
        sample = self.clips.sample(index)
        return codec_row(self.pipeline.base, sample, pictures=self._pictures(index))

    def _edit(self, condition: Condition, index: int) -> dict[str, Any]:
        sample = self.clips.sample(index, condition.mask)
        begun = time.perf_counter()
        edited = edit(self.pipeline, sample, condition, index=index, steps=self.steps)
        seconds = time.perf_counter() - begun
        without = edit(
            self.pipeline, sample, condition, index=index, steps=self.steps, reference=False
        )
        draw_sheet(
            self.rows.folder / "sheets" / f"{condition}-{index:03}.png", sample, edited, without
        )
        pictures = self._pictures(index)
        return edit_row(sample, edited, without, pictures=pictures, seconds=seconds)


def measure(
    measurement: Measurement, conditions: Sequence[Condition], *, command: str
) -> list[Bar]:
    """Measure everything, write clips.csv and metrics.json, and give the bars.

    Args:
        measurement: of the model.
        conditions: under which it edits.
        command: for the record.
    """
    codec = codec_summary(measurement.codec())
    click.echo(
        f"codec alone: PSNR {codec['psnr']} dB, SSIM {codec['ssim']}; objects found by thirds in "
        f"true clips {codec['true_found']}, in coded ones {codec['codec_found']}"
    )
    by_condition = {str(c): measurement.condition(c) for c in conditions}
    summaries = {name: summarise(rows) for name, rows in by_condition.items()}
    bars = [bar for name, summary in summaries.items() for bar in bars_of(name, summary)]
    record = {
        "command": command,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clips": measurement.clips.clips,
        "frames": measurement.clips.frames,
        "steps": measurement.steps or measurement.pipeline.base.settings.defaults.steps,
        "codec": codec,
        "conditions": summaries,
        "bars": as_records(bars),
    }
    folder = measurement.rows.folder
    with whole_file(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _write_csv(folder / "clips.csv", by_condition)
    return bars


def _write_csv(path: Path, by_condition: dict[str, list[dict[str, Any]]]) -> None:
    """Write a line for each clip and condition; what is measured by thirds takes three columns."""
    lines = []
    for condition, rows in by_condition.items():
        for index, row in enumerate(rows):
            line: dict[str, Any] = {"condition": condition, "clip": index}
            for name, value in row.items():
                thirds = (
                    zip(("first", "middle", "last"), value, strict=True)
                    if isinstance(value, list)
                    else [("", value)]
                )
                line |= {f"{name}_{third}".strip("_"): x for third, x in thirds}
            lines.append(line)
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


@click.command()
@click.option("--base", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the result.")
@click.option("--clips", default=32, show_default=True, help="Held-out clips, 8 or more.")
@click.option("--frames", default=49, show_default=True, help="Of each clip.")
@click.option("--steps", type=int, help="Of Euler's method.  [default: the base's own]")
@click.option(
    "--conditions",
    default="first-tight,none-tight,none-box",
    show_default=True,
    help="What is given, first or none, and the kind of mask.",
)
def main(
    base: Path, out: Path, clips: int, frames: int, steps: int | None, conditions: str
) -> None:
    """Measure the base with its adapter in a folder, and print the bars."""
    try:
        chosen = [Condition.parse(word) for word in conditions.split(",")]
        test = TestClips(clips, frames)
        test.candidates(0)  # raises
        job = {"model": base_digest(base), "clips": clips, "frames": frames, "steps": steps}
        rows = Rows(out, job)
    except (ValueError, FileExistsError) as error:
        raise click.ClickException(str(error)) from error
    measurement = Measurement(GenHOIPipeline.from_pretrained(base), test, steps=steps, rows=rows)
    command = " ".join(["python -m benchmarks.tiny_model.measure", *sys.argv[1:]])
    for bar in measure(measurement, chosen, command=command):
        verdict = "passed" if bar.passed else "FAILED"
        click.echo(f"{verdict}  {bar.condition}: {bar.name}: {bar.value:.4g}, wanted {bar.wanted}")


if __name__ == "__main__":
    main()
