"""Copies of a transformer with an adapter, and whole ones in files: each has its own adapter."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.attached import attached_vace, attached_wan, run
from support.tiny_wan import reference, some_tokens

from genhoi import attachment_of


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def saved(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def forward(model: Any, arguments: dict[str, Any]) -> None:
    run(model, arguments)


def training_step(model: Any, arguments: dict[str, Any]) -> None:
    model(**arguments)[0].sum().backward()


@pytest.mark.parametrize("make", [attached_wan, attached_vace])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("before", [forward, training_step])
def test_a_copy_stands_alone(
    make: Any, copied: Callable[[Any], Any], before: Callable[[Any, dict[str, Any]], None]
) -> None:
    model, handle, arguments = make()
    wanted = run(model, arguments)
    before(model, arguments)
    other = copied(model)
    its_handle = attachment_of(other)
    assert its_handle.transformer is other is not model
    assert torch.equal(run(other, arguments), wanted)

    with torch.no_grad():  # of the copy alone
        its_handle.adapter.layers[0].self_gate.fc2.bias.add_(3)
    changed = run(other, arguments)
    assert not torch.equal(changed, wanted)
    its_handle.set_reference(None)
    assert not torch.equal(run(other, arguments), changed)
    assert torch.equal(run(model, arguments), wanted)

    handle.detach()
    bare = run(model, arguments)
    assert not torch.equal(run(other, arguments), bare)
    its_handle.detach()
    assert torch.equal(run(other, arguments), bare)


@pytest.mark.parametrize("make", [attached_wan, attached_vace])
def test_a_model_and_its_attachment_are_copied_together(make: Any) -> None:
    model, handle, _ = make()
    other, its_handle = copy.deepcopy((model, handle))
    assert attachment_of(other) is its_handle
    assert attachment_of(model) is handle
    assert all(
        x is y for x, y in zip(other.parameters(), its_handle.transformer.parameters(), strict=True)
    )


def test_a_copy_of_references_that_are_trained() -> None:
    model, handle, arguments = attached_wan()
    latent = reference().requires_grad_()
    handle.set_reference([latent * 2], some_tokens())
    wanted = run(model, arguments)
    assert torch.equal(run(copy.deepcopy(model), arguments), wanted)


def test_no_attachment_without_an_adapter() -> None:
    model, handle, _ = attached_wan()
    handle.detach()
    with pytest.raises(ValueError, match="got WanTransformer3DModel without an adapter, wanted"):
        attachment_of(model)
