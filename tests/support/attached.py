"""A tiny Wan and a tiny Wan VACE, each with an adapter and references at work."""

from typing import Any

import torch
from torch import Tensor

from genhoi import Attachment, attach
from support.tiny_vace import tiny_vace, vace_inputs
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan

__all__ = ["attached_vace", "attached_wan", "run"]


def attached_wan() -> tuple[Any, Attachment, dict[str, Any]]:
    """Return the model, its attachment, and arguments of a forward pass."""
    model = tiny_wan()
    handle = attach(model, lively_adapter(model), preset="paper")
    handle.set_reference([reference()], some_tokens())
    return model, handle, inputs(model)


def attached_vace() -> tuple[Any, Attachment, dict[str, Any]]:
    """Return the model, its attachment, and arguments of a forward pass."""
    model = tiny_vace()
    handle = attach(model, lively_adapter(model, lora_targets=["self_q", "text_k", "ffn_in"]))
    handle.set_reference_frames(2)
    return model, handle, vace_inputs(model)


def run(model: Any, arguments: dict[str, Any]) -> Tensor:
    """Run a forward pass without gradients."""
    with torch.no_grad():
        (out,) = model(**arguments)
    assert isinstance(out, Tensor)
    return out
