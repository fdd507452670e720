"""Which of several able GPU backends to try first: a table, and the user's own where it was tuned.

An entry says what it rests on. "modelled": on counts of compiled instructions (``genhoi bench
--static``) and arithmetic, never on a clock; of those there are only the ones that the model bears
out. "measured": on times, by ``genhoi bench``, on the GPU that the entry names. "inferred": on
times of another GPU of the architecture. The first entry that fits decides, the user's before the
built-in ones; where none fits, the registry's order stands.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from genhoi_kernels.backends.flash.adapter import Generation
from genhoi_kernels.files import cache_folder, whole_file

FORMAT = 1
"""The version of the user's table; another one is not read."""

_FILE = "choices.json"


@dataclass(frozen=True)
class Question:
    """What a choice depends on.

    arch: as ``triton.backend.architecture`` names it. device: the GPU's name. dtype: "bfloat16".
    rows: N; 0 fits no entry that bounds it from below. flash: ``flash.adapter.Generation`` of the
    FlashAttention that would take the call, or None.
    """

    arch: str
    device: str
    dtype: str
    head_dim: int
    rows: int
    training: bool
    flash: int | None


@dataclass(frozen=True)
class Choice:
    """An entry: for which calls, and in which order to try backends.

    arch, dtypes, head_dims, training: what the call has to have. rows: first and last N, None
    without an end. flash: generations of FlashAttention for which it holds, 0 for none, () for
    all: what was measured without it says nothing once it is installed, and torch's FlashAttention
    2 is not the package. device: the GPU it was measured on, "" for any of this arch. basis:
    "modelled", "measured" or "inferred". how: in words.
    """

    arch: str
    dtypes: tuple[str, ...]
    head_dims: tuple[int, ...]
    rows: tuple[int, int | None]
    training: bool
    order: tuple[str, ...]
    basis: str
    how: str
    flash: tuple[int, ...] = ()
    device: str = ""

    def fits(self, question: Question) -> bool:
        """Say whether the entry is about such a call."""
        first, last = self.rows
        return (
            question.arch == self.arch
            and question.dtype in self.dtypes
            and question.head_dim in self.head_dims
            and first <= question.rows <= (question.rows if last is None else last)
            and question.training == self.training
            and (not self.flash or (question.flash or 0) in self.flash)
            and self.device in ("", question.device)
        )


# What the static model says of a pass, in units of one matrix product at the tensor cores' peak:
# products / share of the peak that the main loop's instructions allow (the report's "phase"), head
# dim 128, bfloat16. The Triton kernels' backward is two loops.
_COSTS = {
    "sm_80": {
        "CUDA": "2 / .79, and backward 3 / .86 + 4 / .85",
        "Triton": "2 / .62, and backward 3 / .63 + 4 / .46",
        "FlashAttention-2": "2 / .79, and backward 5 / .81",
        "torch's build of it": "2 / .68, and backward 5 / .77",
    },
    "sm_90": {
        "CUDA": "2 / .67, and backward 5 / .71",
        "FlashAttention-3": "2 / .66, and backward 5 / .67",
    },
}


def _costs(arch: str) -> str:
    return "; ".join(f"{name}: {cost}" for name, cost in _COSTS[arch].items())


_HALF = ("bfloat16", "float16")


def _cuda_first(
    arch: str, *order: str, training: bool, generations: tuple[Generation, ...] = ()
) -> Choice:
    how = f"genhoi bench --static: products / share of peak, head dim 128: {_costs(arch)}"
    return Choice(arch, _HALF, (128,), (0, None), training, order, "modelled", how, generations)


_H200 = "NVIDIA H200"


def _on_h200(
    head_dim: int, generation: Generation, order: str, *, training: bool
) -> tuple[Choice, Choice]:
    """Make an entry for the GPU that gave the times, and one for others of its architecture."""
    how = (
        f"make gpu-report, 2026-11-27, {_H200}, torch 2.11.0, triton 3.6.0, bfloat16, a tenth of "
        f"the rows see the reference; {_H200_TIMES[head_dim, training]}. Not measured: float16, "
        f"and other lengths, of which those below 4096 are left out"
    )
    # Without any FlashAttention, as with torch's own.
    known = (generation, 0) if generation == Generation.TORCH_FLASH else (generation,)
    tried, rows = tuple(order.split()), (4096, None)
    measured = Choice(
        "sm_90", _HALF, (head_dim,), rows, training, tried, "measured", how, known, _H200
    )
    elsewhere = replace(
        measured, basis="inferred", device="", how=f"{how}. Measured on {_H200} alone"
    )
    return measured, elsewhere


# Head dim, training -> ms. At N 75600 fa3-fwd was the faster one in this report, and the slower one
# in a run whose order of turns rotated (181 to 178); the CUDA kernel takes one launch, and no room
# for gathered rows.
_H200_TIMES = {
    (128, False): "ms at N 32760, H 12, M 1024 / at N 75600, H 40, M 3600: CUDA 8.70 / 183; flash "
    "with fa3-fwd 0.0.3 8.89 / 171; Triton 12.7 / 238; the gathered two-pass form in torch calls "
    "on cuDNN 10.8 / 206, on torch's FlashAttention 19.2 / 335",
    (128, True): "forward and backward together, ms at N 32760, H 12, M 1024 / at N 75600, H 40, M "
    "3600: CUDA 38.0 / 736; Triton 58.8 / 1075; the gathered two-pass form on cuDNN 39.2 / 765, "
    "on torch's FlashAttention 74.9 / 1257",
    (64, False): "ms at N 32760, H 24, M 1024: CUDA 11.6; flash with fa3-fwd 0.0.3 11.5; Triton "
    "21.7; the gathered two-pass form on cuDNN 15.3, on torch's FlashAttention 21.2",
    (64, True): "forward and backward together, ms at N 32760, H 24, M 1024: CUDA 48.4; Triton "
    "85.7; the gathered two-pass form on cuDNN 52.4, on torch's FlashAttention 83.1",
}
_ORDERS = {
    Generation.FLASH_3: "cuda flash triton",
    Generation.TORCH_CUDNN: "cuda flash triton",
    Generation.TORCH_FLASH: "cuda triton flash",
}

# On sm_80 the CUDA forward pass is level with FlashAttention-2's, in one launch. Its backward pass
# is behind in the model, which knows nothing of what deterministic gradients cost FlashAttention-2:
# on an H100 1.2 and 1.8 times the ordinary ones. On sm_90 FlashAttention-3's backward pass has not
# been timed.
TABLE: tuple[Choice, ...] = (
    _cuda_first("sm_80", "cuda", "flash", "triton", training=False),
    _cuda_first("sm_80", "cuda", "flash", "triton", training=True),
    _cuda_first(
        "sm_90", "cuda", "flash", "triton", training=True, generations=(Generation.FLASH_3,)
    ),
    *(
        choice
        for head_dim, training in _H200_TIMES
        for generation, order in _ORDERS.items()
        if not (training and generation == Generation.FLASH_3)
        for choice in _on_h200(head_dim, generation, order, training=training)
    ),
)


def first_tried(question: Question) -> tuple[str, ...]:
    """Give the names of backends to try before the others; () if no entry fits."""
    choice = find(question)
    return () if choice is None else choice.order


def find(question: Question) -> Choice | None:
    """Find the entry that decides, or None."""
    return next((c for c in (*user_table(), *TABLE) if c.fits(question)), None)


def table_path() -> Path:
    """Give the path of the user's table, which need not exist."""
    return cache_folder() / _FILE


@functools.lru_cache(maxsize=1)
def user_table() -> tuple[Choice, ...]:
    """Read the user's table, once; warn of a file that can't be used, and go on without."""
    path = table_path()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ()
    except OSError as error:
        warnings.warn(
            f"{path}: not readable ({error}); the built-in choices are used", stacklevel=2
        )
        return ()
    try:
        return read_table(text)
    except (ValueError, TypeError, KeyError) as error:
        warnings.warn(
            f"{path}: not a table of choices ({error}); the built-in choices are used; write it "
            f"anew with `genhoi tune`, or delete it",
            stacklevel=2,
        )
        return ()


def read_table(text: str) -> tuple[Choice, ...]:
    """Read a table that ``write_table`` wrote.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"wanted an object with format {FORMAT}")
    return tuple(_entry(entry) for entry in data["choices"])


def _entry(data: dict[str, Any]) -> Choice:
    names = {field.name for field in fields(Choice)}
    if not isinstance(data, dict) or set(data) != names:
        raise ValueError(f"wanted entries with {', '.join(sorted(names))}")
    for name in ("dtypes", "head_dims", "rows", "order", "flash"):
        if not isinstance(data[name], list):
            raise ValueError(f"{name}: got {data[name]!r}, wanted a list")
    first, last = data["rows"]
    if not isinstance(first, int) or not (last is None or isinstance(last, int)):
        raise ValueError(f"rows: got {data['rows']!r}, wanted two integers, or one and null")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Choice(**values)


def write_table(choices: Iterable[Choice], path: Path) -> None:
    """Write a table, whole or not at all; folders are made."""
    entries = [asdict(choice) for choice in choices]
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, "choices": entries}, indent=1) + "\n")
    user_table.cache_clear()


def updated(old: Sequence[Choice], new: Sequence[Choice]) -> list[Choice]:
    """Give the new entries, then the old ones that are about other calls."""

    def about(choice: Choice) -> tuple[Any, ...]:
        return choice.device, choice.arch, choice.dtypes, choice.head_dims, choice.training

    measured = {about(choice) for choice in new}
    return [*new, *(choice for choice in old if about(choice) not in measured)]
