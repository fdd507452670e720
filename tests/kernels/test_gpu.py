"""The GPU kernels on `cuda` tensors, against the oracle: on hardware, or on the emulated GPU.

`make test-gpu-emulated` runs this file on emulated sm_80 and sm_90 (tools/emugpu): each launch
takes its real path, and its PTX is executed with checks for races, for memory that nobody wrote
and for what is out of bounds. The larger files (test_attention.py and others) hold the same
kernels against the same oracle on many more cases: on hardware, or in Triton's interpreter.
"""

import contextlib
import dataclasses
from typing import Any

import pytest
import test_norm_rope as norm_rope_tests
import torch
from support.cases import Case, arguments, check_budget, make_case, run_with, skip_unless_supported

import genhoi_kernels
from genhoi_kernels import reference_attention
from genhoi_kernels.backends.triton import backend as triton_backend
from genhoi_kernels.backends.triton.tuning import compiler, configs
from genhoi_kernels.backends.triton.tuning.configs import Config
from genhoi_kernels.tune.timing import is_hardware

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, hardware or emulated"),
    pytest.mark.emulated(racecheck="raise", initcheck="raise"),
]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CASES = [
    Case(rows=67, dim=64),
    Case(
        rows=130,
        keys=71,
        dim=128,
        lengths=(35, 18),
        mask="random",
        mask_dtype=torch.int32,
        bias=(0.5, -1.0),
        gate="token",
    ),
    Case(
        batch=2,
        grid=(3, 5, 5),
        dim=96,
        heads=3,
        refs=((3, 4), (1, 1)),
        mask="tail",
        mask_gate=True,
        gate="sequence",
        layout="fused",
    ),
    Case(
        batch=2,
        rows=65,
        dim=40,
        lengths=(17,),
        ref_batch=2,
        mask="random",
        mask_batch=2,
        gate="sum",
        layout="heads",
        scale=-0.3,
    ),
    Case(rows=1, keys=1, dim=16, heads=1, lengths=(1,), mask="all", gate="token"),
    Case(rows=3, keys=0, dim=32, lengths=(5,), mask="random"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_budget(case: Case, dtype: torch.dtype) -> None:
    """out, lse, gate_sum and every gradient within the error budget."""
    case = dataclasses.replace(case, dtype=dtype)
    skip_unless_supported("triton", case.call("triton"))
    check_budget(case, "triton")


@pytest.mark.parametrize(
    "rotation",
    [norm_rope_tests.ROPES[i] for i in (1, 5, 7, 12)],
    ids=["D24", "D128", "heads", "frames"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_norm_rope(rotation: Any, dtype: torch.dtype) -> None:
    """The prologue, forward and backward, within the error budget."""
    norm_rope_tests.test_norm_rope_budget("triton", rotation, dtype, True, strided=True)


def call(case: Case, *, grad: bool) -> dict[str, Any]:
    """Arguments on the GPU, with or without gradients to come."""
    given = arguments(case, make_case(case), case.dtype, torch.device("cuda"))
    if grad:
        return given

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return x.detach()
        return type(x)(*map(plain, x)) if hasattr(x, "_fields") else x

    return {name: plain(x) for name, x in given.items()}


FULL = Case(
    dtype=torch.bfloat16,
    rows=70,
    dim=64,
    lengths=(20,),
    mask="random",
    mask_gate=True,
    gate="token",
)


def test_launches_of_a_forward_pass(launches: Any) -> None:
    """One kernel where everything comes rotated and the mask gate is built."""
    given = call(FULL, grad=False)
    launches.clear()
    reference_attention(**given, backend="triton")
    assert [x["kernel"] for x in launches] == ["attention_fwd"]


def test_launches_of_a_rotating_forward_pass(launches: Any) -> None:
    """One more for each of q, k and k_ref."""
    case = Case(
        dtype=torch.bfloat16, grid=(2, 3, 4), dim=32, refs=((2, 3),), mask="all", mask_gate=True
    )
    given = call(case, grad=False)
    launches.clear()
    reference_attention(**given, backend="triton")
    assert [x["kernel"] for x in launches] == ["norm_rope_fwd"] * 3 + ["attention_fwd"]


def test_launches_of_a_backward_pass(launches: Any) -> None:
    """Through the gate, then queries, video keys and reference keys."""
    given, upstream = call(FULL, grad=True), make_case(FULL).upstream
    launches.clear()
    run_with(given, upstream, "triton")
    assert [x["kernel"] for x in launches] == [
        "attention_fwd",
        "flow_gate_bwd",
        "attention_bwd_dq",
        "attention_bwd_dkdv",
        "attention_bwd_dkdv",
    ]


def test_unseen_rows_keep_their_bits() -> None:
    """In tiles with rows that see the reference, NaN in it: as without any reference."""
    case = Case(dtype=torch.bfloat16, rows=150, dim=64, lengths=(33,), mask="random")
    given = call(case, grad=False)
    given["k_ref"][:, ::2], given["v_ref"][:, 1::2] = float("nan"), float("inf")
    out, lse = reference_attention(**given, backend="triton")
    q, k, v = given["q"], given["k"], given["v"]
    alone, alone_lse = reference_attention(q, k, v, return_lse=True, backend="triton")
    unseen = ~given["mask"][0]
    assert 0 < unseen.sum() < 150
    assert torch.equal(out[:, unseen], alone[:, unseen])
    assert torch.equal(lse[..., unseen], alone_lse[..., unseen])
    assert out[:, ~unseen].isnan().all()


def test_two_runs_are_the_same_bits() -> None:
    runs = [run_with(call(FULL, grad=True), make_case(FULL).upstream, "triton") for _ in "ab"]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_choice_of_a_backend() -> None:
    """A GPU kernel for what it can do, the oracle for float64."""
    q = torch.zeros(1, 4, 1, 16, device="cuda")
    reasons = genhoi_kernels.explain(q, q, q)
    assert reasons["triton"] is None and "cuda" in str(reasons["cpu"])
    wide = genhoi_kernels.explain(q.double(), q.double(), q.double())
    assert wide["eager"] is None and "float64" in str(wide["triton"])


def test_cuda_graph() -> None:
    """A call with a built mask gate can be captured, and replayed with other numbers."""
    if not is_hardware(torch.device("cuda")):
        pytest.skip("the emulated GPU has no CUDA graphs")
    given = call(FULL, grad=False)
    for _ in range(2):
        reference_attention(**given, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, _ = reference_attention(**given, backend="triton")
    given["q"].neg_()
    graph.replay()
    wanted, _ = reference_attention(**given, backend="triton")
    assert torch.equal(captured, wanted)


LOOPS = [
    Case(dtype=torch.bfloat16, rows=131, keys=140, dim=64, heads=1, lengths=(17,)),
    Case(dtype=torch.bfloat16, rows=131, keys=140, dim=20, heads=1, lengths=(17,)),  # no descriptor
]


def with_config(stack: contextlib.ExitStack, case: Case, kernels: str, config: Config) -> None:
    """Within the stack, these kernels in this form."""
    arch = triton_backend.architecture(torch.device("cuda"))
    for kernel in kernels.split():
        stack.enter_context(configs.trying(configs.key_of(arch, kernel, 2, case.dim), config))


def loops_of(case: Case, stack: contextlib.ExitStack, *, descriptors: bool) -> None:
    """Within the stack, pipelined loops that copy in one way."""
    form = Config(64, 64, 32, 4, 2, descriptors=descriptors)
    with_config(stack, case, "forward queries keys reference_keys", form)


@pytest.mark.parametrize("descriptors", [True, False], ids=["descriptors", "pointers"])
@pytest.mark.parametrize("case", LOOPS, ids=str)
def test_pipelined_loops(case: Case, descriptors: bool) -> None:
    """Both ways of copying; where Triton compiles one wrongly, what is launched instead."""
    if descriptors and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("tensor descriptors need sm_90")
    with contextlib.ExitStack() as stack:
        loops_of(case, stack, descriptors=descriptors)
        check_budget(case, "triton")


def test_pipelined_references() -> None:
    """A pipelined loop over several blocks of each reference: the same bits."""
    case = Case(
        dtype=torch.bfloat16,
        rows=131,
        keys=70,
        dim=64,
        heads=1,
        lengths=(70, 33),
        mask="random",
        mask_dtype=torch.int32,
        bias=(0.5, -1.0),
    )
    runs = []
    for stages_r in (1, 2):
        with contextlib.ExitStack() as stack:
            form = Config(64, 32, 16, 4, 2, stages_r=stages_r)
            with_config(stack, case, "forward queries", form)
            runs.append(run_with(call(case, grad=True), make_case(case).upstream, "triton"))
            check_budget(case, "triton")
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_keys_by_fewer_rows_than_a_tile_of_the_mask_gate() -> None:
    case = Case(dtype=torch.bfloat16, rows=131, keys=140, dim=128, heads=1)
    with contextlib.ExitStack() as stack:
        with_config(stack, case, "keys", Config(32, 128, 64, 8, 2))
        check_budget(case, "triton")


def test_race_that_is_gone_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton 3.6 would do to the same loops on sm_90, were they launched as they are."""
    device = torch.device("cuda")
    if compiler.is_sound(triton_backend.architecture(device)) or is_hardware(device):
        pytest.skip("this Triton compiles them well, or there is no emulated GPU to see it")
    monkeypatch.setattr(compiler, "is_sound", lambda arch: True)
    with contextlib.ExitStack() as stack:
        loops_of(LOOPS[0], stack, descriptors=False)
        with pytest.raises(Exception, match=r"missing fence\.proxy\.async"):
            check_budget(LOOPS[0], "triton")
