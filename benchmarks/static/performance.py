"""What compiled main loops tell of speed: rows of ours and others', aims, what the extras cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.static.compile import Compiled
from benchmarks.static.peers import BACKWARD, FORWARD, products_of
from benchmarks.static.sass import Function, read_functions, tensor_loops
from benchmarks.static.sass_model import MODELLED, Kernel, choose_loop, count_work, model_loops
from benchmarks.static.table import Row, compiled_row
from benchmarks.static.tools import Usage

__all__ = ["AIMS", "Aim", "Extra", "aims_met", "compare_extras", "our_row", "peer_row"]

_TILE = 128 * 64  # queries x keys that instructions are counted for
_FA2 = {  # on sm_80, with fast math as its own package is built: instructions of a tile and product
    "forward": 881 * 4 / FORWARD,
    "backward": 873 * 8 / BACKWARD,
}
_HALVES = ("bf16", "fp16")  # the model's rates are theirs
_COUNTED_LIKE = {"HMMA": "sm_80", "HGMMA": "sm_90"}
# Constants that add work beside the loop over the video's keys, and what switches them off.
_EXTRAS = ("REFERENCES", "REF", "MASK", "BIAS", "GATE", "KEEP_UNGATED")
_OFF = frozenset({"False", "none", "None", "0", ""})


def our_row(compiled: Compiled) -> Row:
    """Return a compiled variant's figures; those of the loop only if it has one to be counted."""
    plain = compiled_row(compiled)
    row: Row = {
        "kernel": compiled.variant,
        "arch": compiled.arch,
        "ours": True,
        "dtype": compiled.dtype,
        "head_dim": compiled.head_dim,
        "tile": plain["tile"],
        "warps": compiled.num_warps,
        "stages": compiled.num_stages,
        "constants": plain["constants"],
        "regs": plain["registers"],
        "spilled": plain["spilled"],
        "smem": plain["shared"],
        "ctas_per_sm": plain["ctas_per_sm"],
    }
    return row | _loop_figures(compiled)


def _loop_figures(compiled: Compiled) -> Row:
    if compiled.tensor not in _COUNTED_LIKE or compiled.tile is None:
        return {}
    function = max(read_functions(compiled.listing), key=lambda f: len(f.instructions))
    products = _products(function, compiled)
    if not products:
        return {}
    like = compiled.arch if compiled.arch in MODELLED else _COUNTED_LIKE[compiled.tensor]
    kernel = Kernel(
        arch=like,
        tile=compiled.tile,
        products=products,
        warps=compiled.num_warps,
        usage=Usage(compiled.registers, None),
        shared=compiled.shared,
    )
    loop = choose_loop(model_loops(function, kernel))
    figures = {name: value for name, value in loop.items() if _is_count(name)}
    half = compiled.dtype in _HALVES
    if compiled.arch in MODELLED and half:
        figures |= {name: value for name, value in loop.items() if _is_bound(name)}
    direction = "forward" if products == FORWARD else "backward"
    return {
        "products": products,
        "direction": direction,
        "loop": loop["loop"],
        **figures,
        **_issued(loop, products, direction, half and compiled.tile[2] == 128),
    }


def _products(function: Function, compiled: Compiled) -> int:
    """Count the matrix products of a tile by the main loop's: 2 forward, 3 to 5 backward."""
    rates = MODELLED[_COUNTED_LIKE[compiled.tensor]]
    tile = math.prod(compiled.tile or ())
    loops = (count_work(function.body(loop), rates) for loop in tensor_loops(function))
    return next((round(work.products * compiled.num_warps / tile) for work in loops), 0)


def _is_count(name: str) -> bool:
    return name.isupper() or name in ("loop_ins", "tiles_per_pass", "softmax_ins_per_elem")


def _is_bound(name: str) -> bool:
    return name.startswith(("cyc_", "eff_")) or name in ("bound", "ideal")


def _issued(row: Row, products: int, direction: str, comparable: bool) -> Row:
    """Count the instructions that an SM's warps issue for 128 queries x 64 keys.

    They are compared with FlashAttention-2's for as many matrix products.
    """
    queries, keys, _ = map(int, row["tile"].split("x"))
    issued = row["loop_ins"] * row["warps"] / row["tiles_per_pass"] * _TILE / (queries * keys)
    known: Row = {"issued": round(issued)}
    if comparable:
        known["to_fa2"] = round(issued / products / _FA2[direction], 3)
    return known


def peer_row(row: Row) -> Row:
    """Add to a row of peers.csv the columns that ours have besides."""
    products = products_of(row["kernel"])
    direction = "forward" if products == FORWARD else "backward"
    head_dim = int(row["tile"].split("x")[-1])
    known = {"ours": False, "dtype": "bf16", "head_dim": head_dim, "direction": direction}
    issued = _issued(row, products, direction, head_dim == 128)
    return row | known | {"products": products} | issued


@dataclass(frozen=True)
class Aim:
    """A figure that our forward kernels at head dim 128 shall reach.

    Attributes:
        arch, column: of which.
        limit: its value.
        at_most: or at least.
        words: what it is.
    """

    arch: str
    column: str
    limit: float
    at_most: bool
    words: str


AIMS = (
    Aim("sm_80", "to_fa2", 1.4, True, "instructions of a tile, over FlashAttention-2's"),
    Aim("sm_90", "eff_phase", 0.5, False, "phase figure (FlashAttention-3: 0.66)"),
)


def aims_met(rows: Sequence[Row]) -> list[str]:
    """Write a line for each aim: how far the worst of our rows is from it."""
    lines = []
    for aim in AIMS:
        ours = [row for row in rows if row["arch"] == aim.arch and _is_aimed_at(row, aim.column)]
        if not ours:
            lines.append(f"{aim.arch} forward: no kernel to hold against the aim ({aim.words})")
            continue
        values = sorted((row[aim.column] for row in ours), reverse=aim.at_most)
        met = all(value <= aim.limit if aim.at_most else value >= aim.limit for value in values)
        wanted = f"{'at most' if aim.at_most else 'at least'} {aim.limit:.2f}"
        seen = f"{values[0]:.2f}" + (f" .. {values[-1]:.2f}" if len(values) > 1 else "")
        verdict = "met" if met else "MISSED"
        lines.append(f"{aim.arch} forward: {aim.words}: {seen}, wanted {wanted}: {verdict}")
    return lines


def _is_aimed_at(row: Row, column: str) -> bool:
    like_peers = row["dtype"] in _HALVES and row["head_dim"] == 128
    return row["ours"] and like_peers and row.get("direction") == "forward" and column in row


@dataclass(frozen=True)
class Extra:
    """What gate and reference cost the video's loop of a kernel.

    Attributes:
        title: which kernel.
        extras: the constants that are on.
        plain, full: instructions of its loop without them and with them.
    """

    title: str
    extras: str
    plain: int
    full: int

    @property
    def words(self) -> str:
        if self.full == self.plain:
            change = "no instruction more"
        else:
            change = f"{self.full - self.plain:+d} instructions ({self.full / self.plain - 1:+.1%})"
        return f"{self.title}: {self.plain} plain, with {self.extras}: {change}"


def compare_extras(compiled: Sequence[Compiled], rows: Sequence[Mapping[str, Any]]) -> list[Extra]:
    """Compare kernels compiled without gate and reference with those compiled with some of them."""
    plain: dict[tuple[Any, ...], int] = {}
    for each, row in zip(compiled, rows, strict=True):
        if "loop_ins" in row and not _extras(each):
            plain[_without_extras(each)] = row["loop_ins"]
    return [
        Extra(each.title, _extras(each), plain[_without_extras(each)], row["loop_ins"])
        for each, row in zip(compiled, rows, strict=True)
        if "loop_ins" in row and _extras(each) and _without_extras(each) in plain
    ]


def _extras(compiled: Compiled) -> str:
    on = {
        name: value
        for name, value in compiled.constants.items()
        if name in _EXTRAS and value not in _OFF
    }
    return ", ".join(f"{name}={value}" for name, value in on.items())


def _without_extras(compiled: Compiled) -> tuple[Any, ...]:
    """Return a kernel's identity without its extras; a missing argument is constant None."""
    rest = tuple(
        (name, value)
        for name, value in compiled.constants.items()
        if name not in _EXTRAS and value != "None"
    )
    kernel = compiled.variant.partition("+")[0]
    options = compiled.num_warps, compiled.num_stages, compiled.tile
    return kernel, compiled.arch, compiled.dtype, compiled.head_dim, *options, rest
