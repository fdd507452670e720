"""GenHOI on transformers in few bits, loaded by diffusers: GGUF files, and torchao's 8 bits.

Both packages are optional, and change what diffusers imports: `make test-quantized` installs them
aside and runs this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from support.quantized import QUANTIZERS, WIDE, plain_wan, quantized_wan
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

from genhoi import Attachment, GenHOIAdapter, attach


@pytest.fixture(params=QUANTIZERS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> WanTransformer3DModel:
    return quantized_wan(request.param, tmp_path)


def run(model: WanTransformer3DModel, **changes: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**(inputs(model, dtype=torch.bfloat16) | changes))
    assert isinstance(out, Tensor)
    return out


def put_on(model: WanTransformer3DModel, dtype: torch.dtype = torch.bfloat16) -> Attachment:
    handle = attach(model, lively_adapter(tiny_wan(**WIDE)).to(dtype), preset="paper")
    handle.set_reference([reference().bfloat16()], some_tokens())
    return handle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_what_the_values_say(model: WanTransformer3DModel, dtype: torch.dtype) -> None:
    """As far from an ordinary transformer of the same values as the base alone is."""
    bare, plain = run(model), plain_wan(model)
    off = (bare - run(plain)).abs().max()
    handle, beside = put_on(model, dtype), put_on(plain, dtype)
    edited = run(model)
    assert (edited - run(plain)).abs().max() <= 2 * off + 0.03
    assert (edited - bare).abs().max() > 0.2
    assert torch.equal(run(model), edited) and handle.reference_passes == 1
    with torch.inference_mode():
        assert torch.equal(model(**inputs(model, dtype=torch.bfloat16))[0], edited)
    handle.detach()
    beside.detach()
    assert torch.equal(run(model), bare)


def test_moves_and_casts(model: WanTransformer3DModel) -> None:
    """What diffusers does to a quantised transformer, with keys and values cached."""
    put_on(model)
    edited = run(model)
    model.to("cpu")
    assert torch.equal(run(model), edited)
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    assert torch.equal(run(model), edited)


def test_layerwise_casting_of_the_rest(model: WanTransformer3DModel) -> None:
    """What was not quantised may be stored in 8 bits; the adapter keeps its dtype."""
    bare = run(model)
    handle = put_on(model)
    edited = run(model)
    kept = {name: x.clone() for name, x in handle.adapter.state_dict().items()}
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert (run(model) - edited).abs().max() < 0.5 * (edited - bare).abs().max()
    assert all(torch.equal(x, kept[name]) for name, x in handle.adapter.state_dict().items())


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if "activations" not in kind])
def test_the_adapter_trains_on_it(kind: str, tmp_path: Path) -> None:
    """Gradients reach it through weights that have none; torchao gives none for activations."""
    model = quantized_wan(kind, tmp_path)
    handle = put_on(model, torch.float32)
    model(**inputs(model, dtype=torch.bfloat16))[0].float().square().sum().backward()
    for name, weight in handle.adapter.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and weight.grad.any(), name


def test_a_lora_on_it_reaches_the_references(model: WanTransformer3DModel) -> None:
    handle = put_on(model)
    edited = run(model)
    model.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_k", "to_v"]))
    assert not torch.equal(run(model), edited) and handle.reference_passes == 2
    model.disable_adapters()
    assert torch.equal(run(model), edited)


def test_saving_the_adapter(model: WanTransformer3DModel, tmp_path: Path) -> None:
    """Nothing of it is in the transformer's state_dict, which may not be saved at all."""
    handle = put_on(model)
    edited = run(model)
    assert not any("processor" in name for name in model.state_dict())
    handle.adapter.save_pretrained(tmp_path / "adapter")
    handle.detach()
    adapter = GenHOIAdapter.from_pretrained(tmp_path / "adapter")
    again = attach(model, adapter, preset="paper")
    again.set_reference([reference().bfloat16()], some_tokens())
    assert torch.equal(run(model), edited)
