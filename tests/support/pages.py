"""Examples in the documents, and the files that they name."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from genhoi import media
from support.tiny_base import save_tiny_base
from support.tiny_vace import save_tiny_vace_base, tiny_vace
from support.tiny_wan import lively_adapter, tiny_wan

__all__ = [
    "model_layer_block",
    "python_block",
    "python_blocks",
    "vace_block",
    "write_inputs",
    "write_pipeline",
]

ROOT = Path(__file__).resolve().parents[2]


def python_blocks(page: str) -> list[str]:
    """List a page's examples in Python."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def python_block(page: str, having: str) -> str:
    """Find the one example that has a text in it."""
    (block,) = (block for block in python_blocks(page) if having in block)
    return block


def model_layer_block(page: str) -> str:
    """Find the example of the model layer, at sizes and steps that a test can afford."""
    block = python_block(page, "WanGenHOIPipeline")
    quick = (
        ("81, 480, 832", "9, 32, 48"),
        ("image=first)", "image=first, num_inference_steps=2)"),
    )
    for large, small in quick:
        assert block.count(large) == 1
        block = block.replace(large, small)
    return block


def vace_block(page: str) -> str:
    """Find the example on Wan VACE, at sizes and steps that a test can afford."""
    block = python_block(page, "set_reference_frames(")
    large = '"height": 480, "width": 832, "num_frames": 81}'
    assert block.count(large) == 1
    small = '"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2}'
    return block.replace(large, small)


def write_inputs(folder: Path) -> None:
    """Write the clip, mask and pictures that the examples name, small."""
    frames = torch.randint(0, 255, (9, 32, 48, 3), dtype=torch.uint8)
    media.write_clip(folder / "clip.mp4", media.Clip(frames))
    media.write_mask(folder / "mask.mp4", torch.ones(9, 32, 48, dtype=torch.bool))
    for name in ("mug.png", "first.png"):
        media.write_image(folder / name, frames[0])


def write_pipeline(folder: Path) -> None:
    """Write the pipelines with an adapter that the examples name, small."""
    save_tiny_base(folder / "genhoi-wan")
    lively_adapter(tiny_wan()).save_pretrained(folder / "genhoi-wan" / "adapter")
    save_tiny_vace_base(folder / "genhoi-vace")
    lively_adapter(tiny_vace()).save_pretrained(folder / "genhoi-vace" / "adapter")
