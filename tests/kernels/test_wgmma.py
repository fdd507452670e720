"""csrc/cuda/sm90/wgmma.cuh is what its script writes."""

import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "csrc" / "cuda" / "sm90"


def test_the_header_is_as_its_script_writes_it() -> None:
    script = runpy.run_path(str(FOLDER / "write_wgmma.py"))
    assert (FOLDER / "wgmma.cuh").read_text(encoding="utf-8") == script["header"]()
