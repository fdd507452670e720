"""An adapter on a Wan VACE: rotation, gates and low-rank weights, against plain formulas."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from PIL import Image
from support.tiny_vace import GRID, save_tiny_vace_base, tiny_vace, vace_inputs
from support.tiny_wan import lively_adapter, tiny_wan
from torch import Tensor
from torch.nn import functional as F

from genhoi import AdapterConfig, GenHOIAdapter, attach
from genhoi.models.registry import model_of
from genhoi.models.wan.vace.low_rank import LORA_MODULES
from genhoi_kernels import head_frames

ROWS = GRID[1] * GRID[2]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def run(model: WanVACETransformer3DModel, **arguments: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**arguments)
    assert isinstance(out, Tensor)
    return out


# ----------------------------------------------------------------------------- the plain formulas


def plain_angles(
    grid: tuple[int, int, int], sliding: tuple[int, ...], heads: int, dim: int, schedule: Any
) -> Tensor:
    """Angles [rows, heads, dim / 2] of every row and head, position by position."""
    frames, height, width = grid
    spatial = dim // 3 // 2 * 2
    parts = (dim - 2 * spatial, spatial, spatial)
    taus = head_frames(schedule, frames, heads)
    angles = []
    for t in range(frames):
        for y in range(height):
            for x in range(width):
                for tau in taus:
                    place = (t, y, x)
                    if t in sliding:
                        place = (tau, y + (t + 1) * height, x + (t + 1) * width)
                    angles += [
                        position * 10000.0 ** (-2 * i / part)
                        for position, part in zip(place, parts, strict=True)
                        for i in range(part // 2)
                    ]
    return torch.tensor(angles, dtype=torch.float64).view(-1, heads, dim // 2)


class PlainAttention:
    """Attention of a VACE block with a token gate, in plain PyTorch."""

    _attention_backend = _parallel_config = None

    def __init__(self, gate: Any, angles: Tensor | None) -> None:
        self.gate, self.angles = gate, angles

    def __call__(
        self, attn: Any, x: Tensor, text: Tensor | None, mask: None, rotary: Any
    ) -> Tensor:
        source = x if text is None else text
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(source)), attn.to_v(source)
        q, k, v = (y.unflatten(2, (attn.heads, -1)) for y in (q, k, v))
        if self.angles is not None:
            unit = torch.polar(torch.ones_like(self.angles), self.angles)
            q, k = (
                torch.view_as_real(torch.view_as_complex(y.double().unflatten(3, (-1, 2))) * unit)
                .flatten(3)
                .to(y)
                for y in (q, k)
            )
        logits = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[3] ** 0.5
        out = torch.einsum("bhnm,bmhd->bnhd", logits.softmax(3), v)
        if self.gate is not None:
            gate = self.gate
            normed = F.layer_norm(out, out.shape[3:], gate.norm.weight, gate.norm.bias, 1e-5)
            out = out * torch.sigmoid(gate.fc2(F.gelu(gate.fc1(normed))))
        return attn.to_out[0](out.flatten(2))  # type: ignore[no-any-return]


def plain_model(
    model: WanVACETransformer3DModel,
    adapter: GenHOIAdapter,
    sliding: tuple[int, ...],
    **options: Any,
) -> WanVACETransformer3DModel:
    """A copy with low-rank weights merged and the plain attention in its VACE blocks."""
    plain = copy.deepcopy(model)
    config = model.config
    angles = plain_angles(
        options.get("grid", GRID),
        sliding,
        config.num_attention_heads,
        config.attention_head_dim,
        options.get("schedule", "paper"),
    )
    gated = options.get("gated", True)
    for block, layer in zip(plain.vace_blocks, adapter.layers, strict=True):
        for name, low_rank in layer.lora.items():
            module = block.get_submodule(LORA_MODULES[name])
            module.weight.data += low_rank.up.data @ low_rank.down.data
        own, text = (layer.self_gate, layer.text_gate) if gated else (None, None)
        block.attn1.processor = PlainAttention(own, angles)
        block.attn2.processor = PlainAttention(text, None)
    return plain


@pytest.mark.parametrize(
    ("count", "sliding", "frames"),
    [(0, "all", ()), (1, "all", (0,)), (2, "all", (0, 1)), (2, "last", (1,)), (2, "none", ())],
)
@pytest.mark.parametrize("rank", [0, 3])
def test_the_formulas(count: int, sliding: str, frames: tuple[int, ...], rank: int) -> None:
    model = tiny_vace()
    adapter = lively_adapter(model, rank=rank, schedule="release")
    arguments = vace_inputs(model, batch=2)
    wanted = run(plain_model(model, adapter, frames, schedule="release"), **arguments)
    handle: Any = attach(model, adapter)
    handle.set_reference_frames(count, sliding=sliding)
    torch.testing.assert_close(run(model, **arguments), wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("heads", "dim", "grid", "count"), [(7, 16, (4, 3, 5), 3), (1, 128, (2, 1, 3), 1)]
)
def test_more_heads_than_frames_and_wide_heads(
    heads: int, dim: int, grid: tuple[int, int, int], count: int
) -> None:
    model = tiny_vace(
        num_attention_heads=heads, attention_head_dim=dim, num_layers=2, vace_layers=[0]
    )
    adapter = lively_adapter(model, schedule="release")
    arguments = vace_inputs(model, grid=grid)
    sliding = tuple(range(count))
    wanted = run(plain_model(model, adapter, sliding, grid=grid, schedule="release"), **arguments)
    handle: Any = attach(model, adapter)
    handle.set_reference_frames(count)
    torch.testing.assert_close(run(model, **arguments), wanted, rtol=1e-4, atol=2e-5)


def test_options_matter() -> None:
    """Schedule, gates, low-rank weights and the number of references each change the result."""
    model = tiny_vace()
    adapter = lively_adapter(model)
    arguments = vace_inputs(model)
    outs = []
    for options, count in (
        ({}, 2),
        ({"schedule": "release"}, 2),
        ({"schedule": -1.0}, 2),
        ({"flow_gate": None}, 2),
        ({"flow_gate": "sequence"}, 2),
        ({}, 1),
        ({}, 0),
    ):
        handle: Any = attach(model, adapter, **options)  # type: ignore[arg-type]
        handle.set_reference_frames(count)
        outs.append(run(model, **arguments))
        handle.detach()
    outs.append(run(model, **arguments))
    for i, a in enumerate(outs):
        assert all(float((a - b).abs().max()) > 1e-3 for b in outs[:i])


# ---------------------------------------------------------------------------- what is left alone


@both_dtypes
@pytest.mark.parametrize("rank", [0, 8])
def test_bitwise_the_base_without_gate_and_sliding(dtype: torch.dtype, rank: int) -> None:
    """Also with fresh low-rank weights, which add nothing."""
    model = tiny_vace().to(dtype)
    adapter = GenHOIAdapter.for_transformer(model, rank=rank).to(dtype)
    arguments = vace_inputs(model, dtype=dtype)
    base = run(model, **arguments)
    handle: Any = attach(model, adapter, flow_gate=None)
    for count, sliding in ((0, "all"), (2, "none")):
        handle.set_reference_frames(count, sliding=sliding)
        assert torch.equal(run(model, **arguments), base)
    handle.set_reference_frames(2)
    assert not torch.equal(run(model, **arguments), base)


@both_dtypes
def test_detach_restores_everything(dtype: torch.dtype) -> None:
    model = tiny_vace().to(dtype)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    arguments = vace_inputs(model, dtype=dtype)
    base = run(model, **arguments)
    handle: Any = attach(model, lively_adapter(model).to(dtype))
    handle.set_reference_frames(2)
    assert not torch.equal(run(model, **arguments), base)
    assert list(model.state_dict()) == list(before), "saved as if nothing were attached"
    handle.detach()
    handle.detach()
    assert torch.equal(run(model, **arguments), base)
    assert [name for name, _ in model.named_modules()] == modules
    assert all(torch.equal(model.state_dict()[name], x) for name, x in before.items())
    assert all(type(p) is WanAttnProcessor for p in model.attn_processors.values())
    assert not model.rope._forward_hooks
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match="set_reference_frames: the adapter is detached"):
        handle.set_reference_frames(1)


def test_fused_projections_keep_the_low_rank_weights() -> None:
    model = tiny_vace()
    handle: Any = attach(model, lively_adapter(model))
    handle.set_reference_frames(1)
    arguments = vace_inputs(model)
    apart = run(model, **arguments)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, **arguments), apart, rtol=1e-5, atol=1e-5)
    handle.detach()
    attach(model, lively_adapter(model), flow_gate=None)
    model.unfuse_qkv_projections()
    wanted = run(model, **arguments)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, **arguments), wanted, rtol=1e-5, atol=1e-5)


def test_samples_of_a_batch_are_clips_of_their_own() -> None:
    model = tiny_vace()
    handle: Any = attach(model, lively_adapter(model))
    handle.set_reference_frames(2)
    arguments = vace_inputs(model, batch=2)
    both = run(model, **arguments)
    for b in range(2):
        one = {k: x[b : b + 1] if isinstance(x, Tensor) else x for k, x in arguments.items()}
        torch.testing.assert_close(both[b : b + 1], run(model, **one), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------- gradients


def loss(model: WanVACETransformer3DModel, **arguments: Any) -> Tensor:
    (out,) = model(**arguments)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    result: Tensor = (out * target).mean()
    return result


def trained(model: WanVACETransformer3DModel, *, checkpointing: bool = False) -> dict[str, Tensor]:
    model.requires_grad_(False)
    adapter = lively_adapter(model, rank=3)
    handle: Any = attach(model, adapter)
    handle.set_reference_frames(2)
    if checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    value = loss(model, **vace_inputs(model))
    handle.set_reference_frames(0)  # the next clip's; a checkpointed block still runs on its own
    value.backward()
    handle.detach()
    return {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}


def test_every_weight_gets_the_gradient_of_the_formulas() -> None:
    model = tiny_vace()
    grads = trained(model)
    adapter = lively_adapter(model, rank=3)
    assert set(grads) == {name for name, _ in adapter.named_parameters()}
    plain = plain_model(model, adapter, (0, 1))
    loss(plain.requires_grad_(True).train(), **vace_inputs(model)).backward()
    for name, p in adapter.named_parameters():
        if ".lora." not in name:
            torch.testing.assert_close(grads[name], p.grad, rtol=1e-3, atol=1e-6)
    for block, layer, i in zip(plain.vace_blocks, adapter.layers, range(2), strict=True):
        for name, low_rank in layer.lora.items():
            of_weight = block.get_submodule(LORA_MODULES[name]).weight.grad
            wanted = {"up": of_weight @ low_rank.down.T, "down": low_rank.up.T @ of_weight}
            for side, value in wanted.items():
                got = grads[f"layers.{i}.lora.{name}.{side}"]
                torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-6)


def test_gradients_under_checkpointing() -> None:
    apart, checkpointed = trained(tiny_vace()), trained(tiny_vace(), checkpointing=True)
    assert set(apart) == set(checkpointed)
    for name, grad in apart.items():
        torch.testing.assert_close(checkpointed[name], grad, rtol=1e-5, atol=1e-7)


# -------------------------------------------------------------------------------- the adapter file


def meta_counts(**sizes: Any) -> tuple[int, int, int]:
    """Parameters of gates, of low-rank weights of rank 32, and of the VACE branch."""
    with torch.device("meta"):
        model = WanVACETransformer3DModel(**sizes)
        gates = GenHOIAdapter.for_transformer(model, rank=0)
        both = GenHOIAdapter.for_transformer(model)
    assert both.config.rank == 32 and not both.config.mask_gate

    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    branch = count(model.vace_blocks) + count(model.vace_patch_embedding)
    return count(gates), count(both) - count(gates), branch


def test_parameters_of_the_published_sizes() -> None:
    assert meta_counts() == (137_232, 30_670_848, 3_049_101_312)
    small = {
        "num_attention_heads": 12,
        "ffn_dim": 8960,
        "num_layers": 30,
        "vace_layers": list(range(0, 30, 2)),
    }
    assert meta_counts(**small) == (257_310, 21_872_640, 734_975_232)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_vace()
    adapter = lively_adapter(model, rank=5, lora_targets=("self_q", "ffn_out"))
    adapter.save_pretrained(tmp_path)
    again = GenHOIAdapter.from_pretrained(tmp_path)
    assert again.config == adapter.config
    assert (again.config.references, again.config.lora_targets) == ("frames", ("self_q", "ffn_out"))
    assert all(
        torch.equal(x, y)
        for x, y in zip(again.state_dict().values(), adapter.state_dict().values(), strict=True)
    )
    attach(model, again)


def test_adapters_of_another_kind_do_not_fit() -> None:
    with pytest.raises(ValueError, match="with num_layers 2, wanted 1"):
        attach(tiny_vace(vace_layers=[0]), lively_adapter(tiny_vace()))
    with pytest.raises(ValueError, match="with references stream, wanted frames"):
        attach(tiny_vace(), lively_adapter(tiny_wan(image=False)))
    with pytest.raises(ValueError, match="with references frames, wanted stream"):
        attach(tiny_wan(image=False), lively_adapter(tiny_vace()))
    sizes: dict[str, Any] = {"num_heads": 4, "head_dim": 16, "num_layers": 2}
    frames: dict[str, Any] = sizes | {"references": "frames", "image_attention": False}
    for options, message in (
        (frames | {"mask_gate": False}, "ffn_dim: got None, wanted an integer"),
        (frames | {"ffn_dim": 96}, "mask_gate: got True with references as frames"),
        (frames | {"ffn_dim": 96, "mask_gate": False, "rank": -1}, "rank: got -1, wanted"),
        (
            frames | {"ffn_dim": 96, "mask_gate": False, "lora_targets": ("x",)},
            "lora_targets: got 'x', wanted one of 'self_q'",
        ),
        (sizes | {"image_attention": True, "ffn_dim": 96}, "ffn_dim: got 96 with references as a"),
        (sizes | {"image_attention": True, "rank": 0}, "rank: got 0, wanted an integer of at"),
        (sizes | {"image_attention": True, "references": "x"}, "references: got 'x', wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            AdapterConfig(**options)


def test_what_cannot_be_is_refused() -> None:
    model = tiny_vace()
    with pytest.raises(ValueError, match="mask_gate: got True, wanted False: references of a VACE"):
        attach(model, lively_adapter(model), mask_gate=True)
    handle: Any = attach(model, lively_adapter(model))
    for arguments, kind, message in (
        ((1.5,), TypeError, "count: got 1.5, wanted an integer"),
        ((True,), TypeError, "count: got True, wanted an integer"),
        ((-1,), ValueError, "count: got -1, wanted at least 0"),
    ):
        with pytest.raises(kind, match=message):
            handle.set_reference_frames(*arguments)
    with pytest.raises(ValueError, match="sliding: got 'first', wanted one of all, last, none"):
        handle.set_reference_frames(1, sliding="first")
    latents = [torch.zeros(1, 16, 1, 6, 8)]
    with pytest.raises(ValueError, match="mask: got one, wanted None: references of a VACE"):
        handle.set_reference(latents, torch.ones(1, 60, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask: got one, wanted none"):
        handle.set_mask(torch.ones(1, 60, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"ref_bias: got \[0.5\], wanted None"):
        handle.set_reference(latents, ref_bias=[0.5])
    handle.set_reference_frames(GRID[0])
    with pytest.raises(ValueError, match="reference_frames: got 5 in latents of 5 frames"):
        run(model, **vace_inputs(model))
    handle.set_reference(latents * 2)
    assert handle.reference_frames == 2
    handle.set_reference(None)
    assert handle.reference_frames == 0


def test_share_of_attention() -> None:
    """Against the softmax itself, in the first VACE block."""
    model = tiny_vace()
    handle: Any = attach(model, lively_adapter(model))
    handle.set_reference_frames(2)
    meter = handle.attention_share(0)
    meter.watch_next()
    seen: list[tuple[Tensor, Tensor]] = []
    processor = model.vace_blocks[0].attn1.processor
    measure = processor.observer
    processor.observer = lambda q, k, current: (seen.append((q, k)), measure(q, k, current))
    run(model, **vace_inputs(model))
    q, k = seen[0]
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[3] ** 0.5).softmax(3)
    wanted = weights[0, :, 2 * ROWS :, : 2 * ROWS].sum(2).mean(0).view(3, *GRID[1:])
    torch.testing.assert_close(meter.share, wanted, rtol=1e-4, atol=1e-5)


def test_the_family_is_known() -> None:
    model = model_of(tiny_vace())
    assert model.references_in_sequence and len(model.blocks) == 2 and len(model.all_blocks) == 6
    assert model.sizes.num_layers == 4


# ------------------------------------------------------------------------------ with other tools


def attached(model: WanVACETransformer3DModel) -> Any:
    handle: Any = attach(model, lively_adapter(model))
    handle.set_reference_frames(2)
    return handle


def test_compiled_blocks_are_one_graph_each_and_stay() -> None:
    model = tiny_vace()
    attached(model)
    arguments = vace_inputs(model)
    eager = run(model, **arguments)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(model, **arguments), eager, rtol=1e-5, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run(model, **(arguments | {"timestep": torch.tensor([250.0])}))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload(kind: str) -> None:
    model = tiny_vace()
    attached(model)
    arguments = vace_inputs(model)
    wanted = run(model, **arguments)
    size = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, cpu, offload_type=kind, **size)
    assert torch.equal(run(model, **arguments), wanted)


def test_layerwise_casting_leaves_the_adapter_alone() -> None:
    model = tiny_vace()
    handle = attached(model)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    run(model, **vace_inputs(model))
    assert {p.dtype for p in handle.adapter.parameters()} == {torch.float32}
    assert model.vace_blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn


def test_diffusers_own_pipeline(tmp_path: Path) -> None:
    """It puts references in front by itself; only their number has to be said."""
    pipe = WanVACEPipeline.from_pretrained(save_tiny_vace_base(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    pictures = [Image.new("RGB", (48, 32), colour) for colour in ("red", "white")]
    common: dict[str, Any] = {
        "prompt": "a hand",
        "video": [pictures[0]] * 5,
        "mask": [Image.new("L", (48, 32), 255)] * 5,
        "reference_images": pictures,
        "height": 32,
        "width": 48,
        "num_frames": 5,
        "num_inference_steps": 2,
        "output_type": "latent",
    }

    def latents() -> Tensor:
        made: Tensor = pipe(**common, generator=torch.Generator().manual_seed(0)).frames
        return made

    base = latents()
    handle: Any = attach(pipe.transformer, lively_adapter(pipe.transformer))
    handle.set_reference_frames(len(pictures))
    assert latents().shape == base.shape
    assert not torch.equal(latents(), base)
    handle.detach()
    assert torch.equal(latents(), base)


def test_a_stream_has_no_reference_frames() -> None:
    model = tiny_wan()
    with pytest.raises(TypeError, match="set_reference_frames: references of this model are a str"):
        attach(model, lively_adapter(model)).set_reference_frames(1)
