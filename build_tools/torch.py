"""The torch whose headers the build uses, found on disk.

Importing torch is not possible here: pip isolates the build from the environment it installs into.
"""

import importlib.util
import re
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import SetupError

from build_tools.compilers import find_compiler
from build_tools.outcome import BUILD_CPU, NotBuiltError, requested
from build_tools.project import PACKAGE, ROOT, version_numbers


@dataclass(frozen=True)
class Torch:
    """An installed torch."""

    folder: Path
    version: str
    cuda: str | None  # version of the CUDA it was built with

    @property
    def release(self) -> tuple[int, ...]:
        """Give the major and minor version."""
        return version_numbers(self.version)[:2]


def oldest_torch() -> tuple[int, ...]:
    """Read MIN_TORCH of the package as text, for importing the package takes a torch.

    Raises SetupError if it is not written as expected.
    """
    text = (ROOT / PACKAGE / "backends" / "native.py").read_text(encoding="utf-8")
    match = re.search(r"^MIN_TORCH = \((\d+), (\d+)\)$", text, re.MULTILINE)
    if match is None:
        raise SetupError(f"{PACKAGE}/backends/native.py has no line MIN_TORCH = (major, minor)")
    return tuple(map(int, match.groups()))


MIN_TORCH = oldest_torch()


def candidate_folders() -> Iterator[Path]:
    """List where torch may lie: first what can be imported, then the interpreter's own folders.

    pip's build isolation hides the latter from sys.path but leaves them on disk.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    folders += site.getsitepackages()
    if sys.prefix == sys.base_prefix:
        folders.append(site.getusersitepackages())
    for folder in dict.fromkeys(folders):
        yield Path(folder) / "torch"


def find_torch() -> Torch | None:
    """Find the first torch, or None."""
    for folder in candidate_folders():
        version_file = folder / "version.py"
        if version_file.is_file():
            text = version_file.read_text(encoding="utf-8")
            version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
            cuda = re.search(r"^cuda\b.*= '([^']+)'", text, re.MULTILINE)
            if version:
                return Torch(folder, version[1], cuda[1] if cuda else None)
    return None


def require_torch() -> Torch:
    """Find the torch to build for. Raises NotBuiltError if there is none, or if it is too old."""
    torch = find_torch()
    if torch is None:
        raise NotBuiltError("torch was not found in the environment the package was built in")
    if torch.release < MIN_TORCH:
        oldest = ".".join(map(str, MIN_TORCH))
        raise NotBuiltError(
            f"it needs torch {oldest} or newer, and torch {torch.version} was found"
        )
    return torch


def build_requirements() -> list[str]:
    """Ask for torch if the extension is wanted and no torch is there whose headers could be used.

    Only pip and its kind ask: setuptools answers their question for build requirements from
    setup_requires, while in a direct call of setup.py it would install them itself.
    """
    if "setuptools.build_meta" not in sys.modules or requested(BUILD_CPU) is False:
        return []
    if sys.platform == "win32" or find_torch() is not None:
        return []
    try:
        find_compiler()
    except NotBuiltError:
        return []
    return [f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"]
