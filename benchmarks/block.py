"""The suite `block`: a Wan block with GenHOI attached, over denoising steps and both branches.

`genhoi.attach` against the release's way built from PyTorch's calls: a dense additive mask, the
reference stream in every forward pass, and keys and values joined in every forward pass. Setting
the reference, and the op's one reference pass, are inside the clock; weights are random.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bare_attention import attention_flops, attention_moved
from benchmarks.case import Case, Contender, Workload
from benchmarks.torch_parts import cos_sin, rotate, token_gate
from genhoi_kernels import FlowGate, GateWeights, HeadSlidingRope, VideoRope
from genhoi_kernels.tune.accuracy import Results, Truth
from genhoi_kernels.tune.problem import draw_normal
from genhoi_kernels.tune.shapes import Shape

if TYPE_CHECKING:  # else where it is used: the other suites do without the model layer
    from genhoi import GenHOIAdapter

__all__ = ["BRANCHES", "LABELS", "TEXT_TOKENS", "block_config", "build_block"]

LABELS = ("genhoi.attach", "release's way in torch calls")

BRANCHES = 2  # with and without the prompt
TEXT_TOKENS = 512
_FFN = 2  # times the width

Table = tuple[Tensor, Tensor]


def build_block(case: Case) -> Workload:
    """Build the contenders: the attached block, and the release's way.

    Raises:
        ValueError: a shape without a reference.
        ImportError: no diffusers, or another package of the model layer is missing.
    """
    if not case.shape.m:
        raise ValueError("shape: got M = 0, wanted a reference, for the suite block")
    model, adapter = _models(case)
    inputs = _Inputs(case, model)
    name, peer = LABELS
    attached = _Attached(copy.deepcopy(model), copy.deepcopy(adapter), inputs)
    plain = _Plain(copy.deepcopy(model), copy.deepcopy(adapter), inputs)

    @functools.cache
    def truth() -> Truth:
        exact = _Plain(model.float(), adapter.float(), inputs.widened())
        return Truth(exact.results(), plain.results(), "one forward pass, against float32")

    calls = case.steps * BRANCHES
    weights = sum(p.numel() for p in model.blocks[0].parameters())
    moved = attention_moved(case) + weights * case.dtype.itemsize
    work = Workload(name, peer, calls * _block_flops(case, model), calls * moved)
    for label, way in ((name, attached), (peer, plain)):
        work.contenders.append(Contender(label, way.edit, way.results, truth))
    return work


def _block_flops(case: Case, model: Any) -> float:
    """Count the operations of one forward pass over the video: projections, attention, text, FFN.

    The reference stream is left out: what is useful of it happens once a clip.
    """
    width, n = case.shape.heads * case.shape.head_dim, case.shape.n
    block = model.blocks[0]
    layers = [layer for layer in block.modules() if isinstance(layer, nn.Linear)]
    of_text = [block.attn2.to_k, block.attn2.to_v]
    products = sum(
        layer.weight.numel() * (TEXT_TOKENS if any(layer is x for x in of_text) else n)
        for layer in layers
    )
    return attention_flops(case) + 2.0 * products + 4.0 * n * TEXT_TOKENS * width


def block_config(shape: Shape) -> dict[str, Any]:
    """Return the configuration of a Wan of one block."""
    return {
        "num_attention_heads": shape.heads,
        "attention_head_dim": shape.head_dim,
        "in_channels": 16,
        "out_channels": 16,
        "text_dim": 64,
        "freq_dim": 256,
        "num_layers": 1,
        "ffn_dim": _FFN * shape.heads * shape.head_dim,
    }


def _models(case: Case) -> tuple[Any, GenHOIAdapter]:
    """Make a Wan of one block, and an adapter whose weights are all non-zero."""
    from diffusers import WanTransformer3DModel

    from genhoi import GenHOIAdapter

    torch.manual_seed(0)
    model = WanTransformer3DModel(**block_config(case.shape)).eval()
    adapter = GenHOIAdapter.for_transformer(model, rank=128)
    for p in adapter.parameters():
        nn.init.normal_(p, std=0.05)
    for name, p in model.named_parameters():
        # As loading in this dtype leaves it.
        if not set(name.split(".")) & set(model._keep_in_fp32_modules):
            p.data = p.data.to(case.dtype)
    return model.to(case.device), adapter.to(case.device, case.dtype)


class _Inputs:
    """Latents of a clip, its text and timestep, one reference and the mask."""

    def __init__(self, case: Case, model: Any) -> None:
        draw = torch.Generator(case.device).manual_seed(1)
        (f, h, w), (rows, cols) = case.shape.grid, case.shape.ref_grid

        def normal(*size: int) -> Tensor:
            return draw_normal(size, draw, case.dtype)

        self.case = case
        self.latents = normal(1, 16, f, 2 * h, 2 * w)
        self.texts = [normal(1, TEXT_TOKENS, model.config.text_dim) for _ in range(BRANCHES)]
        self.reference = normal(1, 16, 1, 2 * rows, 2 * cols)
        self.mask = case.shape.mask().to(case.device)

    def widened(self) -> _Inputs:
        """Return these inputs in float32."""
        wide = copy.copy(self)
        wide.latents, wide.reference = self.latents.float(), self.reference.float()
        wide.texts = [text.float() for text in self.texts]
        return wide

    def arguments(self, branch: int, step: float) -> dict[str, Any]:
        """Return the transformer's arguments."""
        return {
            "hidden_states": self.latents,
            "encoder_hidden_states": self.texts[branch],
            "timestep": torch.full((1,), step, device=self.latents.device),
            "return_dict": False,
        }


class _Way:
    """A model at work; `edit` is what is timed."""

    def __init__(self, model: Any, adapter: GenHOIAdapter, inputs: _Inputs) -> None:
        self.model, self.adapter, self.inputs = model, adapter, inputs

    def new_clip(self) -> None:
        """Do what is needed once for each clip."""

    def new_pass(self) -> None:
        """Do what is needed in every forward pass."""

    @torch.no_grad()
    def results(self) -> Results:
        """Return the output of one forward pass."""
        self.new_clip()
        return {"out": self._pass(0, 500.0)}

    @torch.no_grad()
    def edit(self) -> None:
        """Run all steps and branches of a clip."""
        self.new_clip()
        for step in range(self.inputs.case.steps):
            for branch in range(BRANCHES):
                self._pass(branch, 1000.0 - step)

    def _pass(self, branch: int, step: float) -> Tensor:
        self.new_pass()
        out: Tensor = self.model(**self.inputs.arguments(branch, step))[0]
        return out


class _Attached(_Way):
    """The block as `genhoi edit` runs it, with the paper's preset."""

    def __init__(self, model: Any, adapter: GenHOIAdapter, inputs: _Inputs) -> None:
        from genhoi import attach

        super().__init__(model, adapter, inputs)
        self.handle = attach(model, adapter, preset="paper")

    def new_clip(self) -> None:
        self.handle.set_reference([self.inputs.reference], self.inputs.mask)


class _Plain(_Way):
    """The block in PyTorch's calls, with the reference stream in every forward pass."""

    def __init__(self, model: Any, adapter: GenHOIAdapter, inputs: _Inputs) -> None:
        super().__init__(model, adapter, inputs)
        shape, block = inputs.case.shape, model.blocks[0]
        layer: Any = adapter.layers[0]
        device = inputs.latents.device
        video = VideoRope(shape.grid, head_dim=shape.head_dim)
        self.attention = _PlainSelfAttention(layer, cos_sin(video, shape.n, device))
        block.attn1.set_processor(self.attention)
        block.attn2.set_processor(_PlainCrossAttention(layer.text_gate))
        rope = HeadSlidingRope(
            shape.grid, (shape.ref_grid,), head_dim=shape.head_dim, num_heads=shape.heads
        )
        self.table = _ReferenceTable(cos_sin(rope, shape.m, device))

    def new_clip(self) -> None:
        n, m, like = self.inputs.case.shape.n, self.inputs.case.shape.m, self.inputs.latents
        bias = torch.zeros(n, n + m, dtype=like.dtype, device=like.device)
        bias[:, n:].masked_fill_(~self.inputs.mask[0, :, None], -math.inf)
        self.attention.bias = bias

    def new_pass(self) -> None:
        model = self.model
        x = model.patch_embedding(self.inputs.reference).flatten(2).transpose(1, 2)
        no_text = x.new_zeros(1, 1, model.config.text_dim)
        still = model.condition_embedder(x.new_zeros(1), no_text, None)[1].unflatten(1, (6, -1))
        model.blocks[0](x, None, still, self.table)


class _ReferenceTable(NamedTuple):
    """Angles of the reference tokens; stands where the block takes the video's."""

    table: Table


class _PlainSelfAttention:
    """Attention of the video over video and reference; of the reference alone if given its table.

    The video's own table stays in float32, as in the release; the transformer's is cast with it.
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, layer: Any, table: Table) -> None:
        self.layer, self.table = layer, table
        self.bias: Tensor | None = None
        self.reference: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, attn: Any, x: Tensor, context: Any = None, mask: Any = None, rotary: Any = None
    ) -> Tensor:
        of_reference = isinstance(rotary, _ReferenceTable)
        table = rotary.table if of_reference else self.table
        q, k, v = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        if of_reference:
            layer = self.layer
            q, k, v = q + layer.lora_q(x), k + layer.lora_k(x), v + layer.lora_v(x)
        q, k, v = (_split(y, attn) for y in (attn.norm_q(q), attn.norm_k(k), v))
        q, k = rotate(q, table), rotate(k, table)
        bias = None
        if of_reference:
            self.reference = k, v
        else:
            assert self.reference is not None
            k, v = (torch.cat(pair, 1) for pair in zip((k, v), self.reference, strict=True))
            bias = self.bias
        return _gated(attn, _attend(q, k, v, bias), self.layer.self_gate)


class _PlainCrossAttention:
    """Attention of the video over the text; zeros for the reference."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, gate: FlowGate) -> None:
        self.gate = gate

    def __call__(
        self, attn: Any, x: Tensor, context: Any = None, mask: Any = None, rotary: Any = None
    ) -> Tensor:
        if context is None:
            return torch.zeros_like(x)
        projected = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(context)), attn.to_v(context)
        q, k, v = (_split(y, attn) for y in projected)
        return _gated(attn, _attend(q, k, v, None), self.gate)


def _split(x: Tensor, attn: Any) -> Tensor:
    return x.unflatten(2, (attn.heads, -1))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    Q, K, V = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=bias).transpose(1, 2)


def _gated(attn: Any, out: Tensor, gate: FlowGate) -> Tensor:
    weights = GateWeights(*(w.to(out.dtype) for w in gate.gate_weights()))
    projected: Tensor = attn.to_out[0](token_gate(out, weights).flatten(2))
    return projected
