"""An adapter under torch.compile and torch.export of a whole transformer.

A program is compiled once: not again for steps, references, masks, or another adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from support.tiny_vace import GRID as VACE_GRID
from support.tiny_vace import tiny_vace, vace_inputs
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from genhoi import Attachment, attach
from genhoi.models.wan import programs

NOT_AGAIN = {"error_on_recompile": True}


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def put_on(model: Any, **options: Any) -> Attachment:
    return attach(model, lively_adapter(model), **{"preset": "paper"} | options)


def counted(
    model: Any, backend: str = "eager", **options: Any
) -> tuple[Any, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, backend=counter, **{"fullgraph": True} | options), counter


def run(model: Any, **changes: Any) -> Tensor:
    with torch.no_grad():
        (out,) = model(**(inputs(model) | changes))
    assert isinstance(out, Tensor)
    return out


def eager(model: WanTransformer3DModel, **changes: Any) -> Tensor:
    """Run past what ``model.compile()`` puts in the place of a call."""
    with torch.no_grad():
        (out,) = model.forward(**(inputs(model) | changes))
    return out


# -------------------------------------------------------------------------- one program for all


@pytest.mark.parametrize(
    "flow_gate, in_place", [("token", False), ("sequence", True)], ids=["wrapper", "in-place"]
)
def test_compiled_once(flow_gate: str, in_place: bool) -> None:
    model = tiny_wan()
    handle = put_on(model, flow_gate=flow_gate)
    compiled, counter = model, CompileCounterWithBackend("eager")
    if in_place:
        model.compile(backend=counter, fullgraph=True)
    else:
        compiled, counter = counted(model)

    def check(passes: int, **changes: Any) -> None:
        got = run(compiled, **changes)
        assert handle.reference_passes == passes
        assert torch.equal(got, eager(model, **changes))
        assert handle.reference_passes == passes

    check(0)
    with torch._dynamo.config.patch(NOT_AGAIN):
        handle.set_reference([reference()], some_tokens())
        check(1)
        check(1, timestep=torch.tensor([30.0]))
        handle.set_reference([reference(seed=8)], some_tokens(seed=8))
        check(2)
        handle.set_mask(some_tokens(seed=9))
        check(2)
        handle.set_reference(None)
        check(2)
        two = [reference(4, 8), reference(seed=9)]
        handle.set_reference(two, torch.ones(1, 72, dtype=torch.bool), ref_bias=[0.5, -0.5])
        check(3)
        with torch.no_grad():
            model.blocks[0].ffn.net[2].weight.mul_(1.1)
        check(4)
        handle.set_reference(two, torch.zeros(1, 72, dtype=torch.bool))  # seen by no token
        check(4)
    assert counter.frame_count == 1


def test_without_gates_there_is_a_program_with_and_one_without_a_reference() -> None:
    """The one without is the base's own, for the adapter has nothing to add."""
    model = tiny_wan(layers=1)
    bare = run(model)
    handle = put_on(model, flow_gate=None)
    compiled, counter = counted(model)
    assert torch.equal(run(compiled), bare)
    handle.set_reference([reference()], some_tokens())
    assert torch.equal(run(compiled), eager(model))
    with torch._dynamo.config.patch(NOT_AGAIN):
        handle.set_reference(None)
        assert torch.equal(run(compiled), bare)
        handle.set_reference([reference(4, 8), reference(seed=9)], some_tokens(seed=9))
        assert torch.equal(run(compiled), eager(model))
    assert counter.frame_count == 2


def test_one_program_for_every_grid() -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    compiled, _ = counted(model, dynamic=True)
    for once, grid in enumerate(((3, 4, 6), (4, 6, 8))):
        tokens = torch.arange(grid[0] * grid[1] * grid[2])[None] % 3 == 0
        handle.set_reference([reference()], tokens)
        sized = inputs(model, grid=grid)
        with torch._dynamo.config.patch(error_on_recompile=once > 0):
            assert torch.equal(run(compiled, **sized), eager(model, **sized))


def test_attached_after_compile() -> None:
    """One program serves the next adapter too, and the bare model has its own back."""
    model = tiny_wan(layers=1)
    bare = run(model)
    compiled, counter = counted(model)
    assert torch.equal(run(compiled), bare)
    for given, seed in ((compiled, 3), (model, 8)):
        handle = attach(given, lively_adapter(model), preset="paper")
        assert handle.transformer is model
        handle.set_reference([reference(seed=seed)], some_tokens())
        assert torch.equal(run(compiled), eager(model))
        handle.detach()
    assert torch.equal(run(compiled), bare)
    assert counter.frame_count == 2


@pytest.mark.slow
def test_with_inductor() -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    compiled, counter = counted(model, "inductor")
    for seed in (3, 8):
        handle.set_reference([reference(seed=seed)], some_tokens(seed=seed))
        torch.testing.assert_close(run(compiled), eager(model), rtol=1e-4, atol=1e-5)
    assert (counter.frame_count, handle.reference_passes) == (1, 2)


# ---------------------------------------------------------------------------- beside other things


@pytest.mark.parametrize("context", ["autocast", "inference"])
def test_within(context: str) -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    handle.set_reference([reference()], some_tokens())
    compiled, _ = counted(model, "aot_eager")
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=context == "autocast")
    with torch.inference_mode(context == "inference"), autocast:
        wanted = run(model)
        assert torch.equal(run(compiled), wanted)
    assert handle.reference_passes == 1


def test_with_a_lora() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_wan(layers=1)
    handle = put_on(model)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    model.add_adapter(config)
    handle.set_reference([reference()], some_tokens())
    compiled, counter = counted(model)
    assert torch.equal(run(compiled), eager(model))
    assert (counter.frame_count, handle.reference_passes) == (1, 1)


def test_with_group_offload() -> None:
    """Its hooks break graphs; what is between them is compiled once."""
    model = tiny_wan(layers=1)
    handle = put_on(model)
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)
    counter = CompileCounterWithBackend("eager")
    model.compile(backend=counter)
    frames = []
    for seed in (3, 8):
        handle.set_reference([reference(seed=seed)], some_tokens())
        assert torch.equal(run(model), eager(model))
        frames.append(counter.frame_count)
    assert frames[0] == frames[1] > 0


def test_a_meter_of_attention() -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    handle.set_reference([reference()], some_tokens())
    compiled, counter = counted(model)
    run(compiled)
    meter = handle.attention_share(0)
    shares = []
    for called in (model, compiled):
        meter.watch_next()
        run(called)
        shares.append(meter.share)
    torch.testing.assert_close(shares[1], shares[0], equal_nan=True)
    assert counter.frame_count == 1


def test_what_does_not_fit_is_said_when_a_program_runs() -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    compiled, _ = counted(model)
    run(compiled)
    handle.set_reference([reference()], torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask: got tokens of shape \(1, 5\), wanted"):
        run(compiled)


# ------------------------------------------------------------------------------------- gradients


def gradients(model: Any, handle: Attachment) -> list[Tensor]:
    weights = [p for p in handle.adapter.parameters() if p.requires_grad]
    out = model(**inputs(model))[0].square().mean()
    found = torch.autograd.grad(out, weights, allow_unused=True)
    return [grad for grad in found if grad is not None]


def test_gradients_through_a_reference_need_a_graph_break() -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    handle.set_reference([reference()], some_tokens())
    wanted = gradients(model, handle)
    with pytest.raises(Exception, match=r"gradients reach a GenHOI reference .* graph break only"):
        gradients(counted(model)[0], handle)
    torch._dynamo.reset()
    got = gradients(counted(model, fullgraph=False)[0], handle)
    torch.testing.assert_close(got, wanted)


def test_gradients_without_a_reference_are_one_graph() -> None:
    model = tiny_wan(layers=1).train()
    handle = put_on(model)
    model.enable_gradient_checkpointing()
    wanted = gradients(model, handle)
    compiled, counter = counted(model, "aot_eager")
    torch.testing.assert_close(gradients(compiled, handle), wanted)
    assert counter.frame_count == 1 and len(wanted) > 0


# ---------------------------------------------------------------------------------- the operators


class Owner:
    """An attachment of which the operators ask little."""

    reference_passes = 3

    def current_passes(self, latents: Tensor) -> list[Any]:
        return []

    def observe(self, layer: int, q: Tensor, k: Tensor, current: Any) -> None:
        """Nobody watches."""


def test_the_operators_keep_to_their_schema() -> None:
    registered = programs.Registered(Owner())
    arguments = (torch.zeros(1, 16, 3, 8, 12), registered.number, None)
    torch.library.opcheck(torch.ops.genhoi.prepare_references.default, arguments)
    ready = torch.ops.genhoi.prepare_references(*arguments)
    assert ready.tolist() == [int(registered.number), 3]


def test_a_copy_has_another_number() -> None:
    registered = programs.Registered(Owner())
    other = copy.deepcopy(registered)
    assert other.owner is not registered.owner
    assert int(other.number) != int(registered.number)


def test_references_that_are_gone_or_mixed_up() -> None:
    registered = programs.Registered(Owner())
    q = torch.zeros(1, 6, 2, 16)

    def attend(number: int, passes: int) -> None:
        ready, layer = torch.tensor([number, passes]), torch.tensor(0)
        torch.ops.genhoi.attend_prepared(q, q, q, [], None, None, ready, layer)

    with pytest.raises(RuntimeError, match="two forward passes in one program"):
        attend(int(registered.number), 2)
    with pytest.raises(RuntimeError, match="an adapter that is gone"):
        attend(-1, 3)


# ---------------------------------------------------------------------------------------- export


class WithReference(nn.Module):
    """The reference and its mask are inputs, as docs/model_layer.md has it."""

    def __init__(self, handle: Attachment) -> None:
        super().__init__()
        self.transformer, self.handle = handle.transformer, handle

    def forward(self, reference: Tensor, mask: Tensor, **inputs: Any) -> Any:
        self.handle.set_reference([reference], mask)
        return self.transformer(**inputs)


def test_exported_with_the_reference_as_an_input() -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    arguments = (reference(seed=9), some_tokens(seed=9))
    with torch.no_grad():
        program = torch.export.export(WithReference(handle), arguments, inputs(model))
    for seed in (3, 8):
        handle.set_reference([reference(seed=seed)], some_tokens(seed=seed))
        (got,) = program.module()(reference(seed=seed), some_tokens(seed=seed), **inputs(model))
        assert torch.equal(got, eager(model))


@contextmanager
def warned(expected: bool) -> Iterator[None]:
    with pytest.warns() as caught:
        yield
    assert any("makes constants" in str(one.message) for one in caught) == expected


def exported(model: Any) -> Callable[..., Any]:
    with torch.no_grad():
        program = torch.export.export(model, (), inputs(model))
    module: Callable[..., Any] = program.module()
    return module


def test_an_export_of_a_set_reference_warns_that_it_stays() -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    handle.set_reference([reference()], some_tokens())
    wanted = run(model)
    with pytest.warns(UserWarning, match="torch.export makes constants of the program"):
        program = exported(model)
    assert torch.equal(run(model), wanted)  # no tensor of the trace is left behind
    handle.set_reference(None)
    assert torch.equal(program(**inputs(model))[0], wanted)


@pytest.mark.filterwarnings("error:references")
def test_an_export_without_a_reference_is_silent() -> None:
    model = tiny_wan(layers=1)
    put_on(model)
    assert torch.equal(exported(model)(**inputs(model))[0], run(model))


@pytest.mark.slow
def test_ahead_of_time_with_the_reference_as_an_input(tmp_path: Any) -> None:
    model = tiny_wan(layers=1)
    handle = put_on(model)
    arguments = (reference(seed=9), some_tokens(seed=9))
    with torch.no_grad():
        program = torch.export.export(WithReference(handle), arguments, inputs(model))
        path = str(tmp_path / "wan.pt2")
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=quick)
    handle.set_reference([reference()], some_tokens())
    loaded = torch._inductor.aoti_load_package(path)
    (got,) = loaded(reference(), some_tokens(), **inputs(model))
    torch.testing.assert_close(got, eager(model), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ VACE


def vace() -> tuple[Any, Attachment]:
    model = tiny_vace(num_layers=1, vace_layers=[0])
    handle = attach(model, lively_adapter(model))
    handle.set_reference_frames(2)
    return model, handle


def test_vace_is_compiled_once() -> None:
    model, handle = vace()
    compiled, counter = counted(model)

    def check(**changes: Any) -> None:
        arguments = vace_inputs(model) | changes
        with torch.no_grad():
            assert torch.equal(compiled(**arguments)[0], model(**arguments)[0])

    check()
    with torch._dynamo.config.patch(NOT_AGAIN):
        check(timestep=torch.tensor([30.0]))
        check(**vace_inputs(model, seed=9))
    handle.set_reference_frames(0)
    check()
    with torch._dynamo.config.patch(NOT_AGAIN):
        handle.set_reference_frames(2)
        check()
    assert counter.frame_count == 2


def test_vace_trains_and_exports_whole() -> None:
    model, handle = vace()
    weights = [p for p in handle.adapter.parameters() if p.requires_grad]
    arguments = vace_inputs(model, grid=VACE_GRID)

    def grads(called: Any) -> Any:
        out = called(**arguments)[0].square().mean()
        return torch.autograd.grad(out, weights, allow_unused=True)

    torch.testing.assert_close(grads(counted(model, "aot_eager")[0]), grads(model))
    with torch.no_grad():
        program = torch.export.export(model, (), arguments)
        assert torch.equal(program.module()(**arguments)[0], model(**arguments)[0])
