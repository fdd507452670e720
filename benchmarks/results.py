"""Takes a GPU's report into the documents: `python -m benchmarks.results add FOLDER`.

The folder's files go to docs/results/<gpu>-<date>, with pictures; README.md's table of GPU times is
made anew from the newest folder of each GPU.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from benchmarks.gpu_report.figures import draw
from benchmarks.gpu_report.folder import FILES, LOG, REPORT, RESULTS, read_json
from benchmarks.gpu_report.table import is_apart, is_ours, label, ms_words
from benchmarks.report import Row, read_numbers

__all__ = ["README_TABLE", "gpu_table"]

RESULTS_FOLDER, README = Path("docs/results"), Path("README.md")
README_TABLE = "gpu-times"
"""Name of the part of README.md that is made here: between two comments."""

_COLUMNS = (
    ("wan1.3b-480p", "forward"),
    ("wan1.3b-480p", "backward"),
    ("wan14b-720p", "forward"),
    ("wan14b-720p", "backward"),
)


@click.group()
def main() -> None:
    """Results of GPU reports, for the documents."""


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--date", help="Of the report.  [default: its newest row's]")
def add(folder: Path, date: str | None) -> None:
    """Copy a report into docs/results, draw its pictures, and make README.md's table anew."""
    report, rows = read_json(folder / REPORT), read_numbers(folder / RESULTS)
    if report.get("tiny"):
        raise click.UsageError(f"{folder}: a dry run's times say nothing, wanted a whole report")
    timed = [row for row in rows if not row["reason"] and row.get("device")]
    if not timed:
        raise click.UsageError(f"{folder}: {RESULTS} has no row that was timed")
    date = date or max(str(row["date"]) for row in timed)[:10]
    target = RESULTS_FOLDER / f"{slug(timed[0]['device'])}-{date}"
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if name != LOG and (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    for picture in draw(target):
        click.echo(f"Picture: {picture}")
    text = README.read_text(encoding="utf-8")
    README.write_text(replaced(text, README_TABLE, gpu_table(newest())), encoding="utf-8")
    click.echo(f"Results: {target}; the table in {README} is new")


def slug(device: str) -> str:
    """A GPU's name as part of a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower().replace("nvidia", "")).strip("-")


def newest() -> list[Path]:
    """The newest folder of each GPU that has one."""
    found: dict[str, Path] = {}
    for path in sorted(RESULTS_FOLDER.glob(f"*/{REPORT}")):
        found[path.parent.name[: -len("-2026-01-01")]] = path.parent
    return list(found.values())


def replaced(text: str, name: str, new: str) -> str:
    """The text with another part between its two comments.

    Raises:
        ValueError: it has no such comments.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{README}: has no part between {begin} and {end}")
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end, 1)[1]}"


def gpu_table(folders: Sequence[Path]) -> str:
    """For each GPU what was measured on, and a table: a line a contender, a column a case."""
    return "\n\n".join("\n".join(_of_gpu(folder)) for folder in folders)


def _of_gpu(folder: Path) -> Iterator[str]:
    rows = [row for row in read_numbers(folder / RESULTS) if row["suite"] == "attention"]
    environment = read_json(folder / REPORT).get("environment", {})
    packages, limits = environment["packages"], environment["limits"]
    driver = environment["nvidia_smi"].get("driver_version", "unknown")
    yield (
        f"{environment['gpu']}, driver {driver}; torch {packages['torch']}, triton "
        f"{packages['triton']}, cuDNN {cudnn(environment['cudnn'])}; {folder.name[-10:]}; "
        f"bfloat16, random data, medians of calls taking turns. Ceilings in the same run: matrix "
        f"product {limits['flops'] / 1e12:.0f} TFLOP/s, copy {limits['bandwidth'] / 1e12:.2f} TB/s."
    )
    if any(map(is_apart, rows)):
        yield "With a *: timed later in the same report, not in turns with the others."
    yield ""
    heads = [f"{shape}, {direction}" for shape, direction in _COLUMNS]
    yield f"| ms (TFLOP/s) | {' | '.join(heads)} |"
    yield "| --- |" + " --- |" * len(heads)
    ordered = sorted(rows, key=lambda row: not is_ours(row))
    for name in dict.fromkeys(label(row) for row in ordered):
        cells = [_cell(rows, name, *column) for column in _COLUMNS]
        if any(cells):
            yield f"| {name} | {' | '.join(cells)} |"


def cudnn(number: int) -> str:
    """cuDNN's version as people write it: 91900 is 9.19.0."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _cell(rows: Sequence[Row], name: str, shape: str, direction: str) -> str:
    """Time and rate of a contender in a case; "" where it was not timed."""
    for row in rows:
        about = label(row), row["shape"], row["direction"]
        if about == (name, shape, direction) and isinstance(row["ms"], float):
            return f"{ms_words(row['ms'])} ({row['tflops']:.0f}){'*' if is_apart(row) else ''}"
    return ""


if __name__ == "__main__":
    main()
