"""Draws how the tiny model's losses fell: genhoi/weights/tiny/curves.png.

python -m benchmarks.tiny_model.curves --codec results/tiny-codec --legs results/tiny
"""

from __future__ import annotations

import csv
from pathlib import Path

import click
import matplotlib

from genhoi_kernels.files import whole_file

__all__ = ["draw_curves"]

_Rows = list[dict[str, str]]


def draw_curves(codec: Path, legs: Path, out: Path) -> None:
    """Draw the codec's loss over minutes, and the transformer's over all legs' clips.

    Args:
        codec: folder of `benchmarks.tiny_model.codec`.
        legs: folder of `benchmarks.tiny_model.train`.
        out: the PNG to write.

    Raises:
        FileNotFoundError: there is no log.
    """
    import yaml
    from matplotlib import pyplot

    matplotlib.use("Agg")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    rows = _read(codec / "log.csv")
    for frames in sorted({int(row["frames"]) for row in rows}):
        part = [row for row in rows if int(row["frames"]) == frames]
        left.plot(*_columns(part, "minutes", "loss"), label=f"{frames} frames")
    left.set(xlabel="minutes of two cores", ylabel="loss", title="codec", yscale="log")
    left.legend()
    seen = 0
    for leg in sorted(legs.glob("leg-*"), key=lambda path: int(path.name.removeprefix("leg-"))):
        settings = yaml.safe_load((leg / "settings.yaml").read_text(encoding="utf-8"))
        steps, losses = _columns(_read(leg / "run" / "metrics.csv"), "step", "loss_smoothed")
        clips = [seen + step * settings["batch"] for step in steps]
        right.plot(clips, losses, label=f"{leg.name}, {settings['frames']} frames")
        seen = int(clips[-1])
    right.set(xlabel="clips", ylabel="loss, mean of 20 steps", title="transformer and adapter")
    right.set_yscale("log")
    right.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def _read(path: Path) -> _Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _columns(rows: _Rows, x: str, y: str) -> tuple[list[float], list[float]]:
    return [float(row[x]) for row in rows], [float(row[y]) for row in rows]


@click.command()
@click.option("--codec", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--legs", required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    default="genhoi/weights/tiny/curves.png",
    show_default=True,
    type=click.Path(path_type=Path),
)
def main(codec: Path, legs: Path, out: Path) -> None:
    """Draw the losses of the codec and of all legs."""
    draw_curves(codec, legs, out)
    click.echo(f"Wrote {out}")


if __name__ == "__main__":
    main()
