"""Together with what else is done to a Wan transformer."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import (
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from peft import LoraConfig
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from genhoi import Attachment, attach


def run(model: WanTransformer3DModel, **changes: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**(inputs(model) | changes))
    assert isinstance(out, Tensor)
    return out


def put_on(model: WanTransformer3DModel, **options: Any) -> Attachment:
    handle = attach(model, lively_adapter(model), **({"preset": "paper"} | options))
    handle.set_reference([reference()], some_tokens())
    return handle


def expected(**options: Any) -> Tensor:
    model = tiny_wan()
    put_on(model, **options)
    return run(model)


def assert_close(x: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(x, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fuse_first", [True, False])
def test_fused_projections(fuse_first: bool) -> None:
    model = tiny_wan()
    if fuse_first:
        model.fuse_qkv_projections()
    put_on(model)
    if not fuse_first:
        run(model)
        model.fuse_qkv_projections()
    assert_close(run(model), expected())
    model.unfuse_qkv_projections()
    assert_close(run(model), expected())


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("offload_first", [True, False])
def test_group_offload(kind: str, offload_first: bool) -> None:
    model = tiny_wan()
    cpu = torch.device("cpu")

    def offload() -> None:
        model.enable_group_offload(cpu, cpu, offload_type=kind, num_blocks_per_group=1)

    if offload_first:
        offload()
    handle = put_on(model)
    if not offload_first:
        offload()
    assert torch.equal(run(model), expected())
    assert torch.equal(run(model), expected())
    assert handle.reference_passes == 1


def test_model_offload() -> None:
    model = tiny_wan()
    put_on(model)
    _, hook = cpu_offload_with_hook(model, execution_device="cpu")
    assert torch.equal(run(model), expected())
    hook.remove()


def test_sequential_offload_is_refused_in_words() -> None:
    """It leaves no weight where the op, which calls no layer's forward, could read it."""
    model = tiny_wan()
    put_on(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"sequential offload.*use enable_group_offload"):
        run(model)


def test_layerwise_casting() -> None:
    """The base in 8 bits, the adapter as it was: as close to the truth as the base alone."""
    model = tiny_wan().to(torch.bfloat16)
    handle = put_on(model)
    model.to(torch.bfloat16)
    kept = {n: x.clone() for n, x in handle.adapter.state_dict().items()}
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert model.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    arguments = inputs(model, dtype=torch.bfloat16)
    out = run(model, **arguments)
    assert torch.equal(run(model, **arguments), out)
    assert handle.reference_passes == 1
    now = handle.adapter.state_dict()
    assert all(torch.equal(now[n], x) and now[n].dtype == x.dtype for n, x in kept.items())
    other = tiny_wan().to(torch.bfloat16)
    other.load_state_dict(
        {n: x.to(torch.bfloat16) for n, x in model.state_dict().items()}  # rounded alike
    )
    put_on(other)
    other.to(torch.bfloat16)
    assert_close(out.float(), run(other, **arguments).float(), 0.05)


def test_first_block_cache() -> None:
    model = tiny_wan(layers=3)
    handle = put_on(model)
    wanted = run(model)
    handle.set_reference([reference()], some_tokens())
    model.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    calls = []
    model.blocks[2].attn2.to_q.register_forward_hook(lambda *_: calls.append(1))
    with model.cache_context("cond"):
        first = run(model)
        again = run(model)
    with model.cache_context("uncond"):
        run(model)
    assert torch.equal(first, wanted)
    assert_close(again, wanted)
    assert handle.reference_passes == 2  # before and after set_reference
    assert len(calls) == 2  # the second call skipped the later blocks, as it would without us


def lora_config() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)


def give_lora(model: WanTransformer3DModel) -> None:
    """A user's own LoRA, on the base."""
    torch.manual_seed(6)
    model.add_adapter(lora_config(), adapter_name="user")


def test_peft_lora_before_and_after() -> None:
    before, after = tiny_wan(), tiny_wan()
    give_lora(before)
    handle = put_on(before)
    other = put_on(after)
    plain = run(after)
    give_lora(after)
    assert other.reference_passes == 1
    wanted = run(after)
    assert other.reference_passes == 2
    assert torch.equal(run(before), wanted)
    assert (wanted - plain).abs().max() > 1e-3
    # Settings that no parameter shows:
    after.set_adapters("user", 0.5)
    assert not torch.equal(run(after), wanted)
    after.disable_adapters()
    assert torch.equal(run(after), plain)
    assert other.reference_passes == 4
    # Nothing of ours in what the user saves, and training of ours can go on.
    assert all("processor" not in name for name in after.state_dict())
    other.adapter.requires_grad_(True)
    assert other.adapter.layers[0].self_gate.fc1.weight.requires_grad
    handle.detach()
    other.detach()
    after.enable_adapters()
    after.set_adapters("user", 1.0)
    assert torch.equal(run(after), run(before))


def test_peft_scale_of_one_call() -> None:
    model = tiny_wan()
    give_lora(model)
    handle = put_on(model)
    full = run(model)
    assert not torch.equal(run(model, attention_kwargs={"scale": 0.5}), full)
    assert torch.equal(run(model, attention_kwargs={"scale": 1.0}), full)
    assert handle.reference_passes == 3


def test_to_bfloat16_and_back_to_the_device() -> None:
    model = tiny_wan()
    handle = put_on(model)
    wanted = run(model)
    model.to(torch.bfloat16)
    assert handle.adapter.layers[0].lora_q.down.dtype == torch.bfloat16
    out = run(model, **inputs(model, dtype=torch.bfloat16))
    assert_close(out.float(), wanted, 0.2)
    model.to("cpu")
    assert torch.equal(run(model, **inputs(model, dtype=torch.bfloat16)), out)
    assert handle.reference_passes == 2


def test_a_base_loaded_in_bfloat16(tmp_path: Path) -> None:
    """diffusers then keeps some of its layers in float32."""
    model = tiny_wan()
    wanted = expected()
    model.save_pretrained(tmp_path)
    model = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    dtypes = {p.dtype for p in model.parameters()}
    assert dtypes == {torch.bfloat16, torch.float32}
    arguments = inputs(model, dtype=torch.bfloat16)
    base = run(model, **arguments)
    for dtype in (torch.float32, torch.bfloat16):
        handle = attach(model, lively_adapter(model).to(dtype), preset="paper")
        handle.set_reference([reference()], some_tokens())
        assert_close(run(model, **arguments).float(), wanted, 0.2)
        handle.detach()
    assert torch.equal(run(model, **arguments), base)


def test_attention_backend_of_diffusers() -> None:
    model = tiny_wan()
    base = run(model)
    handle = put_on(model, flow_gate=None)
    handle.set_reference(None)
    model.set_attention_backend("native")
    assert torch.equal(run(model), base)
    handle.detach()
    backends = {p._attention_backend.value for p in model.attn_processors.values()}
    assert backends == {"native"}


def test_context_parallelism_is_refused_in_words() -> None:
    model = tiny_wan()
    put_on(model)
    for processor in model.attn_processors.values():
        processor._parallel_config = object()  # as enable_parallelism does
    with pytest.raises(NotImplementedError, match="context parallelism is not supported"):
        run(model)


def test_importing_genhoi_leaves_diffusers_alone() -> None:
    code = "import sys, genhoi, genhoi.cli.group; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pipeline(tmp_path: Path) -> None:
    """A diffusers pipeline with guidance, its saving and loading."""
    model = tiny_wan(image=False)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=model
    )
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randn(1, 512, 24, generator=draw) for _ in range(2)]

    def edit(pipe: WanPipeline) -> Tensor:
        out: Tensor = pipe(
            prompt_embeds=texts[0], negative_prompt_embeds=texts[1], height=64, width=96,
            num_frames=9, num_inference_steps=3, guidance_scale=5.0, output_type="latent",
            generator=torch.Generator().manual_seed(2), return_dict=False,
        )[0]  # fmt: skip
        return out

    bare = edit(pipe)
    handle = put_on(model)
    edited = edit(pipe)
    assert handle.reference_passes == 1
    assert (edited - bare).abs().max() > 1e-3
    pipe.save_pretrained(tmp_path / "pipe")  # the base's weights alone
    handle.adapter.save_pretrained(tmp_path / "adapter")
    handle.detach()
    assert torch.equal(edit(pipe), bare)

    pipe = WanPipeline.from_pretrained(
        tmp_path / "pipe", tokenizer=None, text_encoder=None, vae=None
    )
    pipe.set_progress_bar_config(disable=True)
    # Weights read from a file lie at other alignments, which may change the last bit.
    assert_close(edit(pipe), bare)
    adapter = type(handle.adapter).from_pretrained(tmp_path / "adapter")
    again = attach(pipe.transformer, adapter, preset="paper")
    again.set_reference([reference()], some_tokens())
    assert_close(edit(pipe), edited, 1e-4)


@contextmanager
def compiled_afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("flow_gate", ["token", "sequence", None])
def test_regional_compile(flow_gate: str | None) -> None:
    """No graph break, one graph for all blocks, and none for other steps, texts or references."""
    with compiled_afresh():
        model = tiny_wan(layers=3)
        handle = put_on(model, flow_gate=flow_gate)
        wanted = run(model)
        counter = CompileCounter()
        model.compile_repeated_blocks(backend=counter, fullgraph=True)
        handle.set_reference([reference()], some_tokens())
        assert_close(run(model), wanted)
        compiled = counter.frame_count
        assert compiled == 1
        for seed in range(3):
            handle.set_reference([reference(seed=seed)], some_tokens(seed=seed))
            for step in (700.0, 10.0):
                run(model, **inputs(model, seed=seed, step=step))
        assert counter.frame_count == compiled
        assert handle.reference_passes == 5
        handle.set_reference(None)
        run(model)
        compiled = counter.frame_count
        run(model, **inputs(model, seed=9, step=10.0))
        assert counter.frame_count == compiled


@pytest.mark.slow
def test_regional_compile_in_training() -> None:
    grads = []
    with compiled_afresh():
        for compile in (False, True):
            model = tiny_wan().requires_grad_(False)
            handle = put_on(model)
            if compile:
                model.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
            model(**inputs(model))[0].square().mean().backward()
            grads.append([p.grad for p in handle.adapter.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for plain, compiled in zip(*grads, strict=True):
        assert_close(compiled, plain)


@pytest.mark.slow
def test_whole_model_compile() -> None:
    with compiled_afresh():
        model = tiny_wan()
        handle = put_on(model)
        wanted = run(model)
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter)
        with torch.no_grad():
            assert_close(compiled(**inputs(model))[0], wanted)
            frames = counter.frame_count
            handle.set_reference([reference(seed=9)], some_tokens())
            compiled(**inputs(model, seed=9))
        assert counter.frame_count == frames
