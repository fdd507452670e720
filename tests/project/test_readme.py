"""The README's Python runs as it stands, and names only what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pages import model_layer_block, python_blocks, write_inputs, write_pipeline

from genhoi import media

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
BLOCKS = python_blocks("README.md")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the examples name, small, in the current folder."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_the_op_in_your_own_model() -> None:
    names: dict[str, object] = {}
    for block in BLOCKS:
        if "pipe" not in block:
            exec(compile(block, "README.md", "exec"), names)
    out = names["out"]
    assert isinstance(out, torch.Tensor)
    assert out.shape == (1, 320, 12, 64)
    assert not out.isnan().any()


@pytest.mark.usefixtures("files")
def test_the_plug_in() -> None:
    """The reference is seen, and the base is the base again."""
    write_pipeline(Path())
    block = model_layer_block("README.md")
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["video"].shape == (9, 32, 48, 3)
    assert not names["handle"]._attached and names["handle"].reference_passes == 1
    assert names["mask"].shape == (1, 3 * 2 * 3) and names["mask"].any()


def test_one_example_of_the_model_layer() -> None:
    (ours,) = (block for block in BLOCKS if "attach(" in block)
    assert ours in python_blocks("docs/model_layer.md")


@pytest.mark.usefixtures("files")
def test_the_edit() -> None:
    (block,) = (block for block in BLOCKS if "GenHOIPipeline" in block)
    exec(compile(block, "README.md", "exec"), {})
    assert media.read_clip("edited.mp4").frames.shape == (9, 32, 48, 3)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for target in re.findall(r"^make ([a-z-]+)", README.read_text(), flags=re.MULTILINE):
        assert target in targets
