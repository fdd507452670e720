"""Parts of this environment, offered to another Python by links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

__all__ = ["installed_with", "link_packages"]


def installed_with(*packages: str) -> Iterator[metadata.Distribution]:
    """The packages and all that they require, as far as it is installed."""
    names, seen = list(packages), set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # required on other systems
        yield distribution
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement:
                names += re.findall(r"^[\w.-]+", requirement)


def link_packages(folder: Path, distributions: Iterable[metadata.Distribution]) -> None:
    """Make a folder of links to what distributions have in site-packages."""
    folder.mkdir()
    for distribution in distributions:
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(distribution.locate_file(name))
