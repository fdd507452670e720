"""Names and places that the whole build shares."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "genhoi_kernels"


def version_numbers(version: str) -> tuple[int, ...]:
    """Give the numbers of a version: (2, 13, 0) of "2.13.0"."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
