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
from diffusers import WanImageToVideoPipeline, WanVACEPipeline
from safetensors.torch import save_file
from support.tiny_base import save_tiny_base
from support.tiny_vace import save_tiny_vace_base, tiny_vace
from support.tiny_wan import lively_adapter, tiny_wan

from genhoi import media, to_official
from genhoi.cli.group import main
from genhoi.media import Clip

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
VACE_BRANCH = "step-5000-gate_attn.safetensors"
QUICK = ["--crop", "none", "--size", "48x32", "--steps", "1", "--device", "cpu"]


def commands() -> list[list[str]]:
    """Every line of every block without a language."""
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def stand_in(words: list[str], stock: Path, stock_vace: Path) -> None:
    """Do what `hf download` does, with what a small model has."""
    options = dict(pairwise(words))
    target = Path(options["--local-dir"])
    if VACE_BRANCH in words:
        target.mkdir()
        model = tiny_vace()
        weights = to_official(model, lively_adapter(model))
        lora = {n for n in weights if ".lora_" in n}
        gates = {n: x.neg() for n, x in weights.items() if ".attn.gate." in n}
        branch = {n: x for n, x in weights.items() if n.startswith("vace_") and n not in lora}
        save(branch, target / VACE_BRANCH)
        save({n: weights[n] for n in lora} | gates, target / words[4])
        return
    if words[2] == "Wan-AI/Wan2.1-VACE-14B-diffusers":
        shutil.copytree(stock_vace, target)
        return
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


def save(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file({n: x.detach().contiguous() for n, x in weights.items()}, path)


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
    stocks = save_tiny_base(tmp_path / "stock"), save_tiny_vace_base(tmp_path / "stock-vace")
    kinds = []
    for words in commands():
        kinds.append(" ".join(words[:2]))
        if words[:2] == ["pip", "install"]:
            continue
        if words[:2] == ["hf", "download"]:
            stand_in(words, *stocks)
            continue
        assert words[0] == "genhoi"
        result = CliRunner().invoke(main, words[1:] + QUICK * (words[1] == "edit"))
        assert result.exit_code == 0, (words, result.output)
    assert kinds.count("genhoi edit") == 5 and kinds.count("genhoi convert") == 3
    assert kinds.count("hf download") == 4
    WanImageToVideoPipeline.from_pretrained("genhoi-wan")
    WanVACEPipeline.from_pretrained("genhoi-vace")
    vace = json.loads(Path("genhoi-edit-vace", "edit.json").read_text("utf-8"))
    assert vace["adapter"]["trained"]
    whole, parts = (
        json.loads(Path(out, "edit.json").read_text("utf-8"))
        for out in ("genhoi-edit", "genhoi-edit-2")
    )
    assert whole["edited_frames_sha256"] == parts["edited_frames_sha256"]
    assert whole["adapter"]["trained"] and whole["base"]["transformer"] is None
    assert parts["base"]["transformer"] == "genhoi-parts/transformer"
    assert "--transformer genhoi-parts/transformer" in parts["repeat"]
    assert "--transformer" not in whole["repeat"]
