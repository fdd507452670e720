"""The CUDA kernels (csrc/cuda) compiled by nvcc: resources, and a model of their main loops.

python -m benchmarks.static.cuda [--arch sm_80 ..] [--out FOLDER]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.options import PATH, plain_errors
from benchmarks.static.architectures import ARCHITECTURES
from benchmarks.static.nvcc import ARCHS, KernelCode, compile_kernels, generation_of, list_jobs
from benchmarks.static.overlap import Exp2, count_exp2
from benchmarks.static.peers import BACKWARD, FORWARD, read_peers
from benchmarks.static.sass import tensor_loops, usual_body
from benchmarks.static.sass_model import MODELLED, Kernel, model_loop
from benchmarks.static.table import DASH, Row, write_rows
from benchmarks.static.tools import Usage
from build_tools.nvcc import ONLY_FOR
from genhoi_kernels.backends import native

__all__ = ["CSV_NAME", "HOPPER", "PRODUCTS", "faults", "flash_rows", "main", "rows_of"]

CSV_NAME = "cuda.csv"
HOPPER = ONLY_FOR["sm90"]

FORMS = {"bwd_dkdv": "references", "bwd_dq": "swept"}
"""What a kernel is called besides where a template argument of it is true."""
PRODUCTS = {
    "attention_fwd": FORWARD,
    "bwd_dq": 3,
    "bwd_dq, swept": 3,
    "bwd_dkdv": 4,
    "bwd_dkdv, references": 4,
    "bwd_sweep": BACKWARD,
}
"""Matrix products of a tile. The other kernels have no tensor-core loop over tiles."""

_FIGURES = (
    "loop_ins",
    "HMMA",
    "HGMMA",
    "LDSM",
    "LDGSTS",
    "FP32",
    "MUFU",
    "FMNMX",
    "CVT",
    "IMAD",
    "IALU",
    "SHFL",
    "SYNCS",
    "UNIF",
    "SPILL",
    "softmax_ins_per_elem",
    "eff_max",
    "eff_phase",
    "eff_sum",
)


def rows_of(source: Path, arch: str) -> Iterator[Row]:
    """Yield a row for each kernel of a source."""
    for code in compile_kernels(source, arch):
        is_form = code.name in FORMS and any(code.flags)
        name = f"{code.name}, {FORMS[code.name]}" if is_form else code.name
        row: Row = {
            "kernel": name,
            "arch": arch,
            "dtype": code.dtype,
            "head_dim": code.head_dim or "",
            "registers": code.registers,
            "spilled": code.spilled,
            "serialised": " ".join(code.serialised),
        }
        if name in PRODUCTS:
            row |= _loop_figures(code, arch, name, _find_size(generation_of(source), name, code))
        elif arch == HOPPER and tensor_loops(code.function):
            raise ValueError(f"{source.name}: how many products a tile has in {name} is not known")
        yield row


@dataclass(frozen=True)
class _Size:
    """A kernel's tile and block, as csrc/cuda/limits.h has them."""

    head_dim: int
    queries: int
    keys: int
    threads: int
    loop_threads: int
    shared_bytes: int


def _find_size(generation: str, kernel: str, code: KernelCode) -> _Size:
    """Find a kernel's size; one that has no head dim in its name is for one only.

    Raises:
        ImportError: the compiled part, which knows it, is not built.
        ValueError: it does not know this kernel.
    """
    if native.module is None:
        raise ImportError(native.missing_reason)
    sizes = native.module.cuda_limits()["kernels"].get(generation, {}).get(kernel, {})
    for head_dim, size in sizes.items():
        if code.head_dim == head_dim or (code.head_dim is None and len(sizes) == 1):
            return _Size(head_dim, **size)
    dim = f" for head dim {code.head_dim}" if code.head_dim else ""
    raise ValueError(f"csrc/cuda/limits.cpp has no tile of {generation}'s {kernel}{dim}")


def _loop_figures(code: KernelCode, arch: str, name: str, size: _Size) -> Row:
    """Return resident blocks and figures of the first loop, over whole blocks of video keys.

    rare_ins: its instructions for rare values, which no other figure counts.
    """
    known = arch.rstrip("a")  # to architectures and model: sm_90a is sm_90 with wgmma
    kernel = Kernel(
        arch=known,
        tile=(size.queries, size.keys, size.head_dim),
        products=PRODUCTS[name],
        warps=size.loop_threads // 32,
        all_warps=size.threads // 32,
        usage=Usage(code.registers, None),
        shared=size.shared_bytes,
    )
    figures: Row = {
        "head_dim": size.head_dim,
        "tile": "x".join(map(str, kernel.tile)),
        "shared": size.shared_bytes,
        "ctas_per_sm": ARCHITECTURES[known].resident_ctas(
            code.registers, size.shared_bytes, size.threads // 32
        ),
    }
    loops = tensor_loops(code.function)
    if known not in MODELLED or not loops:
        return figures
    lines = usual_body(code.function, loops[0])
    row = model_loop(name, lines, kernel)
    figures |= {figure: row[figure] for figure in _FIGURES}
    figures["rare_ins"] = len(code.function.body(loops[0])) - len(lines)
    if arch == HOPPER and kernel.products == FORWARD:
        exp2 = count_exp2(lines)
        figures |= {"exp2": exp2.total, "exp2_before_wait": exp2.before_wait}
    return figures


def faults(row: Row) -> list[str]:
    """Describe what is wrong with a kernel of sm_80 or sm_90a; an empty list if nothing is.

    sm_80's kernels may spill on sm_90, which has kernels of its own for what takes most time.
    """
    if row["arch"] == "sm_90":
        return []
    wrong = []
    if row["spilled"]:
        wrong.append(f"spills {row['spilled']} bytes, wanted none")
    if row["serialised"]:
        wrong.append(f"has serialised products ({row['serialised']})")
    if "exp2" in row and not Exp2(row["exp2"], row["exp2_before_wait"]).is_overlapped:
        wrong.append(
            f"waits for P V after {row['exp2_before_wait']} of {row['exp2']} exp2, "
            "wanted at least a third"
        )
    return wrong


def make_rows(archs: tuple[str, ...], console: Console) -> list[Row]:
    """Make the rows of all kernels and architectures, as many at a time as there are cores."""
    jobs = list_jobs(archs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: list(rows_of(*job)), jobs)
        seen = track(results, "Compiling", total=len(jobs), console=console, transient=True)
        return [row for rows in seen for row in rows]


def flash_rows() -> list[Row]:
    """Return FlashAttention-3's rows, as far as they have this table's columns."""
    renamed = {"registers": "regs", "shared": "smem"}
    rows = []
    for peer in read_peers():
        if not peer["kernel"].startswith("FA3 "):
            continue
        columns = (*renamed, "tile", "ctas_per_sm", *_FIGURES, "exp2_before_wait")
        figures = {name: peer[renamed.get(name, name)] for name in columns}
        head_dim = int(peer["tile"].split("x")[-1])
        about = {"kernel": peer["kernel"], "arch": HOPPER, "dtype": "bf16", "head_dim": head_dim}
        if figures["exp2_before_wait"] != "":
            figures["exp2"] = peer["MUFU"]  # it has no other in the loop
        rows.append(about | figures)
    return rows


_COLUMNS = (
    "kernel",
    "arch",
    "dtype",
    "head_dim",
    "tile",
    "registers",
    "spilled",
    "shared",
    "ctas_per_sm",
    "loop_ins",
    "HGMMA",
    "softmax_ins_per_elem",
    "eff_phase",
)


def print_rows(rows: list[Row], console: Console) -> None:
    """Print the table, with a dash where there is nothing to say."""
    table = Table(
        *_COLUMNS,
        "exp2 before wait",
        title="CUDA kernels as compiled; a model, not a measurement",
    )
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in _COLUMNS), _exp2_words(row))
    console.print(table)


def print_faults(rows: list[Row], console: Console) -> None:
    """Print a line for each thing that is wrong with a kernel."""
    for row in rows:
        title = f"{row['kernel']} {row['arch']} {row['dtype']} D{row['head_dim']}"
        for fault in faults(row):
            console.print(f"{title} {fault}", markup=False, highlight=False)


def _cell(value: object) -> str:
    return DASH if value == "" else str(value)


def _exp2_words(row: Row) -> str:
    return f"{row['exp2_before_wait']} of {row['exp2']}" if "exp2" in row else DASH


@click.command()
@click.option("--arch", "archs", multiple=True, default=ARCHS, type=click.Choice(ARCHS))
@click.option(
    "--out", default="results/gpu-compile", show_default=True, type=PATH, help="Folder of the CSV."
)
def main(archs: tuple[str, ...], out: Path) -> None:
    """Compile the CUDA kernels with nvcc and count their main loops; no GPU is needed.

    Writes cuda.csv. The exit status is 1 if a kernel spills registers on sm_80, or if one of sm_90a
    spills, has serialised products or waits for P V too early.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=190)
    with plain_errors():
        ours = make_rows(archs, console)
        rows = ours + (flash_rows() if HOPPER in archs else [])
        print_rows(rows, console)
        print_faults(ours, console)
        write_rows(out / CSV_NAME, rows)
        click.echo(f"Rows: {out / CSV_NAME}")
    sys.exit(any(faults(row) for row in ours))


if __name__ == "__main__":
    main()
