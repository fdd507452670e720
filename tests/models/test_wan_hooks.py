"""diffusers' hooks on modules: what they do to the base they do with an adapter attached."""

from typing import Any

import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from diffusers.hooks import apply_layerwise_casting
from diffusers.hooks.smoothed_energy_guidance_utils import (
    SmoothedEnergyGuidanceConfig,
    _apply_smoothed_energy_guidance_hook,
)
from peft import LoraConfig
from support.attached import attached_vace, attached_wan, run
from support.tiny_vace import tiny_vace, vace_inputs
from support.tiny_wan import inputs, tiny_wan
from torch import Tensor

from genhoi import GenHOIAdapter, attach

both_families = pytest.mark.parametrize("make", [attached_wan, attached_vace])


@both_families
def test_layerwise_casting_of_peft_layers(make: Any) -> None:
    """A hook of diffusers keeps PEFT from casting inputs to the 8 bits of its weights.

    Without the adapter's name among those to be skipped, its gates are stored in 8 bits, too.
    """
    model, handle, arguments = make()
    targets = ["to_q", "to_k", "to_v"]
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    model.add_adapter(config)
    arguments = {
        name: x.bfloat16() if isinstance(x, Tensor) and name != "timestep" else x
        for name, x in arguments.items()
    }
    model.to(torch.bfloat16)
    wanted = run(model, arguments)
    apply_layerwise_casting(  # enable_layerwise_casting leaves PEFT's layers out
        model,
        torch.float8_e4m3fn,
        torch.bfloat16,
        skip_modules_pattern=("patch_embedding", "norm", "time_embedder"),
    )
    block = model.get_submodule("vace_blocks.0" if make is attached_vace else "blocks.0")
    assert block.attn1.to_q.lora_A["default"].weight.dtype == torch.float8_e4m3fn
    assert handle.adapter.layers[0].self_gate.fc1.weight.dtype == torch.float8_e4m3fn
    out = run(model, arguments)
    assert torch.equal(run(model, arguments), out)
    torch.testing.assert_close(out.float(), wanted.float(), rtol=0.1, atol=0.25)
    handle.detach()
    run(model, arguments)


def steps(model: Any, arguments: dict[str, Any], count: int = 7) -> list[Tensor]:
    outs = []
    for step in range(count):
        now = arguments | {"timestep": torch.tensor([900.0 - 100 * step])}
        with model.cache_context("cond"):
            outs.append(run(model, now))
    return outs


def taylor_seer(pattern: str) -> TaylorSeerCacheConfig:
    return TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=2,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[pattern],
    )


@pytest.mark.parametrize("pattern", [r".*attn.*", r".*blocks\.\d+\.attn\d", r".*to_out\.0"])
@pytest.mark.parametrize("make", [tiny_wan, tiny_vace])
def test_a_cache_that_chooses_modules_by_name(make: Any, pattern: str) -> None:
    """Those of the adapter, whose names fit too, are no part of the base's attention."""
    bare, model = make(), make()
    options = {"lora_targets": ["self_q", "ffn_in"]} if make is tiny_vace else {}
    adapter = GenHOIAdapter.for_transformer(model, rank=4, **options)  # adds nothing yet
    attach(model, adapter, flow_gate=None)
    bare.enable_cache(taylor_seer(pattern))
    model.enable_cache(taylor_seer(pattern))
    arguments = vace_inputs(model) if make is tiny_vace else inputs(model)
    for out, wanted in zip(steps(model, arguments), steps(bare, arguments), strict=True):
        assert torch.equal(out, wanted)
    model.disable_cache()
    bare.disable_cache()
    assert torch.equal(run(model, arguments), run(bare, arguments))


@both_families
def test_a_cache_by_name_with_references(make: Any) -> None:
    """What is computed is as without a cache, and the reference stream runs apart from it."""
    plain, _, arguments = make()
    model, handle, _ = make()
    model.enable_cache(taylor_seer(r".*attn.*"))
    wanted, outs = steps(plain, arguments), steps(model, arguments)
    assert torch.equal(outs[0], wanted[0]) and torch.equal(outs[1], wanted[1])
    assert any(not torch.equal(x, y) for x, y in zip(outs, wanted, strict=True))
    assert handle.reference_passes == (make is attached_wan)
    handle.detach()
    model.disable_cache()
    run(model, arguments)


def test_smoothed_queries_are_of_the_video_alone() -> None:
    """A guidance branch that smooths attention shares the references with the other branches."""
    plain, _, arguments = attached_wan()
    run(plain, arguments)  # its keys and values are made without smoothing
    model, handle, _ = attached_wan()
    config = SmoothedEnergyGuidanceConfig(indices=[0])
    for other in (plain, model):
        _apply_smoothed_energy_guidance_hook(other, config, blur_sigma=1e5)
    smoothed = run(plain, arguments)
    assert torch.equal(run(model, arguments), smoothed)
    assert handle.reference_passes == 1
    assert not torch.equal(smoothed, run(attached_wan()[0], arguments))
