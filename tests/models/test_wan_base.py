"""What attaching leaves alone: the base's outputs, bit for bit, and its state_dict."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from support.tiny_wan import (
    GRID,
    OPTIONS,
    TOKENS,
    inputs,
    lively_adapter,
    reference,
    some_tokens,
    tiny_wan,
)
from torch import Tensor

import genhoi_kernels
from genhoi import attach

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
CPU_KERNELS = any(b.name == "cpu" and b.usable for b in genhoi_kernels.backends())


def run(model: WanTransformer3DModel, **arguments: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**arguments)
    assert isinstance(out, Tensor)
    return out


@both_dtypes
@pytest.mark.parametrize("image", [True, False])
def test_bitwise_the_base_without_gates_and_seen_reference(dtype: torch.dtype, image: bool) -> None:
    model = tiny_wan(image=image).to(dtype)
    adapter = lively_adapter(model).to(dtype)
    arguments = inputs(model, dtype=dtype)
    base = run(model, **arguments)
    handle = attach(model, adapter, mask_gate=True, flow_gate=None)
    assert torch.equal(run(model, **arguments), base)
    nothing = torch.zeros(1, TOKENS, dtype=torch.bool)
    handle.set_reference([reference().to(dtype)], nothing)
    assert torch.equal(run(model, **arguments), base)
    assert handle.reference_passes == 0
    handle.set_reference([reference().to(dtype)], ~nothing)
    assert not torch.equal(run(model, **arguments), base)
    handle.set_reference(None)
    assert torch.equal(run(model, **arguments), base)


@both_dtypes
@pytest.mark.parametrize(("mask_gate", "flow_gate"), OPTIONS)
def test_detach_restores_everything(
    dtype: torch.dtype, mask_gate: bool, flow_gate: str | None
) -> None:
    model = tiny_wan().to(dtype)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    arguments = inputs(model, dtype=dtype)
    base = run(model, **arguments)
    adapter = lively_adapter(model).to(dtype)
    handle = attach(model, adapter, mask_gate=mask_gate, flow_gate=flow_gate)  # type: ignore[arg-type]
    handle.set_reference([reference()], some_tokens())
    assert not torch.equal(run(model, **arguments), base)
    handle.detach()
    handle.detach()  # twice is once
    assert torch.equal(run(model, **arguments), base)
    assert [name for name, _ in model.named_modules()] == modules
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert all(type(p) is WanAttnProcessor for p in model.attn_processors.values())
    assert "_skip_layerwise_casting_patterns" not in model.__dict__
    assert not model.rope._forward_hooks


@pytest.mark.skipif(not CPU_KERNELS, reason="the promise of bits is the compiled kernels'")
@both_dtypes
@pytest.mark.parametrize("flow_gate", ["token", "sequence"])
def test_background_sample_is_bitwise_without_reference(dtype: torch.dtype, flow_gate: str) -> None:
    """Through the op: another sample of the batch sees the reference."""
    model = tiny_wan().to(dtype)
    adapter = lively_adapter(model).to(dtype)
    arguments = inputs(model, batch=2, dtype=dtype)
    handle = attach(model, adapter, mask_gate=True, flow_gate=flow_gate)  # type: ignore[arg-type]
    alone = run(model, **arguments)
    mask = some_tokens().repeat(2, 1)
    mask[1] = False
    handle.set_reference([reference()], mask)
    out = run(model, **arguments)
    assert handle.reference_passes == 1
    assert torch.equal(out[1], alone[1])
    assert not torch.equal(out[0], alone[0])


def test_base_is_saved_and_loaded_as_if_nothing_were_attached(tmp_path: Path) -> None:
    model = tiny_wan()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    handle = attach(model, lively_adapter(model))
    handle.set_reference([reference()], some_tokens())
    run(model, **inputs(model))
    assert list(model.state_dict()) == list(before)
    model.save_pretrained(tmp_path)
    again = WanTransformer3DModel.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], x) for name, x in before.items())
    doubled = {name: 2 * x for name, x in before.items()}
    assert model.load_state_dict(doubled).missing_keys == []
    assert torch.equal(model.state_dict()["proj_out.weight"], doubled["proj_out.weight"])
    with pytest.raises(RuntimeError, match="proj_out"):
        model.load_state_dict({n: x for n, x in before.items() if "proj_out" not in n})


def test_two_samples_are_two_clips() -> None:
    """Batch of two, each with its own reference and mask, and both guidance branches' texts."""
    model = tiny_wan()
    handle = attach(model, lively_adapter(model), preset="paper")
    mask = torch.cat([some_tokens(seed=5), some_tokens(seed=6)])
    references = [reference(batch=2, seed=7), reference(4, 10, batch=1, seed=8)]
    arguments = inputs(model, batch=2)
    handle.set_reference(references, mask)
    together = run(model, **arguments)
    for b in range(2):
        one = {k: x[b : b + 1] if isinstance(x, Tensor) else x for k, x in arguments.items()}
        handle.set_reference([references[0][b : b + 1], references[1]], mask[b : b + 1])
        alone = run(model, **one)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-4, atol=1e-5)


def test_references_do_not_see_each_other() -> None:
    """A token that sees the second alone is as if there were no first."""
    model = tiny_wan()
    handle = attach(model, lively_adapter(model), preset="paper")
    first, second = reference(seed=7), reference(4, 10, seed=8)
    arguments = inputs(model)
    tokens = some_tokens()
    handle.set_reference([second], tokens)
    alone = run(model, **arguments)
    handle.set_reference([first, second], tokens.int() * 0b10)
    torch.testing.assert_close(run(model, **arguments), alone, rtol=1e-4, atol=1e-5)
    handle.set_reference([first, second], tokens)
    assert (run(model, **arguments) - alone).abs().max() > 1e-3


def test_bits_of_no_reference_gate_no_token() -> None:
    model = tiny_wan()
    base = run(model, **inputs(model))
    handle = attach(model, lively_adapter(model), mask_gate=True, flow_gate=None)
    handle.set_reference([reference(), reference(4, 4)], some_tokens().int() * 0b100)
    assert torch.equal(run(model, **inputs(model)), base)
    handle.set_reference([reference(2, 2)] * 32, some_tokens().int() << 31)
    assert not torch.equal(run(model, **inputs(model)), base)


def test_latent_mask_is_the_token_mask() -> None:
    model = tiny_wan()
    handle = attach(model, lively_adapter(model), preset="paper")
    tokens = some_tokens()
    f, h, w = GRID
    latent = tokens.view(1, 1, f, h, w).float().repeat_interleave(2, 3).repeat_interleave(2, 4)
    outs = []
    for mask in (tokens, latent, latent.expand(-1, 4, -1, -1, -1), latent[:, 0].bool()):
        handle.set_reference([reference()], mask)
        outs.append(run(model, **inputs(model)))
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize(("heads", "head_dim"), [(2, 128), (3, 64), (7, 16)])
@pytest.mark.parametrize("image", [True, False])
def test_sizes(heads: int, head_dim: int, image: bool) -> None:
    """Wan's head dims, and more heads than frames; the reference changes the result."""
    model = tiny_wan(image=image, num_attention_heads=heads, attention_head_dim=head_dim)
    handle = attach(model, lively_adapter(model), preset="release")
    without = run(model, **inputs(model))
    handle.set_reference([reference(2, 14), reference(6, 4)])
    out = run(model, **inputs(model))
    assert out.isfinite().all()
    assert (out - without).abs().max() > 1e-3


def test_options() -> None:
    """A preset's value unless one is given; without a preset the adapter's."""
    model = tiny_wan()
    adapter = lively_adapter(model, mask_gate=False, flow_gate=None, schedule=-1.0)

    def options(**given: Any) -> tuple[Any, ...]:
        handle = attach(model, adapter, **given)
        handle.detach()
        return handle.options.mask_gate, handle.options.flow_gate, handle.options.schedule

    assert options() == (False, None, -1.0)
    assert options(preset="paper") == (True, "token", "paper")
    assert options(preset="release") == (False, "sequence", "release")
    assert options(preset="paper", flow_gate=None, mask_gate=False) == (False, None, "paper")
    assert options(schedule=[0, 1, 2, 2.5]) == (False, None, [0, 1, 2, 2.5])
