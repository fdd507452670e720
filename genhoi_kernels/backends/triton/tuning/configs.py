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

import torch
from torch import Tensor

from genhoi_kernels.backends.triton.tuning import compiler
from genhoi_kernels.mask_gate import TILE_ROWS

ARCHS = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")
"""Architectures with entries of their own."""

KERNELS = ("forward", "queries", "keys", "reference_keys", "gate_backward", "delta")
"""Launches with entries of their own: attention_fwd; of the backward pass dq, the video's dkdv, the
references' dkdv, the flow gate's kernel and preprocess."""

_MASKED = ("forward", "queries", "reference_keys")
"""Those that look at the mask gate's tile flags, TILE_ROWS rows at a time."""

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
    """The block sizes and compile options of a kernel.

    block_m: query rows of a tile. block_n: keys of a block. block_r: keys of a block of references,
    and of what whole blocks of video keys leave over. descriptors: what a pipelined loop goes
    through (whole blocks of video keys; in keys and reference_keys the query rows) is copied by
    tensor descriptors (TMA), where the tensors allow it. block_f: hidden units of the flow gate at
    once; 0: all of them. stages_r: stages of the loop over the references, in forward and queries,
    which copies by cp.async. how: how the entry was chosen.
    """

    block_m: int
    block_n: int
    block_r: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    block_f: int = 0
    stages_r: int = 1
    how: str = ""


_DEFAULTS = {field.name: field.default for field in fields(Config)}


class Key(NamedTuple):
    """What an entry is for: itemsize in bytes, Triton's version by compiler.version()."""

    arch: str
    kernel: str
    itemsize: int
    head_dim: int
    triton: str


_trying: dict[Key, Config] = {}
_measured: dict[tuple[str, Key], Config] = {}
"""By the GPU's name: two models of one architecture need not agree."""


def config_for(arch: str, kernel: str, x: Tensor) -> Config:
    """Give the configuration of a kernel on x's GPU, for values like x's ``[.., D]``."""
    return config(arch, kernel, x.element_size(), x.shape[-1], device_name(x.device))


def config(arch: str, kernel: str, itemsize: int, head_dim: int, device: str = "") -> Config:
    """Give what was measured on this GPU, the table's entry, or else cautious sizes.

    device: the GPU's name, by ``device_name``; "" asks for nothing that was measured.
    """
    key = key_of(arch, kernel, itemsize, head_dim)
    known = _trying.get(key) or _measured.get((device, key)) or _entry(key)
    return known or cautious(arch, key.head_dim)


@functools.lru_cache(maxsize=64)
def device_name(device: torch.device) -> str:
    """Name the GPU that a tensor is on, whichever is the current one; "" if it is on none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def key_of(arch: str, kernel: str, itemsize: int, head_dim: int) -> Key:
    """Make the running Triton's key: some architectures share entries, and so do head dims."""
    next_one = next((d for d in HEAD_DIMS if d >= head_dim), head_dim)
    return Key(_LIKE.get(arch, arch), kernel, itemsize, next_one, compiler.version())


@functools.lru_cache(maxsize=256)
def _entry(key: Key) -> Config | None:
    return nearest(table(), key)


def nearest(entries: dict[Key, Config], key: Key) -> Config | None:
    """Give the key's entry, or that of the nearest older Triton, or of the nearest newer one."""
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


def adopt(device: str, measured: dict[Key, Config]) -> None:
    """Take entries measured on the GPU of this name before the table's, in this process."""
    _measured.update({(device, key): config for key, config in measured.items()})


def cautious(arch: str, head_dim: int) -> Config:
    """Give what fits everywhere; for the interpreter, too, whose tests shall see several blocks."""
    how = "heuristic: small enough for any GPU" if arch != "interpreter" else "for the interpreter"
    keys = 64 if arch == "interpreter" else 32
    return Config(64, keys, keys // 2, 8 if head_dim >= 128 else 4, 1, how=how)


@functools.lru_cache(maxsize=1)
def table() -> dict[Key, Config]:
    """Read configs.json."""
    if not TABLE.exists():
        return {}
    return parse_entries(json.loads(TABLE.read_text()))


def parse_entries(data: dict[str, Any]) -> dict[Key, Config]:
    """Read the entries of a file that ``text_of`` wrote.

    Raises:
        KeyError, TypeError: it is no such file.
        ValueError: a kernel could not run with an entry.
    """
    entries = {}
    for entry in data["entries"]:
        key = Key(*(entry[name] for name in Key._fields))
        entries[key] = Config(**entry["config"])
        check(key, entries[key])
    return entries


def check(key: Key, config: Config) -> None:
    """Refuse row blocks that the mask gate's tile flags do not cover.

    Raises:
        ValueError: block_m is not a multiple of TILE_ROWS.
    """
    if key.kernel in _MASKED and (config.block_m < 1 or config.block_m % TILE_ROWS):
        raise ValueError(
            f"block_m of {key.kernel} on {key.arch}, head dim {key.head_dim}: got "
            f"{config.block_m}, wanted a multiple of {TILE_ROWS}, the rows of the mask gate's tiles"
        )


def text_of(made_by: str, configs: dict[Key, Config]) -> str:
    """Write what ``parse_entries`` reads, sorted, an entry a line."""
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries_of(configs))
    entries = f"[\n{lines}\n ]" if lines else "[]"
    return f'{{\n "made_by": {json.dumps(made_by)},\n "entries": {entries}\n}}\n'


def entries_of(configs: dict[Key, Config]) -> list[dict[str, object]]:
    """List the entries as a file has them, without what is as in any Config."""

    def options(config: Config) -> dict[str, Any]:
        every = asdict(config)
        return {name: value for name, value in every.items() if value != _DEFAULTS.get(name)}

    def order(key: Key) -> tuple[object, ...]:
        return *key[:-1], compiler.numbers(key.triton)

    return [
        {**key._asdict(), "config": options(configs[key])} for key in sorted(configs, key=order)
    ]


@contextmanager
def trying(key: Key, candidate: Config) -> Iterator[None]:
    """Make ``config`` give the candidate for this key, within the block."""
    before = _trying.get(key)
    _trying[key] = candidate
    try:
        yield
    finally:
        del _trying[key]
        if before is not None:
            _trying[key] = before
