"""The model layer on `cuda` tensors, as on the CPU: on hardware, or on the emulated GPU."""

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers, for the Wan transformer")

from support.tiny_vace import tiny_vace, vace_inputs
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan

from genhoi import attach

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, hardware or emulated"),
    pytest.mark.emulated(racecheck="raise", initcheck="raise"),
]


def attached_wan(device: str) -> tuple[Any, Any, dict[str, Any]]:
    model = tiny_wan(layers=2)
    adapter = lively_adapter(model).to(device)
    model.to(device).requires_grad_(False)
    handle = attach(model, adapter, preset="paper")
    handle.set_reference([reference().to(device)], some_tokens().to(device))
    return model, adapter, inputs(model)


def attached_vace(device: str) -> tuple[Any, Any, dict[str, Any]]:
    model = tiny_vace(num_layers=1, vace_layers=[0])
    adapter = lively_adapter(model).to(device)
    model.to(device).requires_grad_(False)
    attach(model, adapter).set_reference_frames(2)
    return model, adapter, vace_inputs(model)


@pytest.mark.parametrize("attached", [attached_wan, attached_vace])
def test_an_attached_model(attached: Any) -> None:
    """On the GPU, forward and backward, as on the CPU."""
    losses, grads = [], []
    for device in ("cpu", "cuda"):
        model, adapter, arguments = attached(device)
        model.train()
        given = {n: x.to(device) if torch.is_tensor(x) else x for n, x in arguments.items()}
        (out,) = model(**given)
        loss = out.square().mean()
        loss.backward()
        losses.append(loss.item())
        grads.append({n: p.grad.cpu() for n, p in adapter.named_parameters() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name, wanted in grads[0].items():
        atol = 1e-3 * float(wanted.abs().max()) + 1e-9
        torch.testing.assert_close(grads[1][name], wanted, rtol=1e-3, atol=atol)
