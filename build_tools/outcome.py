"""What became of a native part: a library, or the sentence that says why there is none."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import CompileError, SetupError

# Unset: build the part if possible; 0: leave it out; 1: fail without it.
BUILD_CPU, BUILD_CUDA = "GENHOI_BUILD_CPU", "GENHOI_BUILD_CUDA"


class NotBuiltError(Exception):
    """Why a part is not there, as the rest of 'The C++ extension was not built: ...'."""


@dataclass(frozen=True)
class Outcome:
    """A library, or the reason why there is none: one of the two is None."""

    library: Path | None
    reason: str | None


def requested(variable: str) -> bool | None:
    """Say whether the variable wants its part built or not built; None if it is unset.

    Raises SetupError for any other value.
    """
    value = os.environ.get(variable, "")
    try:
        return {"": None, "0": False, "1": True}[value]
    except KeyError:
        raise SetupError(f"{variable} must be 0, 1 or unset, not {value!r}") from None


def attempt(part: str, variable: str, build: Callable[[], Path]) -> Outcome:
    """Build a part, or say why that was not possible.

    Raises CompileError instead if its variable asks for the part with a 1.
    """
    try:
        if requested(variable) is False:
            raise NotBuiltError(f"{variable}=0 was set when the package was installed")
        return Outcome(build(), None)
    except NotBuiltError as error:
        reason = f"The {part} was not built: {error}."
        if requested(variable):
            raise CompileError(f"{reason} {variable}=1 makes this an error.") from error
        print(f"genhoi-kernels: {reason} Installing without it.", file=sys.stderr, flush=True)
        return Outcome(None, reason)


def place(outcome: Outcome, library: Path, note: Path) -> None:
    """Put a library, or a note with the reason why there is none, where the package looks for it.

    Either may be left from an earlier build. The library is unlinked rather than overwritten: a
    process that has it mapped keeps its own copy.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    library.unlink(missing_ok=True)
    note.unlink(missing_ok=True)
    if outcome.library is not None:
        shutil.copy2(outcome.library, library)
    else:
        note.write_text(f"{outcome.reason}\n", encoding="utf-8")
