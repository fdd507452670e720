"""The README's example runs as it stands, and raises where it says so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from toolchain import why_no_emulated_gpu, why_no_triton

if (reason := why_no_emulated_gpu() or why_no_triton()) is not None:
    pytest.skip(reason, allow_module_level=True)

PROJECT = Path(__file__).resolve().parents[2]


def test_example(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    doubled = ", ".join(f"{2 * i:2}." for i in range(10))
    assert process.stdout == f"tensor([{doubled}], device='cuda:0')\n"
    assert "OutOfBoundsError: kernel double: out-of-bounds global read" in process.stderr
