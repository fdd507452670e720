"""Keys and values of the reference: computed once, and again when they have to be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

from genhoi import Attachment, attach


def attached(**options: Any) -> tuple[WanTransformer3DModel, Attachment]:
    model = tiny_wan()
    handle = attach(model, lively_adapter(model), preset="paper", **options)
    seeing = some_tokens() if handle.options.mask_gate else None
    handle.set_reference([reference()], seeing)
    return model, handle


def run(model: WanTransformer3DModel, **changes: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**(inputs(model) | changes))
    assert isinstance(out, Tensor)
    return out


def keys_values(handle: Attachment) -> list[Tensor]:
    kept = [block.attn1.processor.current for block in handle.transformer.blocks]
    return [x for current in kept for x in (current.k_ref, current.v_ref)]


def test_fifty_steps_and_two_branches_are_one_pass() -> None:
    model, handle = attached()
    branches = [inputs(model, seed=seed)["encoder_hidden_states"] for seed in (10, 11)]
    for step in range(50):
        for text in branches:
            run(model, encoder_hidden_states=text, timestep=torch.tensor([1000.0 - 20 * step]))
    assert handle.reference_passes == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_independent_of_timestep_text_and_noise_bitwise(dtype: torch.dtype) -> None:
    model, handle = attached()
    model.to(dtype)
    for seed, step in ((2, 731.0), (9, 10.0)):
        run(model, **inputs(model, seed=seed, step=step, dtype=dtype))
        now = [x.clone() for x in keys_values(handle)]
        handle.set_reference([reference()], some_tokens())  # computed afresh
        if seed == 2:
            first = now
    assert handle.reference_passes == 2
    assert all(torch.equal(a, b) for a, b in zip(first, now, strict=True))


def _scale_in_place(model: Any, handle: Attachment) -> None:
    with torch.no_grad():
        model.blocks[0].ffn.net[2].weight.mul_(1.1)


def _scale_adapter(model: Any, handle: Attachment) -> None:
    with torch.no_grad():
        handle.adapter.layers[0].lora_k.up.mul_(1.1)


def _replace(model: Any, handle: Attachment) -> None:
    bias = model.patch_embedding.bias
    model.patch_embedding.bias = torch.nn.Parameter(bias.detach() + 1, requires_grad=False)


def _load(model: Any, handle: Attachment) -> None:
    model.load_state_dict({name: x * 1.1 for name, x in model.state_dict().items()})


def _other_reference(model: Any, handle: Attachment) -> None:
    handle.set_reference([reference(seed=20)], some_tokens())


CHANGES = [_scale_in_place, _scale_adapter, _replace, _load, _other_reference]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_computed_again_after(change: Callable[[Any, Attachment], None]) -> None:
    model, handle = attached()
    before = run(model)
    assert torch.equal(run(model), before)
    change(model, handle)
    after = run(model)
    assert handle.reference_passes == 2
    assert not torch.equal(after, before)
    given = [reference(seed=20) if change is _other_reference else reference()]
    handle.set_reference(given, some_tokens())
    assert torch.equal(run(model), after)


def test_computed_again_for_another_grid_and_dtype() -> None:
    model, handle = attached(mask_gate=False)
    run(model)
    grid = (2, 5, 3)
    longer = run(model, **inputs(model, grid=grid))
    assert handle.reference_passes == 2
    model.to(torch.bfloat16)
    run(model, **inputs(model, grid=grid, dtype=torch.bfloat16))
    assert handle.reference_passes == 3
    assert keys_values(handle)[0].dtype == torch.bfloat16
    handle.detach()
    fresh = tiny_wan()
    again = attach(fresh, lively_adapter(fresh), preset="paper", mask_gate=False)
    again.set_reference([reference()])
    assert torch.equal(run(fresh, **inputs(fresh, grid=grid)), longer)


def test_computed_again_for_a_reference_changed_in_place() -> None:
    model, handle = attached()
    given = reference()
    handle.set_reference([given], some_tokens())
    before = run(model)
    given.mul_(-1)
    assert not torch.equal(run(model), before)


def test_computed_again_after_rounding_to_another_dtype_and_back() -> None:
    model, handle = attached()
    run(model)
    model.to(torch.bfloat16).to(torch.float32)
    run(model)
    assert handle.reference_passes == 2


def test_inference_mode_between_others() -> None:
    model, _ = attached()
    plain = run(model)
    with torch.inference_mode():
        (inside,) = model(**inputs(model))
    assert torch.equal(inside, plain)
    model(**inputs(model))[0].sum().backward()  # no inference tensor reaches autograd
    assert torch.equal(run(model), plain)


def test_a_mask_change_alone_is_seen() -> None:
    model, handle = attached()
    before = run(model)
    handle.set_reference([reference()], ~some_tokens())
    assert not torch.equal(run(model), before)
