"""What ``genhoi tune`` and ``python -m genhoi_kernels.tune`` do, once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from genhoi_kernels.backends import preferences
from genhoi_kernels.tune import table
from genhoi_kernels.tune.measure import (
    QUESTION_SECONDS,
    Question,
    gpu_backends,
    measure,
    measure_apart,
)
from genhoi_kernels.tune.shapes import SHAPES, find_shape, reduce_shape
from genhoi_kernels.tune.timing import is_hardware

HELP = (
    "Time this GPU's backends, and remember which is the fastest: writes choices.json in the cache "
    "folder ($GENHOI_CACHE, or the platform's), by which later calls without a backend's name "
    "choose."
)
OPTIONS = {
    "shapes": "Named shape, or video tokens as FxHxW; may be repeated.  [default: the named ones]",
    "dtype": "bfloat16, float16 or float32; may be repeated.  [default: bfloat16]",
    "device": "Which GPU, such as cuda:1.  [default: cuda]",
    "case-seconds": "Of a shape and use, after which no further backend is begun.  [default: 600]",
}
"""By name, without dashes: what each is."""
REPEATED = ("shapes", "dtype")
CASE_SECONDS = QUESTION_SECONDS

DEFAULT_SHAPES = tuple(name for name in SHAPES if name != "wan14b-480p-401f")
"""The longest takes minutes, and says what the second longest says."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_MOST_WORK = 1e15
"""Operations of a forward pass above which a shape loses heads, and frames."""


def tune(
    *,
    shapes: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    device: str | None = None,
    case_seconds: float = CASE_SECONDS,
    say: Callable[[str], None] = print,
) -> None:
    """Measure, and write the user's table of choices.

    Args:
        shapes: names, or grids FxHxW; none for DEFAULT_SHAPES.
        dtypes: names; none for bfloat16.
        device: a GPU's name to torch.
        case_seconds: after which no further backend of a question is begun.
        say: told what was measured, a line a question.

    Raises:
        ValueError: there is no such shape, dtype or device, or no GPU.
    """
    gpu = find_gpu(device)
    every = questions(shapes or DEFAULT_SHAPES, dtypes or ("bfloat16",), gpu)
    names = gpu_backends()
    if len(names) < 2:
        usable = names[0] if names else "none"
        say(f"Nothing to choose between: of the GPU backends {usable} is usable.")
        return
    # A GPU's fault poisons its process. An emulated GPU is of this process alone.
    how = measure_apart if is_hardware(gpu) else measure
    new = table.tune(every, names, measure=functools.partial(how, seconds=case_seconds), say=say)
    say(f"Choices: {preferences.table_path()} ({len(new)} measured)")


def find_gpu(name: str | None) -> torch.device:
    """Give the GPU of a name.

    Raises:
        ValueError: there is none.
    """
    try:
        device = torch.device(name or "cuda")
    except RuntimeError:
        raise ValueError(f"--device: got {name!r}, wanted a GPU such as cuda:0") from None
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(
            f"--device: got {str(device)!r}, wanted a GPU that torch can use: on a CPU there is "
            f"nothing to choose between"
        )
    return device


def questions(shapes: Sequence[str], dtypes: Sequence[str], device: torch.device) -> list[Question]:
    """List what to measure: each shape in each dtype, for inference and for training.

    Raises:
        ValueError: there is no such shape or dtype.
    """
    for name in dtypes:
        if name not in _DTYPES:
            raise ValueError(f"--dtype: got {name!r}, wanted one of {', '.join(_DTYPES)}")
    sizes = [reduce_shape(find_shape(name), _MOST_WORK) for name in shapes]
    return [
        Question(shape, _DTYPES[dtype], training, device)
        for dtype in dtypes
        for shape in sizes
        for training in (False, True)
    ]
