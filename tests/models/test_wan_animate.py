"""GenHOI on Wan Animate: attached to its transformer, in diffusers' own pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from support.tiny_animate import GRID, animate_inputs, tiny_animate, tiny_animate_pipeline
from support.tiny_wan import lively_adapter, reference
from torch import Tensor

from genhoi import attach, attach_pipeline, encode_reference, token_mask
from genhoi.models.registry import empty_model, model_of
from genhoi.models.wan.animate import WanAnimateModel

FRAME = GRID[1] * GRID[2]


def run(model: Any, **changes: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**(animate_inputs(model) | changes))
    assert isinstance(out, Tensor)
    return out


def tokens_of_the_video() -> Tensor:
    """All but the character's, which come first."""
    mask = torch.ones(1, GRID[0] * FRAME, dtype=torch.bool)
    mask[:, :FRAME] = False
    return mask


def test_attach_and_detach() -> None:
    model = tiny_animate()
    bare, state = run(model), set(model.state_dict())
    plain = attach(model, lively_adapter(model), preset="paper", flow_gate=None)
    assert torch.equal(run(model), bare)
    plain.set_reference([reference()], tokens_of_the_video())
    seen = run(model)
    assert plain.reference_passes == 1 and (seen - bare).abs().max() > 1e-3
    run(model, timestep=torch.full((1,), 5.0))
    assert plain.reference_passes == 1
    plain.set_mask(torch.zeros_like(tokens_of_the_video()))
    assert torch.equal(run(model), bare)
    plain.detach()
    gated = attach(model, lively_adapter(model), preset="release")
    gated.set_reference([reference()])
    assert not torch.equal(run(model), bare) and set(model.state_dict()) == state
    gated.detach()
    assert torch.equal(run(model), bare)


def test_gradients_reach_every_weight() -> None:
    model = tiny_animate()
    handle = attach(model, lively_adapter(model), preset="paper")
    handle.set_reference([reference()], tokens_of_the_video())
    model(**animate_inputs(model))[0].square().sum().backward()
    for name, weight in handle.adapter.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and weight.grad.any(), name


def test_its_family() -> None:
    """A family of its own, whose pose and face only diffusers' pipeline brings."""
    model = model_of(tiny_animate())
    assert type(model) is WanAnimateModel
    config = dict(model.transformer.config) | {"_class_name": "WanAnimateTransformer3DModel"}
    assert type(empty_model(config)) is WanAnimateModel
    with pytest.raises(ValueError, match="and faces, so attach"):
        model.inputs(*(torch.zeros(1) for _ in range(4)), None)


def test_in_the_pipeline_of_diffusers() -> None:
    """Two segments of one clip: the references' keys and values are computed once."""
    pipe = tiny_animate_pipeline()

    def animate(picture: Image.Image) -> Tensor:
        video: Tensor = pipe(
            image=picture,
            pose_video=[picture] * 13,
            face_video=[Image.new("RGB", (16, 16))] * 13,
            prompt="a hand holds a cup",
            height=32,
            width=48,
            segment_frame_length=9,
            prev_segment_conditioning_frames=1,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
            output_type="pt",
        ).frames[0]
        return video

    picture = Image.new("RGB", (48, 32), (200, 80, 10))
    bare = animate(picture)
    handle = attach_pipeline(pipe, lively_adapter(pipe.transformer), preset="paper")
    mug = encode_reference(pipe.vae, torch.full((20, 30, 3), 90, dtype=torch.uint8), size=(32, 48))
    pixels = torch.ones(9, 32, 48, dtype=torch.bool)  # of a segment
    tokens = token_mask(pixels, (3, 2, 3), kind="pixel")
    character = torch.zeros(1, 2 * 3, dtype=torch.bool)
    handle.set_reference([mug], torch.cat([character, tokens], dim=1))
    edited = animate(picture)
    assert handle.reference_passes == 1
    assert edited.shape == bare.shape and not torch.equal(edited, bare)
    handle.detach()
    assert torch.equal(animate(picture), bare)
