"""Make the table of Triton configurations (tuning/configs.json): what compiles well, best first.

For every architecture, kernel, size of a value and head dim, candidates are compiled bare and with
everything a call can ask for. The first that spills nothing and fits the shared memory is taken.

The entries are of the Triton that is installed; those of other versions stay as they are, and so
do measured ones.

    python -m benchmarks.static.choose [--arch sm_80] [--kernel forward]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import click
import torch
import triton

from benchmarks.static import shipped
from benchmarks.static.compile import Compiled, compile_variant
from benchmarks.static.performance import our_row
from benchmarks.static.violations import violations
from genhoi_kernels.backends.triton.tuning import compiler, configs
from genhoi_kernels.backends.triton.tuning.candidates import candidates
from genhoi_kernels.backends.triton.tuning.configs import ARCHS, HEAD_DIMS, KERNELS, Config, Key
from genhoi_kernels.files import whole_file

__all__ = ["main"]

# float32 is multiplied in three products of 11-bit parts, which spills whatever the sizes: it has
# no entries, and runs on the cautious sizes.
DTYPES = {2: torch.bfloat16}


def choose(key: Key) -> tuple[Config | None, list[str]]:
    """Find the first candidate without a violation, and what was wrong with those before it."""
    arch, kernel = key.arch, key.kernel
    rejected = []
    for candidate in forms(kernel, arch):
        compiled = list(_compiled(key, candidate))
        wrong = [w for c in compiled for w in violations(c)]
        if not wrong:
            resources = " / ".join(_resources(c) for c in compiled)
            before = f"; {len(rejected)} larger candidates rejected" if rejected else ""
            how = f"compiled with triton {triton.__version__}, not timed: {resources}{before}"
            return Config(**{**candidate.__dict__, "how": how}), rejected
        rejected.append(f"{candidate}: {wrong[0]}")
    return None, rejected


def forms(kernel: str, arch: str) -> Iterator[Config]:
    """List candidates, each followed by itself with a loop over the references of one stage."""
    for candidate in candidates(kernel, arch):
        yield candidate
        if candidate.stages_r > 1:
            yield replace(candidate, stages_r=1)


def _compiled(key: Key, candidate: Config) -> Iterator[Compiled]:
    """Compile with all extras first: that is the one that spills."""
    arch, kernel, itemsize, head_dim, _ = key
    with configs.trying(key, candidate):
        for extras in sorted(shipped.EXTRAS[kernel], reverse=True):
            made = shipped.kernel_variants(kernel, arch, DTYPES[itemsize], head_dim, extras=extras)
            for variant in made:
                compiled = compile_variant(variant)
                yield compiled
                if violations(compiled):
                    return


def _resources(compiled: Compiled) -> str:
    resources = f"{compiled.registers} registers, {compiled.shared} bytes shared"
    if compiled.arch in ("sm_80", "sm_90") and compiled.main_loop:
        phase = our_row(compiled).get("eff_phase")
        resources += f", model's phase {phase}"
    return resources


@click.command()
@click.option("--arch", "archs", multiple=True, type=click.Choice(ARCHS), default=ARCHS)
@click.option("--kernel", "kernels", multiple=True, type=click.Choice(KERNELS), default=KERNELS)
@click.option("--head-dim", "head_dims", multiple=True, type=int, default=HEAD_DIMS)
@click.option("--itemsize", "itemsizes", multiple=True, type=int, default=tuple(DTYPES))
def main(
    archs: tuple[str, ...],
    kernels: tuple[str, ...],
    head_dims: tuple[int, ...],
    itemsizes: tuple[int, ...],
) -> None:
    """Choose entries of the table; those not named here stay as they are."""
    for head_dim in head_dims:
        for arch in archs:
            for itemsize in itemsizes:
                for kernel in kernels:
                    key = Key(arch, kernel, itemsize, head_dim, compiler.version())
                    chosen, rejected = choose(key)
                    click.echo(f"{key}: {chosen or 'NONE'}")
                    for line in rejected:
                        click.echo(f"    rejected {line}")
                    if chosen is not None and not is_measured(key):
                        _keep(key, chosen)


def is_measured(key: Key) -> bool:
    """Say whether the table has a measured entry, which what merely compiles does not replace."""
    entry = configs.table().get(key)
    return entry is not None and entry.how.startswith("measured")


def _keep(key: Key, chosen: Config) -> None:
    """Read, extend and replace the table, which another process may have extended meanwhile."""
    configs.table.cache_clear()
    entries = dict(configs.table()) | {key: chosen}
    note = "python -m benchmarks.static.choose, and measurements where an entry says so"
    with whole_file(configs.TABLE) as part:
        part.write_text(configs.text_of(note, entries))


if __name__ == "__main__":
    main()
