"""Weights that change without a trace in their tensors: hot swaps, .data, swapped contents."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.training_utils import EMAModel
from peft import LoraConfig, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter_from_state_dict
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

from genhoi import Attachment, attach


def run(model: WanTransformer3DModel) -> Tensor:
    with torch.no_grad():
        (out,) = model(**inputs(model))
    assert isinstance(out, Tensor)
    return out


def put_on(model: WanTransformer3DModel) -> Attachment:
    handle = attach(model, lively_adapter(model), preset="paper")
    handle.set_reference([reference()], some_tokens())
    return handle


def lora_config(rank: int = 4) -> LoraConfig:
    targets = ["to_q", "to_k", "to_v"]
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)


def lora(seed: int, rank: int = 4) -> dict[str, Tensor]:
    model = tiny_wan()
    torch.manual_seed(seed)
    model.add_adapter(lora_config(rank))
    return get_peft_model_state_dict(model)


def load(
    model: WanTransformer3DModel, weights: dict[str, Tensor], *, hotswap: bool = False
) -> None:
    copies = {name: x.clone() for name, x in weights.items()}
    model.load_lora_adapter(copies, adapter_name="style", prefix=None, hotswap=hotswap)


def expected(weights: dict[str, Tensor]) -> Tensor:
    model = tiny_wan()
    put_on(model)
    load(model, weights)
    return run(model)


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_a_hot_swapped_lora(rank: int) -> None:
    """Its weights come through .data, or, with more ranks, by a swap of the tensors' contents."""
    one, two = lora(6), lora(7, rank)
    model = tiny_wan()
    handle = put_on(model)
    load(model, one)
    before = run(model)
    load(model, two, hotswap=True)
    after = run(model)
    assert handle.reference_passes == 2
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, expected(two), rtol=1e-6, atol=1e-6)  # rank 2 is padded


def test_a_lora_prepared_for_hot_swaps() -> None:
    """Its ranks are padded, and its scales are tensors, which PEFT changes in place."""
    one, two = lora(6), lora(7, 2)
    model = tiny_wan()
    put_on(model)
    model.enable_lora_hotswap(target_rank=8)
    load(model, one)
    torch.testing.assert_close(run(model), expected(one), rtol=1e-5, atol=1e-5)
    load(model, two, hotswap=True)
    whole = run(model)
    torch.testing.assert_close(whole, expected(two), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        (half,) = model(**inputs(model), attention_kwargs={"scale": 0.5})
    bare = tiny_wan()
    put_on(bare)
    load(bare, two)
    with torch.no_grad():
        (wanted,) = bare(**inputs(bare), attention_kwargs={"scale": 0.5})
    torch.testing.assert_close(half, wanted, rtol=1e-5, atol=1e-5)
    assert (half - whole).abs().max() > 1e-3
    torch.testing.assert_close(run(model), whole, rtol=1e-5, atol=1e-5)


def test_a_lora_hot_swapped_by_peft_itself() -> None:
    one, two = lora(6), lora(7)
    model, other = tiny_wan(), tiny_wan()
    put_on(model)
    load(model, one)
    run(model)
    load(other, two)
    weights = {name: x for name, x in other.state_dict().items() if "lora_" in name}
    hotswap_adapter_from_state_dict(model, weights, "style", lora_config())
    assert torch.equal(run(model), expected(two))


def test_refresh_after_averaged_weights_came_and_went() -> None:
    """diffusers' EMAModel writes through .data."""
    model = tiny_wan()
    handle = put_on(model)
    average = EMAModel(model.parameters())
    average.shadow_params = [x * 1.1 for x in average.shadow_params]
    before = run(model)
    average.store(model.parameters())
    average.copy_to(model.parameters())
    handle.refresh()
    averaged = run(model)
    handle.set_reference([reference()], some_tokens())
    assert torch.equal(run(model), averaged)
    average.restore(model.parameters())
    handle.refresh()
    assert torch.equal(run(model), before)
    assert not torch.equal(averaged, before)
    handle.detach()
    with pytest.raises(RuntimeError, match="refresh: the adapter is detached"):
        handle.refresh()


@pytest.fixture
def contents_are_swapped() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("contents_are_swapped")
def test_conversions_that_swap_contents() -> None:
    model = tiny_wan()
    handle = put_on(model)
    before = run(model)
    assert torch.equal(run(model.to("cpu")), before)
    model.to(torch.bfloat16).to(torch.float32)
    rounded = run(model)
    assert not torch.equal(rounded, before)
    passes = handle.reference_passes
    model.load_state_dict({name: x * 1.1 for name, x in model.state_dict().items()})
    after = run(model)
    assert handle.reference_passes == passes + 1
    assert not torch.equal(after, rounded)


def test_weights_that_were_replaced_do_not_stay() -> None:
    """One that takes their place is another, even at their address."""
    model = tiny_wan()
    handle = put_on(model)
    for scale in (1.0, 2.0, 3.0, 4.0):
        bias = torch.nn.Parameter(model.patch_embedding.bias.detach() * scale)
        model.patch_embedding.bias = bias.requires_grad_(False)
        del bias
        out = run(model)
        handle.set_reference([reference()], some_tokens())
        assert torch.equal(run(model), out)
