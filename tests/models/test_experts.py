"""Both experts of a Wan 2.2 pipeline with an adapter: one shared, or one each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanVACEPipeline
from PIL import Image
from support.tiny_vace import save_tiny_vace_base, tiny_vace, vace_inputs
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

from genhoi import GenHOIAdapter, attach, attach_pipeline
from genhoi.models.attach import attachment_of
from genhoi.models.experts import ExpertsAttachment
from genhoi.models.wan import references
from genhoi_kernels import MaskGate

# `alone` attaches to one expert at a time.
pytestmark = pytest.mark.filterwarnings("ignore:transformer. got one of the two experts")


def two(**config: Any) -> SimpleNamespace:
    """Experts of one size with weights of their own."""
    low = tiny_wan(**config)
    with torch.no_grad():
        for p in low.parameters():
            p.mul_(1.1)
    return SimpleNamespace(transformer=tiny_wan(**config), transformer_2=low)


def run(model: Any, **changes: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**(inputs(model) | changes))
    assert isinstance(out, Tensor)
    return out


def run_both(pipe: Any) -> list[Tensor]:
    return [run(pipe.transformer), run(pipe.transformer_2)]


def alone(pipe: Any, adapters: Sequence[GenHOIAdapter]) -> list[Tensor]:
    """What each expert computes with an attachment of its own."""
    outs = []
    for model, adapter in zip((pipe.transformer, pipe.transformer_2), adapters, strict=True):
        handle = attach(model, adapter, preset="paper")
        handle.set_reference([reference()], some_tokens(), ref_bias=[0.5])
        outs.append(run(model))
        handle.detach()
    return outs


def same(outs: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(outs, wanted, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_set_holds_for_both(shared: bool) -> None:
    pipe = two()
    bare = run_both(pipe)
    adapters = [lively_adapter(pipe.transformer), lively_adapter(pipe.transformer, rank=4)]
    if shared:
        adapters[1] = adapters[0]
    wanted = alone(pipe, adapters)
    handle = attach_pipeline(pipe, adapters[0] if shared else adapters, preset="paper")
    assert handle.options.mask_gate and handle.adapter is adapters[0]
    handle.set_reference([reference()], some_tokens(), ref_bias=[0.5])
    assert handle.reference_passes == 0
    for _ in range(2):
        assert same(run_both(pipe), wanted)
    assert handle.reference_passes == 2  # once in each expert
    handle.set_mask(some_tokens(seed=9))
    assert not any(torch.equal(x, y) for x, y in zip(run_both(pipe), wanted, strict=True))
    assert handle.reference_passes == 2
    handle.skip_unseen = False
    assert isinstance(handle, ExpertsAttachment) and not handle.attachments[1].skip_unseen
    handle.detach()
    assert same(run_both(pipe), bare)
    with pytest.raises(RuntimeError, match="set_reference: the adapter is detached"):
        handle.set_reference(None)


def test_set_reference_checks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the device once, and a refused call changes neither."""
    pipe = two()
    handle = attach_pipeline(pipe, lively_adapter(pipe.transformer), preset="paper")
    calls = []
    build = MaskGate.build
    monkeypatch.setattr(references.MaskGate, "build", lambda m: calls.append(1) or build(m))
    handle.set_reference([reference()], some_tokens())
    assert len(calls) == 1
    wanted = run_both(pipe)
    with pytest.raises(ValueError, match="references: got 5 channels"):
        handle.set_reference([reference(channels=5)], some_tokens())
    assert same(run_both(pipe), wanted)


def test_the_meter_is_of_the_expert_that_runs() -> None:
    pipe = two()
    handle = attach_pipeline(pipe, lively_adapter(pipe.transformer), preset="paper")
    handle.set_reference([reference()], some_tokens())
    meter = handle.attention_share(1)
    assert meter.share is None
    shares = []
    for model in (pipe.transformer, pipe.transformer_2):
        meter.watch_next()
        run(model)
        assert meter.share is not None
        shares.append(meter.share.nan_to_num())
    assert not torch.equal(*shares)


def test_one_transformer_is_what_attach_gives() -> None:
    model = tiny_wan()
    adapter = lively_adapter(model)
    for pipe in (
        SimpleNamespace(transformer=model),
        SimpleNamespace(transformer=None, transformer_2=model),
        SimpleNamespace(transformer=SimpleNamespace(_orig_mod=model), transformer_2=None),
    ):
        handle = attach_pipeline(pipe, adapter)
        assert handle.transformer is model and attachment_of(model) is handle
        handle.detach()
        with pytest.raises(ValueError, match="without an adapter, wanted one that attach"):
            attachment_of(model)


def test_what_does_not_fit_leaves_both_alone() -> None:
    pipe = two()
    bare = run_both(pipe)
    adapter = lively_adapter(pipe.transformer)
    other = lively_adapter(pipe.transformer, flow_gate="sequence")
    for adapters, error, message in (
        ([adapter], ValueError, "adapter: got 1, wanted one or 2"),
        ([adapter, other], ValueError, "adapter: got ones with options .* wanted the same"),
        ([adapter, None], TypeError, "adapter: got NoneType, wanted a GenHOIAdapter"),
        ([adapter, lively_adapter(tiny_wan(layers=3))], ValueError, "num_layers 3"),
    ):
        with pytest.raises(error, match=message):
            attach_pipeline(pipe, adapters)
    low = attach(pipe.transformer_2, other)
    with pytest.raises(ValueError, match="got one with an adapter attached"):
        attach_pipeline(pipe, adapter)
    low.detach()
    assert same(run_both(pipe), bare)
    attach_pipeline(pipe, [adapter, other], preset="paper").detach()  # a preset settles them
    with pytest.raises(TypeError, match="pipe: got SimpleNamespace, wanted a diffusers pipeline"):
        attach_pipeline(SimpleNamespace(), adapter)


# ------------------------------------------------------------------------------- one expert alone


def text_to_video(pipe: SimpleNamespace) -> WanPipeline:
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        boundary_ratio=0.875,
        **vars(pipe),
    )


def test_attaching_one_of_two_warns() -> None:
    pipe = text_to_video(two(image=False))
    adapter = lively_adapter(pipe.transformer)
    with pytest.warns(UserWarning, match=r"one of the two experts.*attach_pipeline\(pipe") as seen:
        handle = attach(pipe.transformer, adapter)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(pipe.transformer_2, adapter).detach()  # the other has one
        handle.detach()
        attach_pipeline(pipe, adapter).detach()
        model = tiny_wan()
        attach(model, lively_adapter(model)).detach()
    model = tiny_wan(layers=40, image=False, in_channels=36)  # as those of Wan 2.2 I2V-A14B
    with pytest.warns(UserWarning, match="one of the two experts"):
        attach(model, lively_adapter(model))


def test_a_pipeline_changes_experts_at_its_boundary() -> None:
    """diffusers' own pipeline: steps above the boundary by one expert, the rest by the other."""
    pipe = text_to_video(two(image=False))
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(1, 512, 24, generator=draw)

    def make() -> Tensor:
        out: Tensor = pipe(
            prompt_embeds=text,
            height=64,
            width=96,
            num_frames=9,
            num_inference_steps=4,
            guidance_scale=1.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(2),
            return_dict=False,
        )[0]
        return out

    bare = make()
    handle = attach_pipeline(pipe, lively_adapter(pipe.transformer), preset="paper")
    handle.set_reference([reference()], some_tokens())
    edited = make()
    assert isinstance(handle, ExpertsAttachment)
    assert [each.reference_passes for each in handle.attachments] == [1, 1]
    handle.attachments[1].set_reference(None)
    assert not torch.equal(make(), edited)  # what one forgotten expert would have given
    handle.detach()
    assert torch.equal(make(), bare)


# ------------------------------------------------------------------------------- a shared adapter


def test_a_cast_of_either_reaches_the_cache_of_both() -> None:
    """Weights that two transformers share are cast by one of them, and rounded for both."""
    pipe = two()
    adapter = lively_adapter(pipe.transformer)
    handle = attach_pipeline(pipe, adapter, preset="paper")
    handle.set_reference([reference()], some_tokens())
    before = run_both(pipe)
    pipe.transformer.to(torch.bfloat16).to(torch.float32)
    assert next(adapter.parameters()).dtype == torch.float32
    after = run(pipe.transformer_2)
    handle.set_reference([reference()], some_tokens())
    assert torch.equal(after, run(pipe.transformer_2)) and not torch.equal(after, before[1])


@pytest.mark.parametrize("shared", [True, False])
def test_model_offload_between_experts(shared: bool) -> None:
    """One expert computes while the other lies elsewhere, as enable_model_cpu_offload does it."""
    pipe = two()
    adapters = [lively_adapter(pipe.transformer) for _ in range(2)]
    wanted = alone(pipe, adapters)
    handle = attach_pipeline(pipe, adapters[0] if shared else adapters, preset="paper")
    _, first = cpu_offload_with_hook(pipe.transformer, execution_device="cpu")
    _, second = cpu_offload_with_hook(pipe.transformer_2, "cpu", prev_module_hook=first)
    handle.set_reference([reference()], some_tokens(), ref_bias=[0.5])
    for _ in range(2):
        assert same(run_both(pipe), wanted)
    assert handle.reference_passes == 2
    first.remove()
    second.remove()


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("shared", [True, False])
def test_group_offload_of_both(kind: str, shared: bool) -> None:
    pipe = two()
    adapters = [lively_adapter(pipe.transformer) for _ in range(2)]
    wanted = alone(pipe, adapters)
    handle = attach_pipeline(pipe, adapters[0] if shared else adapters, preset="paper")
    handle.set_reference([reference()], some_tokens(), ref_bias=[0.5])
    cpu = torch.device("cpu")
    for model in (pipe.transformer, pipe.transformer_2):
        model.enable_group_offload(cpu, cpu, offload_type=kind, num_blocks_per_group=1)
    for _ in range(2):
        assert same(run_both(pipe), wanted)
    assert handle.reference_passes == 2


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("shared", [True, False])
def test_group_offload_of_both_to_disk(tmp_path: Path, kind: str, shared: bool) -> None:
    """By block, diffusers writes what they share after it has emptied it: refused."""
    pipe = two()
    adapter = lively_adapter(pipe.transformer)
    adapters = [adapter, adapter if shared else adapter.copy_to("cpu", torch.float32)]
    wanted = alone(pipe, adapters)
    handle = attach_pipeline(pipe, adapters, preset="paper")
    handle.set_reference([reference()], some_tokens(), ref_bias=[0.5])
    cpu = torch.device("cpu")
    for name, model in vars(pipe).items():
        model.enable_group_offload(
            cpu,
            cpu,
            offload_type=kind,
            num_blocks_per_group=1,
            offload_to_disk_path=str(tmp_path / name),
        )
    if shared and kind == "block_level":
        with pytest.raises(RuntimeError, match=r"two transformers share.*wanted one each"):
            run_both(pipe)
    else:
        assert same(run_both(pipe), wanted)
        assert same(run_both(pipe), wanted)


def test_saving_and_training_a_shared_adapter(tmp_path: Path) -> None:
    """It is saved by itself, and gradients of both experts meet in it."""
    pipe = two()
    adapter = lively_adapter(pipe.transformer)
    handle = attach_pipeline(pipe, adapter, preset="paper")
    handle.set_reference([reference()], some_tokens())
    wanted = run_both(pipe)
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    adapter.save_pretrained(tmp_path / "adapter")
    handle.detach()
    handle = attach_pipeline(pipe, GenHOIAdapter.from_pretrained(tmp_path / "adapter"))
    handle.set_reference([reference()], some_tokens())
    for out, x in zip(run_both(pipe), wanted, strict=True):
        torch.testing.assert_close(out, x, rtol=1e-5, atol=1e-5)
    assert not any("processor" in name for name in pipe.transformer.state_dict())
    weight = handle.adapter.layers[0].get_submodule("lora_k").get_parameter("up")
    grads = []
    for model in (pipe.transformer, pipe.transformer_2):
        model(**inputs(model))[0].sum().backward()
        assert weight.grad is not None
        grads.append(weight.grad.clone())
    assert grads[0].any() and not torch.equal(grads[0], grads[1])


# ------------------------------------------------------------------------------- VACE


def test_two_vace_experts() -> None:
    pipe = SimpleNamespace(transformer=tiny_vace(), transformer_2=tiny_vace())
    handle = attach_pipeline(pipe, lively_adapter(pipe.transformer))
    handle.set_reference_frames(2, sliding="last")
    assert handle.reference_frames == 2
    arguments = vace_inputs(pipe.transformer)
    with torch.no_grad():
        outs = [model(**arguments)[0] for model in vars(pipe).values()]
    assert torch.equal(*outs)
    handle.set_reference([torch.zeros(1, 16, 1, 6, 8)])
    assert isinstance(handle, ExpertsAttachment)
    assert [each.reference_frames for each in handle.attachments] == [1, 1]
    handle.detach()


def test_vace_experts_in_the_pipeline_of_diffusers(tmp_path: Path) -> None:
    """The references' frames turn in both; without gates and turning it is the base."""
    pipe = WanVACEPipeline.from_pretrained(
        save_tiny_vace_base(tmp_path), transformer_2=tiny_vace(), boundary_ratio=0.9
    )
    pipe.set_progress_bar_config(disable=True)
    frames = [Image.new("RGB", (48, 32), (40 * i, 90, 10)) for i in range(5)]

    def make() -> Tensor:
        out: Tensor = pipe(
            video=frames,
            mask=[Image.new("L", (48, 32), 255)] * 5,
            reference_images=[Image.new("RGB", (30, 20), (200, 10, 90))],
            prompt="a cup",
            height=32,
            width=48,
            num_frames=5,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(2),
            output_type="latent",
        ).frames
        return out

    bare = make()
    handle = attach_pipeline(pipe, lively_adapter(pipe.transformer, rank=0), flow_gate=None)
    handle.set_reference_frames(1, sliding="none")
    assert torch.equal(make(), bare)
    handle.set_reference_frames(1)
    both = make()
    assert isinstance(handle, ExpertsAttachment)
    handle.attachments[1].set_reference_frames(1, sliding="none")
    alone = make()
    assert not torch.equal(both, bare) and not torch.equal(alone, both)
    handle.detach()
    assert torch.equal(make(), bare)
