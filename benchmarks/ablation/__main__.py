"""The command `python -m benchmarks.ablation`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch

from benchmarks.ablation.plan import REGIMES, SCALES, VARIANTS, Regime, Run

__all__ = ["main"]


@click.command()
@click.option(
    "--out",
    default="results/ablation",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for everything; what is done there is not done again.",
)
@click.option("--scale", default="full", show_default=True, type=click.Choice(list(SCALES)))
@click.option("--seeds", default="0,1,2", show_default=True, help="Of bases and adaptations.")
@click.option("--regimes", default=",".join(REGIMES), show_default=True, help="Of the bases.")
@click.option("--variants", default=",".join(VARIANTS), show_default=True)
@click.option(
    "--pose/--no-pose",
    default=True,
    show_default=True,
    help="Whether the model is told the object's pose; without, it has to find it in the mask.",
)
@click.option("--threads", default=1, show_default=True, help="Start it several times for more.")
@click.option("--cost", is_flag=True, help="Only time a step of each variant: cost.csv.")
@click.option("--collect", is_flag=True, help="Only write tables and plots of what is done.")
def main(
    out: Path,
    scale: str,
    seeds: str,
    regimes: str,
    variants: str,
    pose: bool,
    threads: int,
    cost: bool,
    collect: bool,
) -> None:
    """Compare ways to bring a reference in, on tiny bases; see the package's description."""
    torch.set_num_threads(threads)
    chosen = _names(variants, VARIANTS, "--variants")
    bases: list[Regime] = [r for r in REGIMES if r in _names(regimes, REGIMES, "--regimes")]
    numbers = [int(x) for x in seeds.split(",")]
    begun = time.monotonic()

    def note(line: str) -> None:
        click.echo(f"{time.monotonic() - begun:7.0f} s  {line}")

    if cost:
        from benchmarks.ablation.cost import measure_cost
        from benchmarks.ablation.run import Study
        from benchmarks.ablation.tables import write_table

        study = Study(out, replace(SCALES[scale], pose=pose), note)
        rows = list(measure_cost(study.scale, study.clips, rounds=15))
        click.echo(f"Wrote {write_table(out / 'results' / 'cost.csv', rows)}")
        return
    if not collect:
        from benchmarks.ablation.run import Study

        study = Study(out, replace(SCALES[scale], pose=pose), note)
        for seed in numbers:
            for regime in bases:
                study.pretrain(regime, seed)
                for variant in chosen:
                    study.adapt(Run(regime, variant, seed))
    from benchmarks.ablation.tables import collect_tables

    for path in collect_tables(out):
        click.echo(f"Wrote {path}")


def _names(text: str, known: Sequence[str] | dict[str, object], option: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise click.ClickException(f"{option}: got {unknown}, wanted some of {list(known)}")
    return names


if __name__ == "__main__":
    main()
