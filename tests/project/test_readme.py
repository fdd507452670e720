"""The README's Python runs as it stands, and names only what exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.pages import (
    model_layer_block,
    python_block,
    python_blocks,
    vace_block,
    write_inputs,
    write_pipeline,
)
from support.tiny_animate import tiny_animate_pipeline
from support.tiny_wan import lively_adapter

import genhoi
from genhoi import media

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
VERSIONS = "docs/wan_versions.md"
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
    loop = python_block("docs/model_layer.md", "edit_condition(").replace("(50)", "(2)")
    exec(compile(loop, "docs/model_layer.md", "exec"), names)
    assert names["condition"].shape == (1, 20, 3, 4, 6) and names["latents"].shape[2:] == (3, 4, 6)
    assert names["handle"].reference_passes == 1 and names["tokens"].any()


def test_one_example_of_the_model_layer() -> None:
    (stream,) = (block for block in BLOCKS if "WanGenHOIPipeline" in block)
    assert stream in python_blocks("docs/model_layer.md")
    (frames,) = (block for block in BLOCKS if "set_reference_frames(" in block)
    assert frames in python_blocks("docs/vace.md")


@pytest.mark.usefixtures("files")
def test_the_plug_in_on_vace() -> None:
    """Both of docs/vace.md: diffusers' own pipeline, and the context in our order."""
    write_pipeline(Path())
    names: dict[str, Any] = {}
    exec(compile(vace_block("README.md"), "README.md", "exec"), names)
    assert names["video"].shape == (9, 32, 48, 3)
    assert not names["handle"]._attached
    names |= {"frames": names["clip"].frames, "height": 32, "width": 48}
    names |= {"mask": media.read_mask("mask.mp4")}
    exec(compile(python_block("docs/vace.md", "vace_context("), "docs/vace.md", "exec"), names)
    assert names["context"].shape == (1, 96, 4, 4, 6)


@pytest.mark.usefixtures("files")
def test_versions_of_wan() -> None:
    """Animate, and few steps, after the names that their texts have."""
    names: dict[str, Any] = {
        "pipe": tiny_animate_pipeline(),
        "frames": 9,
        "height": 32,
        "width": 48,
    }
    names["adapter"] = lively_adapter(names["pipe"].transformer)
    exec(compile(python_block(VERSIONS, "torch.cat"), VERSIONS, "exec"), names)
    assert names["tokens"].shape == (1, 4 * 2 * 3) and names["handle"]._references.any_seen

    write_pipeline(Path())
    pipe = genhoi.WanGenHOIPipeline.from_pretrained("genhoi-wan")
    genhoi.attach_pipeline(pipe, lively_adapter(pipe.transformer))
    up, down = torch.ones(64, 1), torch.ones(1, 64)
    lora = {
        "blocks.0.self_attn.q.lora_up.weight": up,
        "blocks.0.self_attn.q.lora_down.weight": down,
    }
    save_file({f"diffusion_model.{k}": x for k, x in lora.items()}, "few_steps.safetensors")
    frames = torch.zeros(9, 32, 48, 3, dtype=torch.uint8)
    names = {"genhoi": genhoi, "pipe": pipe, "clip": frames, "mug": frames[0]}
    names["mask"] = torch.ones(9, 32, 48, dtype=torch.bool)
    exec(compile(python_block(VERSIONS, "few_steps("), VERSIONS, "exec"), names)
    assert names["video"].shape == (9, 32, 48, 3) and pipe.get_active_adapters()


@pytest.mark.usefixtures("files")
def test_the_edit() -> None:
    (block,) = (block for block in BLOCKS if "import GenHOIPipeline" in block)
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
