"""From attach to detach: processors that others set, and what a user's own settings become."""

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from support.attached import attached_vace, attached_wan, run

from genhoi import attach

both_families = pytest.mark.parametrize("make", [attached_wan, attached_vace])
PATTERNS = "_skip_layerwise_casting_patterns"


@both_families
@pytest.mark.parametrize("with_references", [True, False])
def test_another_processor_is_refused_in_words(make: Any, with_references: bool) -> None:
    """It would leave the gates out, or be handed what only the adapter's knows."""
    model, handle, arguments = make()
    if not with_references:
        handle.set_reference(None)
    wanted = run(model, arguments)
    model.set_attn_processor(WanAttnProcessor())
    with pytest.raises(ValueError, match=r"got attention processor WanAttnProcessor.*call detach"):
        run(model, arguments)
    with pytest.raises(ValueError, match="with an adapter attached"):
        attach(model, handle.adapter)
    handle.detach()
    again = attach(model, handle.adapter, preset="paper" if make is attached_wan else None)
    again.set_reference(None)
    if not with_references:
        assert torch.equal(run(model, arguments), wanted)


@both_families
def test_processors_may_be_set_to_themselves(make: Any) -> None:
    model, _, arguments = make()
    wanted = run(model, arguments)
    model.set_attn_processor(dict(model.attn_processors))
    assert torch.equal(run(model, arguments), wanted)


@both_families
def test_projections_fused_and_unfused_between_passes(make: Any) -> None:
    model, _, arguments = make()
    wanted = run(model, arguments)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, arguments), wanted, rtol=1e-5, atol=1e-5)
    model.unfuse_qkv_projections()
    torch.testing.assert_close(run(model, arguments), wanted, rtol=1e-5, atol=1e-5)


@both_families
@pytest.mark.parametrize("own", [["ffn"], None])
def test_detach_puts_a_users_own_patterns_back(make: Any, own: list[str] | None) -> None:
    model, handle, _ = make()
    handle.detach()
    of_class = getattr(model, PATTERNS)
    setattr(model, PATTERNS, own)
    handle = attach(model, handle.adapter)
    assert getattr(model, PATTERNS) == [*(own or ()), "processor"]
    handle.detach()
    assert vars(model)[PATTERNS] is own
    delattr(model, PATTERNS)
    assert getattr(model, PATTERNS) is of_class


def test_detach_keeps_patterns_that_came_after_attach() -> None:
    model, handle, _ = attached_wan()
    setattr(model, PATTERNS, own := ["ffn"])
    handle.detach()
    assert getattr(model, PATTERNS) is own
