"""Imports go down the floors that docs/rooms.py names, and never in a circle."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path("docs/draw_architecture.py")
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TO_BE_MADE = ("NAME", "csrc/cuda/sm90")
"""In paths of files that a reader of the page would make."""


def check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / SCRIPT), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_import_goes_up() -> None:
    result = check(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_check_finds_what_is_wrong(tmp_path: Path) -> None:
    """One import of a small checkout goes up, two files form a circle, and a room has no floor."""
    sources = {
        "genhoi/cli/edit.py": "from genhoi.media.clip import read\n",
        "genhoi/media/clip.py": "def read():\n    from genhoi.cli import edit\n",
        "genhoi/cellar/wine.py": "import genhoi.media.clip\n",
        "csrc/cuda/launch.h": "\n",
        "csrc/cuda/dispatch.cu": '#include "launch.h"\n#include "sm80/fwd.cuh"\n',
        "csrc/cuda/sm80/fwd.cuh": '#include "../launch.h"\n',
    }
    for script in ("draw_architecture.py", "floor_plan.py", "rooms.py"):
        sources[f"docs/{script}"] = (ROOT / "docs" / script).read_text(encoding="utf-8")
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "genhoi/cellar stands on no floor: name it in FLOORS",
        "genhoi/media -> genhoi/cli does not go down: "
        "genhoi/media/clip.py:2 imports genhoi/cli/edit.py",
        "files that import each other: "
        "genhoi/cli/edit.py -> genhoi/media/clip.py -> genhoi/cli/edit.py",
    ]


def test_the_page_names_files_that_exist() -> None:
    paths = set(re.findall(r"`([\w.-]+/[\w./-]+)`", PAGE))
    assert len(paths) > 60
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert {path for path in missing if not any(part in path for part in TO_BE_MADE)} == set()


def test_the_page_names_functions_that_exist() -> None:
    """Each step of the way of q names files, and what is in them."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines()]
    steps = [row for row in rows if len(row) == 3 and row[0][:1].isdigit()]
    assert len(steps) > 15
    for _, files, names in steps:
        text = "".join((ROOT / file).read_text("utf-8") for file in re.findall(r"`(.+?)`", files))
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", text), f"{name} is not in {files}"
