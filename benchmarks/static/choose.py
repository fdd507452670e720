"""Make the table of Triton configurations (tuning/configs.json): what compiles well, best first.

For every architecture, kernel, size of a value and head dim, candidates are compiled bare and with
everything a call can ask for. The first that spills nothing and fits the shared memory is taken.

The entries are of the Triton that is installed; those of other versions stay as they are, and so
do measured ones.

    python -m benchmarks.static.choose [--arch sm_80] [--kernel forward]
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
import torch
import triton

from benchmarks.static import shipped
from benchmarks.static.compile import Compiled, compile_variant
from benchmarks.static.performance import our_row
from benchmarks.static.violations import violations
from genhoi.media.media import atomic_path
from genhoi_kernels.backends.triton.tuning import compiler, configs
from genhoi_kernels.backends.triton.tuning.candidates import candidates
from genhoi_kernels.backends.triton.tuning.configs import ARCHS, HEAD_DIMS, KERNELS, Config, Key

__all__ = ["main"]

# float32 is multiplied in three products of 11-bit parts, which spills whatever the sizes: it has
# no entries, and runs on the cautious sizes.
DTYPES = {2: torch.bfloat16}


def choose(key: Key) -> tuple[Config | None, list[str]]:
    """The first candidate without a violation, and what was wrong with those before it."""
    arch, kernel = key.arch, key.kernel
    rejected = []
    for candidate in candidates(kernel, arch):
        compiled = list(_compiled(key, candidate))
        wrong = [w for c in compiled for w in violations(c)]
        if not wrong:
            words = " / ".join(_words(c) for c in compiled)
            before = f"; {len(rejected)} larger candidates rejected" if rejected else ""
            how = f"compiled with triton {triton.__version__}, not timed: {words}{before}"
            return Config(**{**candidate.__dict__, "how": how}), rejected
        rejected.append(f"{candidate}: {wrong[0]}")
    return None, rejected


def _compiled(key: Key, candidate: Config) -> Iterator[Compiled]:
    """With all extras first: it is the one that spills."""
    arch, kernel, itemsize, head_dim, _ = key
    with configs.trying(key, candidate):
        for extras in sorted(shipped.EXTRAS[kernel], reverse=True):
            made = shipped.kernel_variants(kernel, arch, DTYPES[itemsize], head_dim, extras=extras)
            for variant in made:
                compiled = compile_variant(variant)
                yield compiled
                if violations(compiled):
                    return


def _words(compiled: Compiled) -> str:
    words = f"{compiled.registers} registers, {compiled.shared} bytes shared"
    if compiled.arch in ("sm_80", "sm_90") and compiled.main_loop:
        phase = our_row(compiled).get("eff_phase")
        words += f", model's phase {phase}"
    return words


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
                    found, rejected = choose(key)
                    click.echo(f"{key}: {found or 'NONE'}")
                    for line in rejected:
                        click.echo(f"    rejected {line}")
                    if found is not None and not is_measured(key):
                        _keep(key, found)


def is_measured(key: Key) -> bool:
    """Whether the table has a measured entry, which what merely compiles does not replace."""
    entry = configs.table().get(key)
    return entry is not None and entry.how.startswith("measured")


def _keep(key: Key, found: Config) -> None:
    """Read, extend and replace the table, which another process may have extended meanwhile."""
    configs.table.cache_clear()
    entries = dict(configs.table()) | {key: found}
    note = "python -m benchmarks.static.choose, and measurements where an entry says so"
    text = json.dumps({"made_by": note, "entries": configs.entries_of(entries)}, indent=1)
    with atomic_path(configs.TABLE, overwrite=True) as part:
        part.write_text(text + "\n")


if __name__ == "__main__":
    main()
