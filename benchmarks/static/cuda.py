"""The CUDA kernels (csrc/cuda) compiled by nvcc: resources, and a model of their main loops.

python -m benchmarks.static.cuda [--arch sm_80 ..] [--out FOLDER]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
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
from benchmarks.static.sass import read_functions, tensor_loops
from benchmarks.static.sass_model import MODELLED, Kernel, model_loops
from benchmarks.static.table import Row, write_rows
from benchmarks.static.tools import Usage, disassemble
from genhoi_kernels.backends import native

__all__ = ["CSV_NAME", "KERNELS", "compile_source", "main", "rows_of"]

CSV_NAME = "cuda.csv"
SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"

_SPILLS = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)
_DIM = re.compile(r"Li(64|96|128)E")
_HALVES = {"BFloat16": "bf16", "Float16": "fp16", "Float32": "fp32"}


@dataclass(frozen=True)
class Shape:
    """What the model has to know of a kernel.

    queries, keys: of a tile. warps: of a block, by head dim. products: matrix products of a tile.
    """

    queries: int
    keys: int
    warps: dict[int, int]
    products: int


_FOUR = {64: 4, 96: 4, 128: 4}
# The others have no loop of tensor-core instructions, or one that is no loop over tiles.
KERNELS = {
    "attention_fwd": Shape(128, 64, _FOUR, 2),
    "bwd_dq": Shape(128, 32, _FOUR, 3),
    "bwd_dkdv": Shape(64, 128, {64: 4, 96: 8, 128: 8}, 4),
}


def find_nvcc() -> str:
    """Find nvcc, by CUDA_HOME, or else on the PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("nvcc", path=os.pathsep.join([f"{home}/bin", os.environ.get("PATH", "")]))
    if path is None:
        raise FileNotFoundError("no nvcc: looked in CUDA_HOME, /usr/local/cuda and on the PATH")
    return path


def compile_source(source: Path, arch: str) -> tuple[bytes, str]:
    """Compile a source. Returns its cubin, and what ptxas said.

    Raises:
        RuntimeError: it does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "out.cubin")
        command = [find_nvcc(), "-std=c++17", "-O3", f"-arch={arch}", "-Xptxas", "-v", "-cubin"]
        done = subprocess.run(
            [*command, "-o", str(cubin), str(source)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile: {done.stderr.strip()[-500:]}")
        return cubin.read_bytes(), done.stderr


def name_parts(mangled: str) -> list[str]:
    """List the identifiers in a mangled name, each of which has its length before it."""
    parts, at = [], 0
    while match := re.compile(r"\d+").search(mangled, at):
        length, start = int(match[0]), match.end()
        word = mangled[start : start + length]
        is_word = len(word) == length and re.fullmatch(r"[A-Za-z_]\w*", word) is not None
        if is_word and not word.startswith(("_GLOBAL", "E")):
            parts.append(word)
        at = start + length if is_word else start
    return parts


def rows_of(source: Path, arch: str) -> Iterator[Row]:
    """Yield a row for each kernel of a source."""
    cubin, log = compile_source(source, arch)
    functions = {f.name: f for f in read_functions(disassemble(cubin))}
    for name, stores, loads, registers in _SPILLS.findall(log):
        parts, dim = name_parts(name), _DIM.search(name)
        row: Row = {
            "kernel": next((part for part in reversed(parts) if part[0].islower()), name),
            "arch": arch,
            "dtype": next((_HALVES[part] for part in parts if part in _HALVES), ""),
            "head_dim": int(dim[1]) if dim else "",
            "registers": int(registers),
            "spilled": int(stores) + int(loads),
        }
        kernel = str(row["kernel"])
        shape = KERNELS.get(kernel)
        if kernel == "bwd_dkdv" and "Lb1E" in name:
            row["kernel"] = "bwd_dkdv, references"
        if shape is not None and dim is not None:
            shared = _shared_bytes(kernel, int(dim[1]))
            row |= _loops(functions[name], arch, shape, int(dim[1]), int(registers), shared)
        yield row


def _shared_bytes(kernel: str, head_dim: int) -> int:
    """Return the bytes of shared memory of a block.

    Raises:
        RuntimeError: the compiled part, which knows it, is not built.
    """
    if native.module is None:
        raise RuntimeError(native.missing_reason)
    return int(native.module.cuda_limits()["shared_bytes"][kernel][head_dim])


def _loops(function: object, arch: str, shape: Shape, dim: int, registers: int, shared: int) -> Row:
    """Return resident blocks and figures of the first loop, over whole blocks of video keys."""
    warps = shape.warps[dim]
    figures: Row = {
        "tile": f"{shape.queries}x{shape.keys}x{dim}",
        "shared": shared,
        "ctas_per_sm": ARCHITECTURES[arch].resident_ctas(registers, shared, warps),
    }
    if arch not in MODELLED or not tensor_loops(function):  # type: ignore[arg-type]
        return figures
    kernel = Kernel(
        arch=arch,
        tile=(shape.queries, shape.keys, dim),
        products=shape.products,
        warps=warps,
        usage=Usage(registers, None),
        shared=shared,
    )
    first = model_loops(function, kernel)[0]  # type: ignore[arg-type]
    wanted = (
        "loop_ins",
        "HMMA",
        "LDSM",
        "LDGSTS",
        "FP32",
        "MUFU",
        "FMNMX",
        "CVT",
        "IMAD",
        "IALU",
        "SHFL",
        "SPILL",
        "softmax_ins_per_elem",
        "eff_max",
        "eff_phase",
        "eff_sum",
    )
    return figures | {name: first[name] for name in wanted if name in first}


def make_rows(archs: tuple[str, ...], console: Console) -> list[Row]:
    """Make the rows of all kernels and architectures, two compilers at a time."""
    jobs = [(source, arch) for arch in archs for source in sorted(SOURCES.glob("**/*.cu"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: list(rows_of(*job)), jobs)
        seen = track(results, "Compiling", total=len(jobs), console=console, transient=True)
        return [row for rows in seen for row in rows]


def print_rows(rows: list[Row], console: Console) -> None:
    """Print the table, with a dash where there is nothing to say."""
    columns = [
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
        "softmax_ins_per_elem",
        "eff_phase",
    ]
    table = Table(*columns, title="CUDA kernels as compiled; a model, not a measurement")
    for row in rows:
        table.add_row(*(str(row.get(name, "") or row.get(name, "-")) for name in columns))
    console.print(table)


@click.command()
@click.option("--arch", "archs", multiple=True, default=("sm_80", "sm_90"), show_default=True)
@click.option(
    "--out", default="results/gpu-compile", show_default=True, type=PATH, help="Folder of the CSV."
)
def main(archs: tuple[str, ...], out: Path) -> None:
    """Compile the CUDA kernels with nvcc and count their main loops; no GPU is needed.

    Writes cuda.csv. The exit status is 1 if a kernel spills registers on sm_80.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    with plain_errors():
        rows = make_rows(archs, console)
        print_rows(rows, console)
        write_rows(out / CSV_NAME, rows)
        click.echo(f"Rows: {out / CSV_NAME}")
    sys.exit(any(row["spilled"] for row in rows if row["arch"] == "sm_80"))


if __name__ == "__main__":
    main()
