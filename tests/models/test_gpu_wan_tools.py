"""An attached Wan under diffusers' and torch's tools, on a GPU's streams: hardware only."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers, for the Wan transformer")

from support.tiny_vace import tiny_vace, vace_inputs
from support.tiny_wan import inputs, lively_adapter, reference, some_tokens, tiny_wan
from torch import Tensor

from genhoi import attach, attach_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif("emugpu" in sys.modules, reason="an emulated GPU has no streams"),
]
both_families = pytest.mark.parametrize("vace", [False, True], ids=["wan", "vace"])
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def made(vace: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Return a model, an adapter, and arguments on the GPU; the first two on the CPU."""
    model = tiny_vace() if vace else tiny_wan(layers=3)
    arguments = vace_inputs(model) if vace else inputs(model)
    on_gpu = {n: x.cuda() if torch.is_tensor(x) else x for n, x in arguments.items()}
    return model, lively_adapter(model), on_gpu


def put_to_work(model: Any, adapter: Any, vace: bool) -> Any:
    handle = attach(model, adapter) if vace else attach(model, adapter, preset="paper")
    refer(handle, vace)
    return handle


def refer(handle: Any, vace: bool, seed: int = 3) -> None:
    if vace:
        handle.set_reference_frames(2)
    else:
        handle.set_reference([reference(seed=seed).cuda()], some_tokens().cuda())


def run(model: Any, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        (out,) = model(**arguments)
    torch.cuda.synchronize()
    assert isinstance(out, Tensor)
    return out


@both_families
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("to_disk", [False, True])
def test_group_offload(tmp_path: Path, vace: bool, kind: str, stream: bool, to_disk: bool) -> None:
    """As on the GPU alone, bit for bit, step after step."""
    model, adapter, arguments = made(vace)
    put_to_work(model.cuda(), adapter.cuda(), vace)
    wanted = run(model, arguments)
    model, adapter, arguments = made(vace)
    handle = attach(model, adapter) if vace else attach(model, adapter, preset="paper")
    model.enable_group_offload(
        GPU,
        CPU,
        offload_type=kind,
        num_blocks_per_group=1,
        use_stream=stream,
        offload_to_disk_path=str(tmp_path) if to_disk else None,
    )
    refer(handle, vace)
    for _ in range(3):
        assert torch.equal(run(model, arguments), wanted)
    assert vace or handle.reference_passes == 1


@both_families
def test_compiled_whole(vace: bool) -> None:
    """One program by Inductor for all steps and references, within float32's rounding."""
    model, adapter, arguments = made(vace)
    handle = put_to_work(model.cuda(), adapter.cuda(), vace)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    run(compiled, arguments)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (3, 8):
            refer(handle, vace, seed)
            arguments["timestep"] = arguments["timestep"] - 50
            wanted, out = run(model, arguments), run(compiled, arguments)
            torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)


def test_two_experts_that_come_and_go() -> None:
    """Model offload as diffusers' pipelines do it: one expert on the GPU at a time."""
    pytest.importorskip("accelerate", reason="needs accelerate, for model offload")
    from accelerate import cpu_offload_with_hook

    high, adapter, arguments = made(False)
    low = made(False)[0]
    pipe = SimpleNamespace(transformer=high, transformer_2=low)
    handle = attach_pipeline(pipe, adapter, preset="paper")
    _, first = cpu_offload_with_hook(high, GPU)
    _, second = cpu_offload_with_hook(low, GPU, prev_module_hook=first)
    refer(handle, False)
    outs = [run(expert, arguments) for expert in (high, high, low, low)]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert handle.reference_passes == 2
    second.offload()


def test_weights_in_8_bits_between_steps() -> None:
    """Layerwise casting keeps the adapter whole; a reference still counts."""
    model, adapter, arguments = made(False)
    handle = put_to_work(model.cuda(), adapter.cuda(), False)
    wanted = run(model, arguments)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    out = run(model, arguments)
    assert out.isfinite().all()
    assert (out - wanted).norm() < 0.2 * wanted.norm()
    handle.set_reference(None)
    assert (run(model, arguments) - out).norm() > 0
