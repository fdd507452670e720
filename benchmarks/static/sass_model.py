"""How much of the tensor cores' peak a compiled attention kernel's main loop can reach at most.

A model of counted instructions: nothing runs. All times are SM cycles for one tile of queries and
keys. A pipe is busy for the sum of its instructions, over its rate, times the warps. From these:

- max: the slowest pipe. Everything else hides behind it: an upper bound of the tensor cores' use.
- phase: max(tensor, shared memory) + max(FMA, ALU, MUFU, issue of the rest). Matrix products and
  softmax never overlap. It ranks kernels best: published speeds lie at 0.9-1.0 of it forward, and
  at 0.8 backward, on the few points there are.
- sum: nothing overlaps: a lower bound but for latencies and barriers.

An `eff_` figure is the ideal time, that of the products alone at the dense bf16 peak, over such a
time. Counts are static: each instruction between the loop's header and its back edge counts once,
those predicated off or on paths rarely taken too; those placed out of line do not. Left out:
latency, bank conflicts, L2 and HBM, waves, what surrounds the loop, the clock under load.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.static.architectures import ARCHITECTURES
from benchmarks.static.sass import (
    CLASSES,
    HALF_OPCODES,
    Function,
    base_opcode,
    classify,
    opcode_of,
    operands_of,
    read_functions,
    tensor_loops,
)
from benchmarks.static.tools import Usage

__all__ = [
    "MODELLED",
    "Kernel",
    "Rates",
    "Work",
    "choose_loop",
    "count_work",
    "model_loop",
    "model_loops",
    "model_sass",
]

Row = dict[str, Any]
Tile = tuple[int, int, int]


@dataclass(frozen=True)
class Rates:
    """An architecture's rates; cycles are of one warp's instruction on its quarter of an SM.

    Attributes:
        hmma: cycles of mma.sync m16n8k16 in bf16.
        products: multiply-adds a cycle of an SM's tensor cores, dense bf16.
        fma, imad, alu, half, mufu, convert: cycles.
        shared_bytes: of shared memory, a cycle and SM.
    """

    hmma: float
    products: int
    fma: float
    half: float
    imad: float = 2.0
    alu: float = 2.0
    mufu: float = 8.0
    convert: float = 2.0
    shared_bytes: int = 128


# On sm_90 mma.sync reaches about 62 % of wgmma's rate, as measured in the literature; an SM has 128
# lanes for floats and 64 for integers there.
MODELLED = {
    "sm_80": Rates(hmma=8.0, products=1024, fma=2.0, half=2.0),
    "sm_90": Rates(hmma=4.0 / 0.62, products=2048, fma=1.0, half=1.0),
}
_HMMA_PRODUCTS = {"16816": 2048, "1688": 1024, "884": 256}  # multiply-adds of a warp
_MATRIX_BYTES = 128  # 8 x 8 values of 16 bits
_BYTES = {"128": 16, "64": 8, "32": 4, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}
_WIDTH = re.compile(r"\.(128|64|32|U16|S16|U8|S8|16|8)\b")
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass
class Work:
    """What one warp does in one pass of a loop.

    Attributes:
        classes: instructions by class.
        products: multiply-adds of the tensor cores.
        shared: bytes through shared memory and the L1, which share a path.
        tensor, fma, alu, mufu: busy cycles of a quarter of an SM.
    """

    classes: Counter[str] = field(default_factory=Counter)
    products: float = 0.0
    shared: float = 0.0
    tensor: float = 0.0
    fma: float = 0.0
    alu: float = 0.0
    mufu: float = 0.0

    @property
    def instructions(self) -> int:
        return self.classes.total()

    @property
    def matrix_instructions(self) -> int:
        """Count products and loads of operands; the rest is softmax, addresses and control."""
        return self.classes["HMMA"] + self.classes["HGMMA"] + self.classes["LDSM"]


def count_work(lines: Sequence[str], rates: Rates) -> Work:
    """Add up what instructions do."""
    work = Work()
    for line in lines:
        opcode = opcode_of(line)
        kind = classify(opcode)
        work.classes[kind] += 1
        if kind == "HMMA":
            _add_hmma(work, opcode, rates)
        elif kind == "HGMMA":
            _add_hgmma(work, line, rates)
        elif kind in ("LDSM", "STSM"):
            count = 4 if ".4" in opcode else 2 if ".2" in opcode else 1
            work.shared += _MATRIX_BYTES * count
        elif kind in ("LDS", "STS", "LDGSTS", "LDG", "STG", "RED", "SPILL"):
            work.shared += 32 * _bytes_of_thread(opcode)
        elif kind == "SHFL":
            work.shared += 32 * 4
        elif kind == "FP32":
            work.fma += rates.half if base_opcode(opcode) in HALF_OPCODES else rates.fma
        elif kind == "IMAD":  # moves and shifts of that name use the pipe as well
            work.fma += rates.imad
        elif kind in ("FMNMX", "IALU"):
            work.alu += rates.alu
        elif kind == "CVT":
            work.alu += rates.convert
        elif kind == "MUFU":
            work.mufu += rates.mufu
    return work


def _add_hmma(work: Work, opcode: str, rates: Rates) -> None:
    shape = re.search(r"\.(\d{4,5})\.", opcode + ".")
    products = _HMMA_PRODUCTS.get(shape[1] if shape else "16816", 2048)
    work.products += products
    work.tensor += rates.hmma * products / 2048


def _add_hgmma(work: Work, line: str, rates: Rates) -> None:
    """Add a product of four warps; operand B, and A unless in registers, is read once for them."""
    shape = _SHAPE.search(opcode_of(line))
    if shape is None:
        raise ValueError(f"no shape in the instruction {line!r}")
    M, N, K = map(int, shape.groups())
    products = M * N * K / 4
    work.products += products
    work.tensor += products / (rates.products / 4)
    both_shared = re.match(r"R\d+, gdesc", operands_of(line)) is not None
    work.shared += (N * K * 2 + (M * K * 2 if both_shared else 0)) / 4


def _bytes_of_thread(opcode: str) -> int:
    width = _WIDTH.search(opcode)
    return _BYTES[width[1]] if width else 4


@dataclass(frozen=True)
class Kernel:
    """What the model has to know of a kernel besides its instructions.

    Attributes:
        arch: "sm_80" or "sm_90".
        tile: queries, keys and head dim of one pass, before unrolling.
        products: matrix products of a tile: 2 forward, 5 backward.
        warps: of a CTA that execute the loop; None to tell by the products.
        all_warps: of a CTA, those that only load too; None for `warps`.
        usage: registers and stack; None if unknown.
        shared: bytes of shared memory of a CTA; None if unknown.
        copied: bytes that other warps copy into shared memory for a tile.
    """

    arch: str
    tile: Tile
    products: int = 2
    warps: int | None = None
    all_warps: int | None = None
    usage: Usage | None = None
    shared: int | None = None
    copied: int = 0


def model_loop(name: str, lines: Sequence[str], kernel: Kernel) -> Row:
    """Compute the model's figures of one loop: the columns of peers.csv but for `loop`."""
    rates = MODELLED[kernel.arch]
    work = count_work(lines, rates)
    needed = kernel.products * math.prod(kernel.tile)
    warps = kernel.warps or max(1, round(needed / work.products))
    tiles = work.products * warps / needed
    busy = _busy(work, kernel, rates, warps, tiles)
    ideal = needed / rates.products
    longest, phased, summed = _bounds(busy, work, warps / 4.0 / tiles)
    queries, keys, head_dim = kernel.tile
    rest = work.instructions - work.matrix_instructions
    return {
        "kernel": name,
        "arch": int(kernel.arch.removeprefix("sm_")),
        "tile": f"{queries}x{keys}x{head_dim}",
        "warps": warps,
        "regs": kernel.usage.registers if kernel.usage else None,
        "stack": kernel.usage.stack if kernel.usage else None,
        "loop_ins": work.instructions,
        "tiles_per_pass": round(tiles, 3),
        "smem": kernel.shared,
        "ctas_per_sm": _resident(kernel, warps),
        **{name: work.classes[name] for name in CLASSES if name != "UTCMMA"},
        **{f"cyc_{pipe}": round(cycles, 1) for pipe, cycles in busy.items()},
        "bound": max(busy, key=lambda pipe: busy[pipe]),
        "ideal": round(ideal, 1),
        "cyc_max": round(longest, 1),
        "cyc_phase": round(phased, 1),
        "cyc_sum": round(summed, 1),
        "eff_max": round(ideal / longest, 3),
        "eff_phase": round(ideal / phased, 3),
        "eff_sum": round(ideal / summed, 3),
        "softmax_ins_per_elem": round(rest * 32 * warps / tiles / (queries * keys), 2),
    }


def _busy(work: Work, kernel: Kernel, rates: Rates, warps: int, tiles: float) -> dict[str, float]:
    """Return the cycles that each pipe of an SM is busy for a tile."""
    scale = warps / 4.0 / tiles  # warps of a quarter of an SM, a tile
    return {
        "tensor": work.tensor * scale,
        "fma": work.fma * scale,
        "alu": work.alu * scale,
        "mufu": work.mufu * scale,
        "lsu": (work.shared * warps / tiles + kernel.copied) / rates.shared_bytes,
        "issue": work.instructions * scale,
    }


def _bounds(busy: Mapping[str, float], work: Work, scale: float) -> tuple[float, float, float]:
    """Return bounds on the cycles of a tile: max, phase, sum."""
    issue = busy["issue"] - work.matrix_instructions * scale
    softmax = max(busy["fma"], busy["alu"], busy["mufu"], issue)
    phase = max(busy["tensor"], busy["lsu"]) + softmax
    return max(busy.values()), phase, sum(v for pipe, v in busy.items() if pipe != "issue")


def _resident(kernel: Kernel, warps: int) -> int | None:
    registers = kernel.usage.registers if kernel.usage else 128
    return ARCHITECTURES[kernel.arch].resident_ctas(
        registers, kernel.shared or 0, kernel.all_warps or warps
    )


def model_sass(text: str, kernel: Kernel, usages: Mapping[str, Usage]) -> list[Row]:
    """Make one row for each function that has tensor loops, of its main loop.

    Args:
        text: disassembly.
        kernel: as far as known; `usage` is filled in.
        usages: of the functions; what is missing is told by the registers named.
    """
    rows = []
    for function in read_functions(text):
        loops = model_loops(function, replace(kernel, usage=usages.get(function.name)))
        if loops:
            rows.append(choose_loop(loops))
    return rows


def model_loops(function: Function, kernel: Kernel) -> list[Row]:
    """Make one row for each tensor loop, in the order of the code."""
    usage = kernel.usage or Usage(function.registers, None)
    loops = tensor_loops(function)
    rows = []
    for i, loop in enumerate(loops):
        row = model_loop(function.name, function.body(loop), replace(kernel, usage=usage))
        rows.append(row | {"loop": f"{i}/{len(loops)}@{loop.first}"})
    return rows


def choose_loop(rows: Sequence[Row]) -> Row:
    """Choose the main loop: the one whose pass is nearest one tile, and of those the leanest."""

    def distance(row: Row) -> tuple[float, int]:
        return round(abs(math.log(row["tiles_per_pass"])), 2), row["loop_ins"]

    return min(rows, key=distance)
