"""LoRA for few steps, as lightx2v publishes them, under GenHOI; and how they are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from safetensors.torch import save_file
from support.tiny_base import save_tiny_base
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

import genhoi
from genhoi import GenHOIPipeline, WanGenHOIPipeline, attach_pipeline, few_steps
from genhoi.bases.wan import WanBase
from genhoi.models.sampling import noise, noise_levels

LAYERS = {
    "self_attn.q": (64, 64),
    "self_attn.k": (64, 64),
    "self_attn.v": (64, 64),
    "self_attn.o": (64, 64),
    "cross_attn.q": (64, 64),
    "cross_attn.k": (64, 64),
    "cross_attn.v": (64, 64),
    "cross_attn.o": (64, 64),
    "ffn.0": (96, 64),
    "ffn.2": (64, 96),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("pipe"))


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A file of that kind: every layer of every block, by the names of the first release."""
    draw = torch.Generator().manual_seed(6)
    weights = {}
    for block in range(2):
        for name, (out, width) in LAYERS.items():
            prefix = f"diffusion_model.blocks.{block}.{name}"
            weights[f"{prefix}.lora_down.weight"] = 0.2 * torch.randn(4, width, generator=draw)
            weights[f"{prefix}.lora_up.weight"] = 0.2 * torch.randn(out, 4, generator=draw)
            weights[f"{prefix}.diff_b"] = 0.1 * torch.randn(out, generator=draw)
    path = tmp_path / "few.safetensors"
    save_file(weights, path)
    return path


def run(model: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**inputs(model))
    assert isinstance(out, Tensor)
    return out


def test_the_references_go_through_it(folder: Path, lora: Path) -> None:
    """Loaded after `attach` it counts for the references too, as weights that it is fused into."""
    pipe = WanImageToVideoPipeline.from_pretrained(folder)
    model = pipe.transformer
    handle = attach_pipeline(pipe, lively_adapter(model), preset="paper")
    handle.set_reference([reference()], some_tokens())
    edited = run(model)
    pipe.load_lora_weights(lora, adapter_name="few")
    quick = run(model)
    assert handle.reference_passes == 2 and not torch.equal(quick, edited)
    assert torch.equal(run(model), quick) and handle.reference_passes == 2
    pipe.set_adapters("few", 0.5)
    half = run(model)
    assert not torch.equal(half, quick) and handle.reference_passes == 3
    pipe.set_adapters("few", 1.0)
    pipe.fuse_lora()
    torch.testing.assert_close(run(model), quick, rtol=1e-4, atol=1e-4)
    pipe.unfuse_lora()
    torch.testing.assert_close(run(model), quick, rtol=1e-4, atol=1e-4)


def test_before_attach_is_after_attach(folder: Path, lora: Path) -> None:
    outs = []
    for first in (True, False):
        pipe = WanImageToVideoPipeline.from_pretrained(folder)
        if first:
            pipe.load_lora_weights(lora)
        handle = attach_pipeline(pipe, lively_adapter(tiny_wan()), preset="paper")
        if not first:
            pipe.load_lora_weights(lora)
        handle.set_reference([reference()], some_tokens())
        outs.append(run(pipe.transformer))
        pipe.unload_lora_weights()
        run(pipe.transformer)
    assert torch.equal(*outs)


def test_in_both_experts(folder: Path, lora: Path) -> None:
    pipe = WanImageToVideoPipeline.from_pretrained(
        folder, transformer_2=tiny_wan(), boundary_ratio=0.9
    )
    handle = attach_pipeline(pipe, lively_adapter(pipe.transformer), preset="paper")
    handle.set_reference([reference()], some_tokens())
    models = (pipe.transformer, pipe.transformer_2)
    before = [run(model) for model in models]
    pipe.load_lora_weights(lora, adapter_name="high")
    pipe.load_lora_weights(lora, adapter_name="low", load_into_transformer_2=True)
    after = [run(model) for model in models]
    assert torch.equal(*before) and torch.equal(*after) and not torch.equal(before[0], after[0])
    assert handle.reference_passes == 4


def test_the_preset_is_the_command_s(folder: Path, lora: Path) -> None:
    """diffusers' loop with the preset's scheduler is ours at 4 steps, guidance 1, shift 5."""
    preset = few_steps("lightx2v")
    scheduler = preset.scheduler()
    scheduler.set_timesteps(preset.steps)
    levels = noise_levels(preset.steps, preset.shift)
    torch.testing.assert_close(scheduler.sigmas, levels, rtol=0, atol=5e-4)

    draw = torch.Generator().manual_seed(7)
    clip = genhoi.Clip(torch.randint(0, 256, (9, 32, 48, 3), dtype=torch.uint8, generator=draw))
    mask = torch.zeros(9, 32, 48, dtype=torch.bool)
    mask[:, :20, 16:40] = True
    mug = torch.full((20, 30, 3), 90, dtype=torch.uint8)
    pipe = WanGenHOIPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    attach_pipeline(pipe, lively_adapter(tiny_wan()))
    pipe.load_lora_weights(lora)
    start = noise((1, 16, 3, 4, 6), 5, 0)

    def made() -> Tensor:
        arguments = preset.arguments | {"latents": start, "output_type": "latent"}
        out: Tensor = pipe(clip, mask, [mug], "a cup", **arguments).frames
        return out

    other_levels = made()
    pipe.scheduler = scheduler
    ours = made()

    base = WanBase(folder, device="cpu", dtype=torch.float32)
    base.pipe.load_lora_weights(lora)
    seen: list[Tensor] = []
    with pytest.warns(genhoi.EditWarning):
        GenHOIPipeline(base, lively_adapter(tiny_wan()))(
            clip,
            mask,
            mug,
            prompt="a cup",
            steps=preset.steps,
            guidance=preset.guidance,
            shift=preset.shift,
            seed=5,
            size=(32, 48),
            crop="none",
            callback=lambda progress: seen.append(progress.latents),
            progress_bar=False,
        )
    # Its timesteps are whole numbers of 1000.
    off, other = ((x - seen[-1]).square().mean().sqrt() for x in (ours, other_levels))
    assert off < 0.03 and other > 3 * off


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name: got 'nobody', wanted one of lightx2v"):
        few_steps("nobody")
