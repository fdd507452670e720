"""The flash backend on torch's own attentions, cuDNN's and FlashAttention 2, on a real GPU.

The emulated one has neither: there, and without a GPU, test_flash.py has stand-ins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.cases import Case, arguments, device_of, leaves, make_case
from support.flash_cases import CASES, HALF, WHOLE, check_budget, run, settings
from support.flash_standins import TORCH_OWN

import genhoi_kernels as gk
from genhoi_kernels.backends.flash import backend as flash
from genhoi_kernels.backends.flash import torch_own, versions
from genhoi_kernels.tune.timing import is_hardware

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(params=list(TORCH_OWN))
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Each of torch's own, its operators on this GPU; cuDNN is asked to train."""
    finder = getattr(versions, TORCH_OWN[request.param])
    if finder() is None:
        cudnn = torch_own.cudnn_version()
        pytest.skip(f"torch {torch.__version__} with cuDNN {cudnn} has no {request.param}")
    monkeypatch.setattr(versions, "_FINDERS", (finder,))
    monkeypatch.setenv("GENHOI_CUDNN_BACKWARD", "1")
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory stays poisoned
    versions.installed.cache_clear()
    reason = gk.supports("flash", WHOLE.call("flash"))
    if reason is None:
        yield flash.chosen(WHOLE.call("flash"))
    torch.use_deterministic_algorithms(True)
    monkeypatch.undo()
    versions.installed.cache_clear()
    if not is_hardware(torch.device("cuda")):
        pytest.skip(f"the emulated GPU has no fused attention: {reason}")
    assert reason is None, reason


LARGE = Case(
    rows=1500,
    keys=1300,
    heads=3,
    dim=128,
    lengths=(200, 77),
    bias=(0.5, -0.5),
    mask="random",
    mask_dtype=torch.uint8,
    mask_gate=True,
    gate="token",
    batch=2,
    dtype=HALF,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", [*CASES, LARGE], ids=str)
def test_budget_on_hardware(real: Any, case: Case, dtype: torch.dtype) -> None:
    check_budget(dataclasses.replace(case, dtype=dtype))


@pytest.mark.parametrize("ref_batch", [1, 2])
def test_runs_on_hardware_agree(real: Any, ref_batch: int) -> None:
    """Bit for bit: cuDNN's forward pass, and both passes of torch's FlashAttention."""
    case = dataclasses.replace(LARGE, ref_batch=ref_batch)
    inputs = make_case(case)
    first = run(case, "flash", HALF, inputs)
    forward = {"out", "lse", "gate_sum"}
    exact = forward if isinstance(real, torch_own.TorchCudnn) else set(first)
    for _ in range(3):
        again = run(case, "flash", HALF, inputs)
        for name in exact & set(first):
            assert torch.equal(first[name], again[name]), name
    assert settings() == (True, True)


def test_other_counts_of_rows_and_other_strides_on_hardware(real: Any) -> None:
    """What cuDNN made for one call must not be taken for the next."""
    for layout in ("plain", "fused", "heads", "padded"):
        for seed in range(3):
            # As many keys as rows: q, k and v can be chunks of one projection.
            case = dataclasses.replace(LARGE, batch=1, rows=700, keys=700, layout=layout, seed=seed)
            check_budget(case)


def test_nothing_waits_for_the_gpu_with_a_gate(real: Any) -> None:
    """Not in a second call: the first copies small tables, and cuDNN makes its plans."""
    args = arguments(LARGE, make_case(LARGE), HALF, device_of("flash"))
    up = torch.randn(args["q"].shape, device="cuda").to(HALF)

    def both() -> Any:
        out = gk.reference_attention(**args, backend="flash")[0]
        return out, *torch.autograd.grad(out, list(leaves(args).values()), up)

    both()
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_of_the_forward_pass(real: Any) -> None:
    args = arguments(LARGE, make_case(LARGE), HALF, device_of("flash"))
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            wanted = gk.reference_attention(**args, backend="flash")[0]
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = gk.reference_attention(**args, backend="flash")[0]
        out.fill_(float("nan"))
        graph.replay()
    assert torch.equal(out, wanted)
