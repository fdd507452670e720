"""Whether products and softmax of a wgmma kernel overlap: what a model of counts cannot see.

A warpgroup issues Q K^T of a block and P V of the block before, waits for the scores, and is to
begin with the softmax before it waits for P V. Two things take that away, and leave every count as
it was: the compiler moves the second wait up, or it serialises the products, of which ptxas tells.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.static.sass import opcode_of, operands_of

__all__ = ["LEAST_SHARE", "SERIALISED", "Exp2", "count_exp2", "serialised_functions"]

SERIALISED = ("C7510", "C7512", "C7520")
"""ptxas's codes for serialised products. Of a fence that it adds it tells with C7519; no harm."""
LEAST_SHARE = 1 / 3
"""Of the loop's exp2, how many have to come before the wait for P V."""

_MESSAGE = re.compile(r"\((C\d+)\).*\bfunction '([^']+)'")
_PENDING = re.compile(r"gsb0, (0x[0-9a-f]+)")


@dataclass(frozen=True)
class Exp2:
    """How many exp2 instructions a loop has, and how many of them come before the wait for P V."""

    total: int
    before_wait: int

    @property
    def is_overlapped(self) -> bool:
        """Say whether enough of the softmax runs beside P V."""
        return self.before_wait >= LEAST_SHARE * self.total > 0


def count_exp2(lines: Sequence[str]) -> Exp2:
    """Count the exp2 of a forward loop: all, and those between its two waits.

    The waits are for the scores, with P V under way, and for P V. A loop may begin anywhere. Where
    one of the waits is missing, nothing overlaps.
    """
    total = sum(map(_is_exp2, lines))
    pending = {_pending(line): place for place, line in enumerate(lines)}
    if not {0, 1} <= pending.keys():
        return Exp2(total, 0)
    start, end = pending[1], pending[0]
    between = lines[start:end] if start < end else [*lines[start:], *lines[:end]]
    return Exp2(total, sum(map(_is_exp2, between)))


def _is_exp2(line: str) -> bool:
    return opcode_of(line).startswith("MUFU.EX2")


def _pending(line: str) -> int | None:
    """Return how many groups of products a wait leaves under way; None if it is no such wait."""
    if not opcode_of(line).startswith("WARPGROUP.DEPBAR"):
        return None
    match = _PENDING.search(operands_of(line))
    return int(match[1], 16) if match else None


def serialised_functions(log: str) -> dict[str, list[str]]:
    """Find the functions whose products ptxas serialised, with its codes, in what it printed."""
    found: dict[str, list[str]] = defaultdict(list)
    for code, function in _MESSAGE.findall(log):
        if code in SERIALISED and code not in found[function]:
            found[function].append(code)
    return {function: codes for function, codes in found.items() if codes}
