"""At home in torch: opcheck, compile, export, autocast, inference mode, vmap, determinism."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import genhoi_kernels as gk
from genhoi_kernels import notices, ops
from genhoi_kernels.flow_gate import gate_shapes
from genhoi_kernels.rope import encode_rope

GRID, REFS, HEADS, DIM = (3, 2, 3), ((2, 2), (1, 3)), 4, 16
N, M = 18, 7
ROPE = gk.VideoRope(GRID, head_dim=DIM)
REF_ROPE = gk.HeadSlidingRope(GRID, REFS, head_dim=DIM, num_heads=HEADS)
FRONT_ROPE = gk.ReferenceFramesRope(GRID, (0,), head_dim=DIM, num_heads=HEADS)
ON_CPU = gk.RopeCall(torch.device("cpu"), torch.float32, DIM)
COMPILED = [
    s.name
    for s in gk.backends()
    if s.usable and s.name != "eager" and gk.supports(s.name, ON_CPU) is None
]
BACKENDS = [*COMPILED, "eager"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One type is enough for Triton, whose interpreter is slow: opcheck holds the operators, which all
# backends share, to their schema; the kernels' results in every type are tested elsewhere.
IN_EACH_DTYPE = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        (backend, dtype)
        for backend in BACKENDS
        for dtype in (DTYPES if backend != "triton" else (torch.bfloat16,))
    ],
)


def inputs(
    dtype: torch.dtype = torch.float32, *, seed: int = 0, grad: bool = False
) -> list[Tensor]:
    """q, k, v, k_ref, v_ref."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, N, HEADS, DIM)] * 3 + [(1, M, HEADS, DIM)] * 2
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [x.requires_grad_(grad) for x in tensors]


def a_mask(seed: int = 0) -> Tensor:
    return torch.randint(0, 4, (2, N), generator=torch.Generator().manual_seed(seed))


def gate_weights(dtype: torch.dtype = torch.float32) -> gk.GateWeights:
    generator = torch.Generator().manual_seed(7)
    shapes = gate_shapes(DIM).values()
    return gk.GateWeights(*(torch.randn(s, generator=generator).to(dtype) * 0.3 for s in shapes))


def attend(q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, **options: object):
    """The op with both rotations."""
    return gk.reference_attention(q, k, v, k_ref, v_ref, rope=ROPE, ref_rope=REF_ROPE, **options)


def op_arguments(dtype: torch.dtype, backend: str, *, gate_mode: str, grad: bool = True) -> tuple:
    """Arguments of the operator itself, every optional one given."""
    tensors = inputs(dtype, grad=grad)
    gate = [] if gate_mode == "none" else [w.requires_grad_(grad) for w in gate_weights()]
    bias = torch.randn(2, generator=torch.Generator().manual_seed(3)).requires_grad_(grad)
    rope = (*encode_rope(ROPE), *encode_rope(REF_ROPE))
    built = gk.MaskGate.build(a_mask())
    options = [[4, 3], *rope, gate_mode, 0.25, True, [True] * 7, backend]
    return (*tensors, built.bits, bias, gate, built.tensors(), *options)


@IN_EACH_DTYPE
@pytest.mark.parametrize("gate_mode", ["none", "token", "sum"])
def test_opcheck_attention(backend: str, dtype: torch.dtype, gate_mode: str) -> None:
    torch.library.opcheck(ops.attention, op_arguments(dtype, backend, gate_mode=gate_mode))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_attention_with_nothing_optional(backend: str) -> None:
    q, k, v, _, _ = inputs(grad=True)
    arguments = (
        q,
        k,
        v,
        None,
        None,
        None,
        None,
        [],
        [],
        [],
        [],
        [],
        [],
        [],
        "none",
        0.25,
        True,
        [True] * 7,
        backend,
    )
    torch.library.opcheck(ops.attention, arguments)


@IN_EACH_DTYPE
def test_opcheck_attention_backward(backend: str, dtype: torch.dtype) -> None:
    arguments = op_arguments(dtype, backend, gate_mode="token", grad=False)
    out, lse, _, ungated = ops.attention(*arguments)
    torch.library.opcheck(ops.attention_backward, (out, lse, None, ungated, lse, *arguments))


@IN_EACH_DTYPE
def test_opcheck_ropes(backend: str, dtype: torch.dtype) -> None:
    q, k, *_ = (x.flatten(2).detach().requires_grad_() for x in inputs(dtype))
    weights = [torch.rand(HEADS * DIM).requires_grad_() for _ in range(2)]
    rope = encode_rope(FRONT_ROPE)
    torch.library.opcheck(ops.qk_norm_rope, (q, k, *weights, DIM, *rope, 1e-6, backend))
    torch.library.opcheck(
        ops.norm_rope_backward,
        (
            q.detach().unflatten(2, (HEADS, DIM)),
            k.detach(),
            weights[0].detach(),
            DIM,
            *rope,
            1e-6,
            backend,
        ),
    )
    k_ref = inputs(dtype, grad=True)[3]
    torch.library.opcheck(ops.apply_rope, (k_ref, *encode_rope(REF_ROPE), False, backend))


class Block(torch.nn.Module):
    """A layer as a user would write it."""

    def __init__(self, gate: str, backend: str) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(HEADS * DIM, 3 * HEADS * DIM)
        self.attention = gk.ReferenceAttention(HEADS, DIM, gate=gate, backend=backend)

    def heads(self, x: Tensor) -> list[Tensor]:
        return list(self.qkv(x).unflatten(-1, (3, HEADS, DIM)).unbind(2))

    def forward(self, x: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
        _, k_ref, v_ref = self.heads(ref)
        q, k, v = self.heads(x)
        out = self.attention(q, k, v, k_ref, v_ref, video_grid=GRID, ref_grids=REFS, mask=mask)
        return out.flatten(2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", ["token", "sequence"])
def test_compile_fullgraph_without_recompiling(backend: str, gate: str) -> None:
    torch.manual_seed(0)
    block = Block(gate, backend)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(2, N, HEADS * DIM, generator=generator)
            ref = torch.randn(1, M, HEADS * DIM, generator=generator)
            mask = a_mask(seed)
            block.zero_grad()
            expected = block(x, ref, mask)
            expected.sum().backward()
            wanted = [p.grad.clone() for p in block.parameters()]
            block.zero_grad()
            got = compiled(x, ref, mask)
            got.sum().backward()
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
            for p, w in zip(block.parameters(), wanted, strict=True):
                torch.testing.assert_close(p.grad, w, rtol=1e-6, atol=1e-6)


class ReferenceFramesBlock(torch.nn.Module):
    """A layer over one sequence of reference frames and video."""

    def __init__(self, backend: str | None) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(HEADS * DIM, 3 * HEADS * DIM)
        self.weights = torch.nn.Parameter(torch.rand(2, HEADS * DIM))
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        frames = x.shape[1] // (GRID[1] * GRID[2])
        rope = gk.ReferenceFramesRope((frames, *GRID[1:]), (0,), head_dim=DIM, num_heads=HEADS)
        q, k = gk.qk_norm_rope(q, k, *self.weights, rope, backend=self.backend)
        rotated = gk.apply_rope(v.unflatten(-1, (HEADS, DIM)), rope, backend=self.backend)
        return gk.reference_attention(q, k, rotated, rope=rope, backend=self.backend).flatten(2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reference_frames_compile_and_export(backend: str) -> None:
    torch.manual_seed(0)
    block, x = ReferenceFramesBlock(backend), torch.randn(1, N, HEADS * DIM)
    wanted = block(x)
    grads = torch.autograd.grad(wanted.sum(), list(block.parameters()))
    torch._dynamo.reset()
    got = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(got, wanted)
    for grad, g in zip(
        torch.autograd.grad(got.sum(), list(block.parameters())), grads, strict=True
    ):
        torch.testing.assert_close(grad, g, rtol=1e-6, atol=1e-6)
    program = torch.export.export(block, (x,))
    assert torch.equal(program.module()(x), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_with_inductor(backend: str) -> None:
    torch.manual_seed(0)
    block = Block("token", backend)
    x, ref = torch.randn(2, N, HEADS * DIM), torch.randn(1, M, HEADS * DIM)
    got = torch.compile(block, fullgraph=True)(x, ref, a_mask())
    torch.testing.assert_close(got, block(x, ref, a_mask()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_takes_a_built_mask_gate(backend: str) -> None:
    gates = [gk.MaskGate.build(a_mask(seed)) for seed in range(3)]
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for gate in gates:
            tensors = inputs()
            got = compiled(*tensors, mask=gate, backend=backend)
            assert torch.equal(got, attend(*tensors, mask=gate, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_export(backend: str) -> None:
    torch.manual_seed(0)
    block = Block("token", backend).eval()
    arguments = (torch.randn(2, N, HEADS * DIM), torch.randn(1, M, HEADS * DIM), a_mask())
    program = torch.export.export(block, arguments)
    assert any(
        "genhoi_kernels.reference_attention" in str(node.target) for node in program.graph.nodes
    )
    torch.testing.assert_close(program.module()(*arguments), block(*arguments), rtol=0, atol=0)


def test_an_exported_program_runs_in_another_process(tmp_path: Path) -> None:
    """Rotations are numbers in its graph, so it needs no object of the process that made it."""
    torch.manual_seed(0)
    block = Block("token", None).eval()
    inputs = (torch.randn(2, N, HEADS * DIM), torch.randn(1, M, HEADS * DIM), a_mask())
    torch.export.save(torch.export.export(block, inputs), tmp_path / "program.pt2")
    torch.save((inputs, block(*inputs).detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, genhoi_kernels; folder = sys.argv[1]; "
        "inputs, expected = torch.load(f'{folder}/expected.pt'); "
        "program = torch.export.load(f'{folder}/program.pt2').module(); "
        "torch.testing.assert_close(program(*inputs), expected)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate_dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_the_five_and_nothing_else(backend: str, gate_dtype: torch.dtype) -> None:
    tensors, gate = inputs(), gate_weights(gate_dtype)
    options = dict(mask=a_mask(), gate=gate, backend=backend, return_lse=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = attend(*tensors, **options)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    wanted, wanted_lse = attend(*(x.bfloat16() for x in tensors), **options)
    assert torch.equal(out, wanted)
    assert torch.equal(lse, wanted_lse)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_mixes_dtypes_and_reaches_float32_leaves(backend: str) -> None:
    q, k, v, k_ref, v_ref = inputs(grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k.bfloat16(), v, k_ref, v_ref, backend=backend)
    out.float().sum().backward()
    assert all(
        x.grad is not None and x.grad.dtype == torch.float32 for x in (q, k, v, k_ref, v_ref)
    )


def test_autocast_leaves_float64_alone() -> None:
    tensors = [x.double() for x in inputs()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(*tensors)
    assert out.dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode(backend: str) -> None:
    gk.rope._axis_tables.cache_clear()
    tensors = inputs()
    with torch.inference_mode():
        inside = attend(*tensors, mask=a_mask(), backend=backend)
    assert inside.is_inference()
    # What was cached inside must serve a training step outside.
    leaves = inputs(grad=True)
    outside = attend(*leaves, mask=a_mask(), backend=backend)
    outside.sum().backward()
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_is_refused_in_words(backend: str) -> None:
    q, k, v, k_ref, v_ref = (x[None].repeat(2, 1, 1, 1, 1) for x in inputs())
    with pytest.raises(NotImplementedError, match=r"reference_attention: torch\.vmap"):
        torch.vmap(lambda *t: attend(*t, backend=backend))(q, k, v, k_ref, v_ref)
    with pytest.raises(NotImplementedError, match=r"apply_rope: torch\.vmap"):
        torch.vmap(lambda x: gk.apply_rope(x, ROPE, backend=backend))(q)
    weight = torch.ones(HEADS * DIM)
    with pytest.raises(NotImplementedError, match=r"qk_norm_rope: torch\.vmap"):
        torch.vmap(lambda x: gk.qk_norm_rope(x, x, weight, weight, ROPE, backend=backend))(
            q.flatten(3)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_part_of_the_inputs(backend: str) -> None:
    every = inputs(grad=True)
    attend(*every, mask=a_mask(), backend=backend).square().sum().backward()
    for i in range(5):
        some = inputs()
        some[i].requires_grad_()
        attend(*some, mask=a_mask(), backend=backend).square().sum().backward()
        assert torch.equal(some[i].grad, every[i].grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_checkpointing(backend: str) -> None:
    torch.manual_seed(0)
    block = Block("token", backend)
    again = copy.deepcopy(block)
    x, ref = torch.randn(2, N, HEADS * DIM), torch.randn(1, M, HEADS * DIM)
    block(x, ref, a_mask()).square().sum().backward()
    torch.utils.checkpoint.checkpoint(
        again, x, ref, a_mask(), use_reentrant=False
    ).square().sum().backward()
    for p, p_again in zip(block.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.grad, p_again.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_transposed_upstream_gradient(backend: str) -> None:
    q, k, v, k_ref, v_ref = inputs(grad=True)
    out = attend(q, k, v, k_ref, v_ref, backend=backend)
    upstream = torch.randn(2, HEADS, N, DIM).transpose(1, 2)
    (grad,) = torch.autograd.grad(out, q, upstream, retain_graph=True)
    (wanted,) = torch.autograd.grad(out, q, upstream.contiguous())
    assert torch.equal(grad, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives_are_refused_in_words(backend: str) -> None:
    q, *rest = inputs(grad=True)
    (grad,) = torch.autograd.grad(attend(q, *rest, backend=backend).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference_attention: second derivatives"):
        grad.sum().backward()


def test_an_exported_program_is_not_tied_to_a_backend() -> None:
    """backend=None is resolved when the program runs."""
    program = torch.export.export(
        Block("token", None).eval(),
        (torch.randn(2, N, HEADS * DIM), torch.randn(1, M, HEADS * DIM), a_mask()),
    )
    nodes = [n for n in program.graph.nodes if "reference_attention" in str(n.target)]
    assert nodes and nodes[0].args[-1:] != ("cpu",)


def test_meta_tensors_have_shapes() -> None:
    q, k, v, k_ref, v_ref = (x.to("meta").requires_grad_() for x in inputs())
    gate = gk.FlowGate(DIM).to("meta")
    out, lse = attend(q, k, v, k_ref, v_ref, mask=a_mask().to("meta"), gate=gate, return_lse=True)
    assert out.device.type == "meta"
    assert (out.shape, lse.shape) == ((2, N, HEADS, DIM), (2, HEADS, N))
    out.sum().backward()
    assert q.grad is not None and q.grad.shape == q.shape
    weight = torch.ones(HEADS * DIM, device="meta")
    normed, _ = gk.qk_norm_rope(q.flatten(2), k.flatten(2), weight, weight, ROPE)
    assert normed.shape == gk.apply_rope(q, ROPE).shape == q.shape


@pytest.mark.parametrize("schedule", ["paper", -1.0])
def test_compile_with_dynamic_shapes(schedule: str | float) -> None:
    """The checks of sizes and options are traced, whatever torch takes for a variable."""
    module = gk.ReferenceAttention(HEADS, DIM, schedule=schedule)
    tensors = inputs()
    options = {"video_grid": GRID, "ref_grids": REFS}
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(*tensors, **options), module(*tensors, **options))


def test_a_call_without_a_kernel_compiles() -> None:
    x = torch.randn(3, 1, 6, 2, DIM, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(gk.reference_attention, fullgraph=True, backend="aot_eager")
    notices.forget()
    with pytest.warns(gk.EagerFallbackWarning):
        out = compiled(*x)
    assert torch.equal(out, gk.reference_attention(*x, backend="eager"))


class EveryBackend(torch.nn.Module):
    """Each backend without any gate, then with all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            gk.ReferenceAttention(HEADS, DIM, gate=gate, backend=backend)
            for backend in BACKENDS
            for gate in (None, "token")
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, *mask: Tensor):
        for layer in self.layers:
            if layer.gate is None:
                q = layer(q, k, v, video_grid=GRID)
                q = layer(q, k, v, k_ref, v_ref, video_grid=GRID, ref_grids=REFS)
            else:
                options = {"video_grid": GRID, "ref_grids": REFS, "mask": gk.MaskGate(*mask)}
                q = layer(q, k, v, k_ref, v_ref, **options)
        return q


@pytest.mark.slow
def test_compiled_ahead_of_time_with_and_without_gates(tmp_path: Path) -> None:
    """A program of AOTInductor has None for an empty list."""
    torch.manual_seed(0)
    module = EveryBackend().eval()
    arguments = (*inputs(), *gk.MaskGate.build(a_mask()).tensors())
    with torch.no_grad():
        program = torch.export.export(module, arguments)
        path = str(tmp_path / "every.pt2")
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=quick)
        got = torch._inductor.aoti_load_package(path)(*arguments)
        torch.testing.assert_close(got, module(*arguments), rtol=1e-5, atol=1e-5)
