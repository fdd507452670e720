"""What is counted on the meta device, beside what the CPU's allocator gives out for the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan
from support.allocations import convolve_without_scratch, peak_of_allocator
from torch import Tensor
from torch.nn import functional as F

from genhoi.bases import wan_needs
from genhoi.bases.mosaic import MOSAIC_CONFIG
from genhoi.models.adapter import GenHOIAdapter
from genhoi.models.adapter_config import AdapterConfig
from genhoi.models.attach import attach
from genhoi.models.counted import counting
from genhoi.models.forward_needs import EmptyModel, Work, cast_weights
from genhoi.models.registry import empty_model

AGREES = 0.25  # of the measured bytes
SMALL: dict[str, Any] = {
    "_class_name": "WanTransformer3DModel",
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 2,
}


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


# ------------------------------------------------------------------------------------- the counter


def test_live_bytes_are_of_tensors_that_are_there_and_new() -> None:
    given = empty(64)
    with counting() as counter:
        given.view(8, 8).t()
        assert counter.live_bytes == 0, "views of what was given"
        a = given + 1
        b = (a * 2).view(8, 8)
        assert counter.live_bytes == 2 * 256
        a += 1
        del a
        assert counter.live_bytes == 256
        del b
    assert (counter.live_bytes, counter.peak_bytes) == (0, 512)


def test_operations_by_kind() -> None:
    q, k = empty(2, 3, 100, 16), empty(2, 3, 50, 16)
    with counting() as counter:
        out = F.scaled_dot_product_attention(q, k, k)
        assert out.shape == q.shape
    assert counter.attention_flops == 4 * 2 * 3 * 100 * 50 * 16
    assert counter.peak_bytes == q.nbytes, "no weights of pairs"
    with counting() as counter:
        F.linear(empty(10, 16), empty(32, 16), empty(32))
        F.conv3d(empty(1, 4, 3, 8, 8), empty(6, 4, 3, 1, 1))
    assert counter.product_flops == 2 * 10 * 16 * 32 + 2 * 6 * 64 * 4 * 3
    with counting() as counter:
        F.gelu(empty(1000))
    assert counter.moved_bytes == 2 * 4000


def test_a_text_encoder_is_counted() -> None:
    """The attention of a UMT5 writes out its weights: 2 heads of 512 x 512."""
    phase = wan_needs._text_phase(small_text_encoder(), 512)
    assert phase.activation_bytes >= 4 * 2 * 512 * 512


def small_text_encoder() -> Any:
    config = {"vocab_size": 9, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    with torch.device("meta"):
        return wan_needs._BUILD["text_encoder"](config | {"num_heads": 2}).eval()


# ---------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("changes", "grid"),
    [({}, (5, 24, 24)), ({"num_layers": 3, "ffn_dim": 256}, (3, 32, 40))],
)
def test_a_forward_pass_takes_what_was_counted(
    dtype: torch.dtype, changes: dict[str, int], grid: tuple[int, int, int]
) -> None:
    config = SMALL | changes
    model = empty_model(config)
    transformer = model.transformer.eval()
    cast_weights(transformer, dtype)
    handle = attach(
        transformer, GenHOIAdapter.for_transformer(transformer).to(dtype), mask_gate=False
    )
    _, height, width = grid

    def work() -> Tensor:
        handle.set_reference([torch.zeros(1, 16, 1, height, width)])
        arguments = model.inputs(
            torch.zeros(1, 16, *grid, dtype=dtype),
            torch.zeros(1, 20, *grid, dtype=dtype),
            torch.zeros(1),
            torch.zeros(1, 512, 64, dtype=dtype),
            None,
        )
        out: Tensor = transformer(**arguments)[0]
        return out

    measured = peak_of_allocator(work)
    needs = EmptyModel(config, dtype=dtype).forward_needs(
        grid, references=[(height, width)], text_tokens=512
    )
    counted = needs.cache_bytes + needs.activation_bytes
    assert counted == pytest.approx(measured, rel=AGREES)
    tokens, layers = height * width // 4, config["num_layers"]
    cache = 2 * layers * tokens * 128 * dtype.itemsize
    assert cache <= needs.cache_bytes < 1.01 * cache + 4096


def test_the_references_are_computed_once() -> None:
    model = EmptyModel(SMALL, dtype=torch.float32)
    grid = (3, 8, 8)
    one, two = (
        model.forward_needs(grid, references=[(8, 8)] * count, text_tokens=512) for count in (1, 2)
    )
    assert two.once.products == pytest.approx(2 * one.once.products, rel=0.05)
    assert two.each.products == one.each.products
    assert two.each.attention > one.each.attention
    assert two.cache_bytes > 1.8 * one.cache_bytes
    n, m, width, layers = 48, 16, 128, 2
    assert one.each.attention == 4 * n * (n + m + 512) * width * layers
    assert one.once.attention == 4 * m * m * width * layers


def test_references_in_the_sequence_are_in_every_pass() -> None:
    """A VACE: its references are frames, its VACE blocks stand beside the trunk."""
    vace = SMALL | {
        "_class_name": "WanVACETransformer3DModel",
        "in_channels": 16,
        "vace_in_channels": 96,
        "vace_layers": [0],
    }
    f, height, width = grid = (5, 16, 24)
    references = [torch.zeros(1, 16, 1, height, width)] * 2
    model = empty_model(vace)
    adapter = GenHOIAdapter.for_transformer(model.transformer.eval())
    attach(model.transformer, adapter).set_reference(references)

    def work() -> Tensor:
        condition = model.with_references(torch.zeros(1, 96, *grid), references)
        latents = torch.zeros(1, 16, f + 2, height, width)
        text = torch.zeros(1, 512, 64)
        arguments = model.inputs(latents, condition, torch.zeros(1), text, None)
        out: Tensor = model.transformer(**arguments)[0]
        return out

    empty_vace = EmptyModel(vace, dtype=torch.float32)
    needs = empty_vace.forward_needs(grid, references=[(height, width)] * 2, text_tokens=512)
    assert needs.activation_bytes == pytest.approx(peak_of_allocator(work), rel=AGREES)
    assert needs.tokens == (f + 2) * height * width // 4
    assert (needs.cache_bytes, needs.once) == (0, Work())
    # Two blocks of the trunk and one of VACE.
    assert needs.each.attention == 4 * needs.tokens * (needs.tokens + 512) * 128 * 3


def test_weights_are_those_of_the_model() -> None:
    model = EmptyModel(MOSAIC_CONFIG, dtype=torch.bfloat16)
    transformer = empty_model(MOSAIC_CONFIG).transformer
    assert model.parameters == sum(p.numel() for p in transformer.parameters())
    cast_weights(transformer, torch.bfloat16)
    assert model.weight_bytes == sum(p.nbytes for p in transformer.parameters())
    assert 2 * model.parameters < model.weight_bytes < 2.2 * model.parameters
    assert model.block_bytes < model.weight_bytes + model.adapter_bytes


def test_an_adapter_of_another_base_is_refused() -> None:
    config = AdapterConfig(num_heads=2, head_dim=64, num_layers=4, image_attention=False)
    with pytest.raises(ValueError, match="num_heads 2, wanted 4"):
        EmptyModel(MOSAIC_CONFIG, dtype=torch.float32, adapter=config)


# ------------------------------------------------------------------------------------------- VAEs


@pytest.mark.parametrize("frames, size", [(9, (64, 64)), (17, (32, 48))])
def test_a_vae_takes_what_was_counted(
    frames: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 frames are counted in a straight line from 9 and 13."""
    with torch.device("meta"):
        without_weights = AutoencoderKLWan(base_dim=16).eval()
    encoding = wan_needs._vae_phase("", wan_needs._encoding, without_weights, frames, size)
    decoding = wan_needs._vae_phase("", wan_needs._decoding, without_weights, frames, size)
    vae = AutoencoderKLWan(base_dim=16).eval()
    latent = (1 + frames // 4, size[0] // 8, size[1] // 8)
    convolve_without_scratch(monkeypatch)
    measured = peak_of_allocator(lambda: vae.encode(torch.zeros(1, 3, frames, *size)))
    assert encoding.activation_bytes == pytest.approx(measured, rel=0.05)
    measured = peak_of_allocator(lambda: vae.decode(torch.zeros(1, 16, *latent)))
    assert decoding.activation_bytes == pytest.approx(measured, rel=0.05)
