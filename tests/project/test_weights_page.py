"""The commands of docs/weights.md, in their order, on small weights named as the published ones."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import WanImageToVideoPipeline
from support.tiny_base import save_tiny_base
from support.tiny_wan import lively_adapter, tiny_wan

from genhoi import media, to_official
from genhoi.cli.group import main
from genhoi.media import Clip

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
QUICK = ["--crop", "none", "--size", "48x32", "--steps", "1", "--device", "cpu"]


def commands() -> list[list[str]]:
    """Every line of every block without a language."""
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def stand_in(words: list[str], stock: Path) -> None:
    """Do what `hf download` does, with what a small model has."""
    options = dict(pairwise(words))
    target = Path(options["--local-dir"])
    if "GenHOI_wan_flf.consolidated" in words:
        target.mkdir()
        model = tiny_wan()
        torch.save(to_official(model, lively_adapter(model)), target / words[3])
        (target / "README.md").write_text("# GenHOI\n")
        (target / ".cache").mkdir()
        return
    assert words[2].startswith("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers")
    shutil.copytree(stock, target)
    for path in stock.rglob("*"):
        if fnmatch(name := path.relative_to(stock).as_posix(), options["--exclude"]):
            (target / name).unlink()
    assert not list(target.glob("transformer/*.safetensors"))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip, mask and pictures that the page names, in the current folder."""
    monkeypatch.chdir(tmp_path)
    frames = torch.randint(60, 200, (5, 32, 48, 3), dtype=torch.uint8)
    mask = torch.zeros(5, 32, 48, dtype=torch.bool)
    mask[:, :16, :16] = True
    media.write_clip("clip.mp4", Clip(frames))
    media.write_mask("mask.mp4", mask)
    media.write_image("object.png", frames[0, :16, :16])
    media.write_image("first.png", frames[0])


@pytest.mark.usefixtures("inputs")
def test_every_command(tmp_path: Path) -> None:
    stock = save_tiny_base(tmp_path / "stock")
    kinds = []
    for words in commands():
        kinds.append(" ".join(words[:2]))
        if words[:2] == ["pip", "install"]:
            continue
        if words[:2] == ["hf", "download"]:
            stand_in(words, stock)
            continue
        assert words[0] == "genhoi"
        result = CliRunner().invoke(main, words[1:] + QUICK * (words[1] == "edit"))
        assert result.exit_code == 0, (words, result.output)
    assert kinds.count("genhoi edit") == 3 and kinds.count("genhoi convert") == 2
    assert kinds.count("hf download") == 2
    WanImageToVideoPipeline.from_pretrained("genhoi-wan")
    whole, parts = (
        json.loads(Path(out, "edit.json").read_text("utf-8"))
        for out in ("genhoi-edit", "genhoi-edit-2")
    )
    assert whole["edited_frames_sha256"] == parts["edited_frames_sha256"]
    assert whole["adapter"]["trained"] and whole["base"]["transformer"] is None
    assert parts["base"]["transformer"] == "genhoi-parts/transformer"
    assert "--transformer genhoi-parts/transformer" in parts["repeat"]
    assert "--transformer" not in whole["repeat"]
