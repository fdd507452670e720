"""Block sizes, warps and pipeline stages, per GPU architecture, kernel, dtype, head dim and Triton.

The table is configs.json. `python -m benchmarks.static.choose` adds to it what Triton is installed:
it goes through candidates (candidates.py) in an order of preference and takes the first that
compiles without spilling a register, within the shared memory there is. Few entries were timed;
``how`` says of each. From one Triton to the next the same configuration may take twice the time
(triton issue 11373): a Triton without an entry of its own takes the nearest older one's, else the
nearest newer one's. What a user's own GPU does best is measured where GENHOI_AUTOTUNE=1
(autotune.py).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from genhoi_kernels.backends.triton.tuning import compiler

ARCHS = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")
"""Architectures with entries of their own."""

KERNELS = ("forward", "queries", "keys", "reference_keys", "gate_backward", "delta")
HEAD_DIMS = (32, 64, 96, 128)
"""Head dims with entries of their own; others take the next one's."""

TABLE = Path(__file__).with_name("configs.json")

# Those that share an entry: the same tensor cores and as much shared memory.
_LIKE = {
    "sm_87": "sm_80",
    "sm_89": "sm_86",
    "sm_120": "sm_86",
    "sm_121": "sm_86",
    "sm_103": "sm_100",
    "sm_110": "sm_100",
    "gfx950": "gfx942",
}


@dataclass(frozen=True)
class Config:
    """How a kernel is cut up.

    block_m: query rows of a tile. block_n: keys of a block. block_r: keys of a block of references,
    and of what whole blocks of video keys leave over. descriptors: what a pipelined loop goes
    through (whole blocks of video keys; in keys and reference_keys the query rows) is copied by
    tensor descriptors (TMA), where the tensors allow it. block_f: hidden units of the flow gate at
    once; 0: all of them. how: how the entry was chosen.
    """

    block_m: int
    block_n: int
    block_r: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    block_f: int = 0
    how: str = ""


_DEFAULTS = {field.name: field.default for field in fields(Config)}


class Key(NamedTuple):
    """What an entry is for: itemsize in bytes, triton's version by compiler.version()."""

    arch: str
    kernel: str
    itemsize: int
    head_dim: int
    triton: str


_trying: dict[Key, Config] = {}
_measured: dict[Key, Config] = {}


def config(arch: str, kernel: str, itemsize: int, head_dim: int) -> Config:
    """What was measured here, the table's entry, or else cautious sizes."""
    key = key_of(arch, kernel, itemsize, head_dim)
    found = _trying.get(key) or _measured.get(key) or _entry(key)
    return found or cautious(arch, key.head_dim)


def key_of(arch: str, kernel: str, itemsize: int, head_dim: int) -> Key:
    """The running Triton's: some architectures share entries, and so do head dims."""
    next_one = next((d for d in HEAD_DIMS if d >= head_dim), head_dim)
    return Key(_LIKE.get(arch, arch), kernel, itemsize, next_one, compiler.version())


@functools.lru_cache(maxsize=256)
def _entry(key: Key) -> Config | None:
    return nearest(table(), key)


def nearest(entries: dict[Key, Config], key: Key) -> Config | None:
    """The key's entry, or that of the nearest older Triton, or of the nearest newer one."""
    wanted = compiler.numbers(key.triton)
    versions = sorted(
        (compiler.numbers(other.triton), other)
        for other in entries
        if other._replace(triton=key.triton) == key
    )
    if not versions:
        return None
    older = [other for version, other in versions if version <= wanted]
    return entries[older[-1] if older else versions[0][1]]


def adopt(found: dict[Key, Config]) -> None:
    """Take measured entries before the table's, in this process."""
    _measured.update(found)


def cautious(arch: str, head_dim: int) -> Config:
    """What fits everywhere; also for the interpreter, whose tests shall see several blocks."""
    how = "heuristic: small enough for any GPU" if arch != "interpreter" else "for the interpreter"
    keys = 64 if arch == "interpreter" else 32
    return Config(64, keys, keys // 2, 8 if head_dim >= 128 else 4, 1, how=how)


@functools.lru_cache(maxsize=1)
def table() -> dict[Key, Config]:
    """configs.json."""
    if not TABLE.exists():
        return {}
    return parse_entries(json.loads(TABLE.read_text()))


def parse_entries(data: dict[str, Any]) -> dict[Key, Config]:
    """The inverse of ``entries_of``, for a file's whole content."""
    return {Key(*(e[name] for name in Key._fields)): Config(**e["config"]) for e in data["entries"]}


def entries_of(found: dict[Key, Config]) -> list[dict[str, object]]:
    """What ``table`` reads, sorted."""

    def written(cut: Config) -> dict[str, Any]:
        return {name: value for name, value in asdict(cut).items() if value != _DEFAULTS.get(name)}

    def place(key: Key) -> tuple[object, ...]:
        return *key[:-1], compiler.numbers(key.triton)

    return [{**key._asdict(), "config": written(found[key])} for key in sorted(found, key=place)]


@contextmanager
def trying(key: Key, candidate: Config) -> Iterator[None]:
    """Within it, ``config`` gives the candidate for this key."""
    before = _trying.get(key)
    _trying[key] = candidate
    try:
        yield
    finally:
        del _trying[key]
        if before is not None:
            _trying[key] = before
