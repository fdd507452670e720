"""What does not fit is refused, in words, before anything is computed."""

from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from support.tiny_wan import TOKENS, inputs, lively_adapter, reference, some_tokens, tiny_wan

from genhoi import Attachment, GenHOIAdapter, attach, token_mask

IMAGE = torch.zeros(32, 48, 3, dtype=torch.uint8)


@pytest.fixture
def model() -> WanTransformer3DModel:
    return tiny_wan()


@pytest.fixture
def handle(model: WanTransformer3DModel) -> Attachment:
    return attach(model, lively_adapter(model), preset="paper")


def forward(handle: Attachment, **changes: Any) -> None:
    with torch.no_grad():
        handle.transformer(**inputs(handle.transformer, **changes))


def test_attach_twice(model: WanTransformer3DModel, handle: Attachment) -> None:
    with pytest.raises(ValueError, match=r"transformer: got one with an adapter attached.*detach"):
        attach(model, lively_adapter(model))
    handle.detach()
    attach(model, lively_adapter(model))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 2}, r"adapter: .*num_heads 2, wanted 4"),
        ({"attention_head_dim": 8}, r"adapter: .*head_dim 8, wanted 16"),
        ({"layers": 3}, r"adapter: .*num_layers 3, wanted 2"),
        ({"image": False}, r"adapter: .*image_attention False, wanted True"),
    ],
)
def test_adapter_of_another_base(
    model: WanTransformer3DModel, config: dict[str, Any], message: str
) -> None:
    other = lively_adapter(tiny_wan(**config))
    with pytest.raises(ValueError, match=message):
        attach(model, other)
    attach(model, lively_adapter(model))  # nothing was left behind


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preset": "papper"}, ValueError, r"preset: got 'papper', wanted one of paper, release"),
        ({"flow_gate": "mean"}, ValueError, r"flow_gate: got 'mean', wanted one of 'token'"),
        ({"mask_gate": "on"}, TypeError, r"mask_gate: got 'on', wanted True or False"),
        ({"schedule": "ceil"}, ValueError, r"schedule: got 'ceil', wanted 'paper', 'release'"),
        ({"schedule": [0.0]}, ValueError, r"schedule: got 1 frames, wanted num_heads = 4"),
    ],
)
def test_options(
    model: WanTransformer3DModel, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attach(model, lively_adapter(model), **options)


def test_wrong_kinds(model: WanTransformer3DModel) -> None:
    adapter = lively_adapter(model)
    with pytest.raises(TypeError, match="transformer: got Linear"):
        attach(torch.nn.Linear(1, 1), adapter)
    with pytest.raises(TypeError, match="adapter: got str"):
        attach(model, "adapter")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="adapter: got device meta, wanted cpu"):
        attach(model, GenHOIAdapter(adapter.config).to("meta"))

    class Other(type(model.blocks[0].attn1.processor)):  # type: ignore[misc]
        pass

    model.blocks[1].attn2.set_processor(Other())
    with pytest.raises(ValueError, match="attention processor Other, wanted WanAttnProcessor"):
        attach(model, adapter)


@pytest.mark.parametrize(
    ("references", "error", "message"),
    [
        (reference(), TypeError, r"references: got Tensor, wanted a list.*encode_reference\(vae"),
        ([IMAGE], TypeError, r"references: got torch.uint8, wanted .*encode_reference\(vae"),
        ([IMAGE.permute(2, 0, 1)[None] / 255], ValueError, r"\(1, 3, 32, 48\).*encode_reference"),
        ([torch.zeros(1, 3, 1, 32, 48)], ValueError, r"\(1, 3, 1, 32, 48\).*encode_reference"),
        (["a.png"], TypeError, r"references: got str, wanted floating-point tensors"),
        ([reference().long()], TypeError, r"references: got torch.int64"),
        ([reference(channels=20)], ValueError, r"references: got 20 channels, wanted 16 or 36"),
        ([reference()[0]], ValueError, r"got shape \(16, 1, 8, 6\), wanted \[1 or B, C, 1, h, w\]"),
        ([reference(7, 6)], ValueError, r"h a multiple of 2"),
        ([reference().to("meta")], ValueError, r"references: got device meta, wanted cpu"),
        ([reference(batch=2), reference(batch=3)], ValueError, r"batches of \[2, 3\]"),
    ],
)
def test_references(
    handle: Attachment, references: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        handle.set_reference(references, some_tokens())


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, TypeError, r"mask: got NoneType, wanted a tensor.*mask gate is on"),
        (some_tokens().float(), TypeError, r"mask: got torch.float32, wanted torch.bool"),
        (some_tokens().to("meta"), ValueError, r"mask: got device meta, wanted cpu"),
        (some_tokens()[0], ValueError, r"mask: got shape \(72,\), wanted latents"),
        (torch.zeros(1, 3, 3, 8, 12), ValueError, r"mask: got shape \(1, 3, 3, 8, 12\)"),
        (
            torch.zeros(9, 64, 96),
            ValueError,
            r'token_mask\(mask, \(f, h, w\), kind="pixel"\) makes',
        ),
    ],
)
def test_masks(handle: Attachment, mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        handle.set_reference([reference()], mask)


def test_masks_that_would_not_be_used(model: WanTransformer3DModel) -> None:
    """`set_reference` and `set_mask` refuse them in the same words."""
    handle = attach(model, lively_adapter(model), mask_gate=False)
    message = "mask: got one while no reference is set, wanted none, for it would not be used"
    with pytest.raises(ValueError, match=message):
        handle.set_mask(some_tokens())
    with pytest.raises(ValueError, match=message):
        handle.set_reference(None, some_tokens())
    handle.set_reference([reference()])
    message = "mask: got one while the mask gate is off, wanted none, for it would not be used"
    with pytest.raises(ValueError, match=message):
        handle.set_mask(some_tokens())
    with pytest.raises(ValueError, match=message):
        handle.set_reference([reference()], some_tokens())
    forward(handle)  # the references that were set before are in force
    handle.detach()
    with pytest.raises(RuntimeError, match="detached"):
        handle.set_mask(some_tokens())


def test_more_references_than_bits(handle: Attachment) -> None:
    with pytest.raises(ValueError, match=r"mask: got uint8 tokens.*wanted int32 for 9"):
        handle.set_reference([reference()] * 9, some_tokens().byte())


def test_mask_of_another_grid(handle: Attachment) -> None:
    handle.set_reference([reference()], torch.ones(1, TOKENS + 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask: got tokens of shape \(1, 73\).*grid \(3, 4, 6\)"):
        forward(handle)
    handle.set_reference([reference()], torch.ones(1, 1, 3, 12, 8))  # as many tokens
    with pytest.raises(ValueError, match=r"mask: .*\(3, 6, 4\), wanted \(3, 4, 6\)"):
        forward(handle)


def test_mask_over_pixels(handle: Attachment) -> None:
    """Taken for latents it has another grid, which tells it apart from all other mistakes."""
    call = r'token_mask\(mask, \(3, 4, 6\), kind="pixel"\) makes tokens of a mask over pixels'
    for mask in (torch.ones(1, 9, 64, 96), torch.ones(1, 1, 9, 64, 96, dtype=torch.bool)):
        handle.set_reference([reference()], mask)
        with pytest.raises(ValueError, match=call):
            forward(handle)
    handle.set_reference([reference()], token_mask(mask[:, 0], (3, 4, 6), kind="pixel"))
    forward(handle)


def test_batches_that_differ(handle: Attachment) -> None:
    handle.set_reference([reference(batch=2)], some_tokens())
    with pytest.raises(ValueError, match=r"references: got a batch of 2, wanted 1 or 3"):
        forward(handle, batch=3)
    handle.set_reference([reference()], some_tokens(batch=2))
    with pytest.raises(ValueError, match=r"mask: .*wanted \[1 or 3, 72\]"):
        forward(handle, batch=3)


def test_model_moved_away_from_its_reference(handle: Attachment) -> None:
    handle.set_reference([reference()], some_tokens())
    handle.transformer.to("meta")
    arguments = inputs(handle.transformer)
    arguments = {k: x.to("meta") if hasattr(x, "to") else x for k, x in arguments.items()}
    with pytest.raises(ValueError, match=r"references: got device cpu, wanted meta"):
        handle.transformer(**arguments)


def test_after_detach(handle: Attachment) -> None:
    handle.detach()
    with pytest.raises(RuntimeError, match="detached"):
        handle.set_reference(None)
