"""The CUDA backward kernels by their launchers: against float64, on a GPU or an emulated one.

`EMULATED_GPU=80 PYTHONPATH=tools/emugpu .venv-cuda/bin/python -m pytest -p emugpu.pytest_plugin`
runs this file with checks for races, for memory that nobody wrote and for what is out of bounds.
"""

import ctypes
import math
from collections.abc import Callable
from ctypes import POINTER, byref, c_int32, c_void_p
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.cases import assert_within_budget, left_of_a_single_key, rounded
from support.cuda_structs import Attention, Backward, Gate, GateBackward, Plan, Scratch, Tokens
from torch import Tensor

from genhoi_kernels.backends import native

CODES = {torch.bfloat16: 0, torch.float16: 1}
KERNELS = 6  # of GenhoiBackwardKernel
REF_DKDV, SWEEP = 3, 5  # GENHOI_BWD_REF_DKDV, GENHOI_BWD_SWEEP

pytestmark = pytest.mark.skipif(
    native.cuda_library is None, reason=f"no CUDA library: {native.cuda_missing_reason}"
)
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, hardware or emulated"),
    pytest.mark.emulated(racecheck="raise", initcheck="raise"),
]


def has_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    """The launchers of the CUDA library, by their C interface."""
    loaded = ctypes.CDLL(str(native.cuda_library))
    for name in ("backward_preprocess", "backward"):
        getattr(loaded, f"genhoi_attention_{name}").argtypes = [POINTER(Backward), c_void_p]
    loaded.genhoi_attention_backward_scratch.argtypes = [POINTER(Backward), POINTER(Scratch)]
    plan = loaded.genhoi_attention_backward_plan
    plan.argtypes = [POINTER(Backward), c_int32, POINTER(Plan)]
    loaded.genhoi_flow_gate_backward.argtypes = [POINTER(GateBackward), c_void_p]
    loaded.genhoi_flow_gate_backward_plan.argtypes = [POINTER(GateBackward), POINTER(Plan)]
    return loaded


# -------------------------------------------------------------------------------------------- cases


def plain(x: Tensor) -> Tensor:
    return x


def heads_first(x: Tensor) -> Tensor:
    """A view of [batch, heads, tokens, head_dim]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def of_projection(x: Tensor) -> Tensor:
    """A part of wider tokens, with NaN around it."""
    wider = torch.full((*x.shape[:2], x.shape[2] + 1, x.shape[3] + 8), torch.nan).to(x)
    view = wider[:, :, 1:, 8:]
    view.copy_(x)
    return view


@dataclass(frozen=True)
class Case:
    """A call. bits: which references rows see, "all", "random", or "few" tiles of them."""

    rows: int
    keys: int
    head_dim: int = 64
    heads: int = 1
    batch: int = 1
    references: tuple[int, ...] = ()
    ref_batch: int = 1
    bits: str = "all"
    bias: bool = False
    dlse: bool = False
    scale: float | None = None
    layout: Callable[[Tensor], Tensor] = plain

    @property
    def name(self) -> str:
        """Test id."""
        refs = "+".join(map(str, self.references)) or "none"
        return f"D{self.head_dim}-B{self.batch}-H{self.heads}-N{self.rows}-K{self.keys}-R{refs}"


CASES = [
    Case(1, 1),
    Case(65, 31, head_dim=40, heads=2, layout=heads_first),
    Case(131, 67, head_dim=128, references=(5, 37), bits="random", bias=True, dlse=True),
    Case(130, 131, head_dim=96, batch=2, heads=2, references=(129,), ref_batch=2, bits="random"),
    Case(65, 257, head_dim=64, batch=2, references=(1, 0, 131), bits="random", bias=True),
    Case(129, 32, head_dim=128, batch=2, references=(33, 7, 2), bits="few", layout=of_projection),
    Case(257, 13, head_dim=72, references=(17, 3), bits="few", bias=True, dlse=True, scale=0.3),
    Case(70, 128, head_dim=8, batch=3, heads=2, references=(130,), ref_batch=3, bias=True),
    Case(129, 0, head_dim=128, references=(3,), dlse=True),
    Case(66, 0, head_dim=64, references=(3, 9), bits="random"),
    Case(320, 193, head_dim=128, references=(64, 65), bits="few", bias=True, dlse=True),
    # Several tiles of any kernel, which go round its rings; and none.
    Case(401, 347, head_dim=128, references=(130, 250), bits="random", bias=True, dlse=True),
    Case(389, 391, head_dim=96, references=(257,), layout=of_projection),
    Case(395, 401, head_dim=64, batch=2, references=(259, 3), bits="random"),
    Case(0, 35, head_dim=128, references=(9, 3), bias=True),
]
NAMES = ("dq", "dk", "dv", "dk_ref", "dv_ref", "dref_bias")


@dataclass
class Inputs:
    """Tensors of a call, tokens in float64; bits are [batch, rows]."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_ref: Tensor
    v_ref: Tensor
    dout: Tensor
    bits: Tensor
    bias: Tensor
    dlse: Tensor


def draw(case: Case, dtype: torch.dtype) -> Inputs:
    """Random numbers that the dtype can hold."""
    generator = torch.Generator().manual_seed(case.rows + 1000 * case.keys)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def tokens(batch: int, count: int) -> Tensor:
        return rounded(normal(batch, count, case.heads, case.head_dim), dtype)

    references = len(case.references)
    shape = (case.batch, case.rows)
    bits = torch.randint(0, 2**references, shape, generator=generator)
    if case.bits == "all":
        bits = torch.full(shape, 2**references - 1)
    elif case.bits == "few":  # no tile sees the first reference, and few rows the others
        bits = torch.where(torch.rand(shape, generator=generator) < 0.02, bits, 0) & ~1
        bits[:, : case.rows // 2] = 0
    return Inputs(
        q=tokens(case.batch, case.rows),
        k=tokens(case.batch, case.keys),
        v=tokens(case.batch, case.keys),
        k_ref=tokens(case.ref_batch, sum(case.references)),
        v_ref=tokens(case.ref_batch, sum(case.references)),
        dout=tokens(case.batch, case.rows),
        bits=bits.to(torch.int32),
        bias=rounded(normal(references) * case.bias, torch.float32),
        dlse=rounded(normal(case.batch, case.heads, case.rows) * case.dlse, torch.float32),
    )


def scale_of(case: Case) -> float:
    return case.scale or case.head_dim**-0.5


@dataclass
class Probabilities:
    """P [B, H, N, keys of both kinds], lse [B, H, N] and the attention [B, N, H, D]."""

    p: Tensor
    lse: Tensor
    out: Tensor
    seen: Tensor  # [B, 1, N, M]


def segments_of(case: Case) -> Tensor:
    """Of each reference token, the number of its reference."""
    lengths = torch.tensor(case.references, dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def attend(case: Case, x: Inputs) -> Probabilities:
    """The forward pass in float64."""
    segments = segments_of(case)
    seen = (x.bits[:, None, :, None].long() >> segments & 1).bool()
    s = torch.einsum("bnhd,bmhd->bhnm", x.q, x.k) * scale_of(case)
    k_ref = x.k_ref.expand(case.batch, -1, -1, -1)
    s_ref = torch.einsum("bnhd,bmhd->bhnm", x.q, k_ref) * scale_of(case) + x.bias[segments]
    s = torch.cat((s, s_ref.masked_fill(~seen, -math.inf)), -1)
    lse = s.logsumexp(-1)
    p = (s - lse[..., None]).exp().nan_to_num()
    values = torch.cat((x.v, x.v_ref.expand(case.batch, -1, -1, -1)), 1)
    return Probabilities(p, lse, torch.einsum("bhnm,bmhd->bnhd", p, values), seen)


def by_formula(
    case: Case, x: Inputs, forward: Probabilities, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """docs/op.md, "Backward", in float64; operands of products rounded to the dtype."""
    segments = segments_of(case)

    def both(video: Tensor, reference: Tensor) -> Tensor:
        return torch.cat((video, reference.expand(case.batch, -1, -1, -1)), 1)

    out = rounded(forward.out, dtype)
    delta = (x.dout * out).sum(-1).transpose(1, 2) - x.dlse
    dp = torch.einsum("bnhd,bmhd->bhnm", x.dout, both(x.v, x.v_ref))
    exact = forward.p * (dp - delta[..., None])
    p, ds = rounded(forward.p, dtype), rounded(exact, dtype)
    dv = torch.einsum("bhnm,bnhd->bmhd", p, x.dout)
    dk = torch.einsum("bhnm,bnhd->bmhd", ds, x.q) * scale_of(case)
    dq = torch.einsum("bhnm,bmhd->bnhd", ds, both(x.k, x.k_ref)) * scale_of(case)
    of_bias = exact[..., case.keys :].sum((0, 1, 2))
    shared = case.ref_batch == 1

    def reference(grad: Tensor) -> Tensor:
        grad = grad[:, case.keys :]
        return rounded(grad.sum(0, keepdim=True) if shared else grad, dtype)

    return {
        "dq": rounded(dq, dtype),
        "dk": rounded(dk[:, : case.keys], dtype),
        "dv": rounded(dv[:, : case.keys], dtype),
        "dk_ref": reference(dk),
        "dv_ref": reference(dv),
        "dref_bias": torch.zeros_like(x.bias).index_add(0, segments, of_bias),
    }


def tokens_of(x: Tensor, batch: int = 0) -> Tokens:
    """batch: where larger than x's, x is every sample's."""
    assert x.numel() == 0 or x.stride(3) == 1
    return Tokens(x.data_ptr(), 0 if x.shape[0] < batch else x.stride(0), *x.stride()[1:3])


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


@dataclass
class Call:
    """A call on the GPU, its tensors and results."""

    case: Case
    tensors: dict[str, Tensor]
    results: dict[str, Tensor]
    struct: Backward

    def run(self, library: ctypes.CDLL, sweep: bool = False) -> dict[str, Tensor]:
        """The gradients, on the CPU. sweep: those of the video by one kernel."""
        stream = torch.cuda.current_stream().cuda_stream
        plan, of = Plan(), self.struct.of
        library.genhoi_attention_backward_plan(byref(self.struct), REF_DKDV, byref(plan))
        parts = torch.empty(self.struct.ref_batch, of.heads, plan.grid[0], device="cuda")
        self.struct.bias_parts = pointer(parts)
        scratch = Scratch()
        library.genhoi_attention_backward_scratch(byref(self.struct), byref(scratch))
        assert not sweep or (scratch.dq_sums > 0 and scratch.dq_counters > 0)
        sums = torch.empty(scratch.dq_sums, device="cuda")
        counters = torch.empty(scratch.dq_counters, dtype=torch.int32, device="cuda")
        self.struct.dq_sums = pointer(sums if sweep else None)
        self.struct.dq_counters = pointer(counters if sweep else None)
        assert library.genhoi_attention_backward_preprocess(byref(self.struct), stream) == 0
        assert library.genhoi_attention_backward(byref(self.struct), stream) == 0
        torch.cuda.synchronize()
        return {name: self.results[name].cpu() for name in NAMES if name in self.results}


def prepare(case: Case, x: Inputs, forward: Probabilities, dtype: torch.dtype) -> Call:
    """Copies everything to the GPU."""
    values = {name: getattr(x, name) for name in ("q", "k", "v", "k_ref", "v_ref", "dout")}
    values["out"] = forward.out
    tensors = {name: case.layout(value.to(dtype)).cuda() for name, value in values.items()}
    if case.layout is not plain:  # .cuda() may have made it contiguous
        tensors = {name: case.layout(value) for name, value in tensors.items()}
    masked, count = case.bits != "all", len(case.references)
    tiles = -(-case.rows // 64)
    padded = torch.zeros(case.batch, tiles * 64, dtype=torch.int32)
    padded[:, : case.rows] = x.bits
    tile_bits = torch.zeros(case.batch, tiles, dtype=torch.int32)
    for segment in range(count):
        tile_bits |= (padded.view(case.batch, tiles, 64) & 1 << segment).amax(-1)
    starts = torch.tensor((0, *case.references)).cumsum(0).to(torch.int32)
    tensors |= {
        "segments": starts.cuda(),
        "bits": x.bits.cuda(),
        "tile_bits": tile_bits.cuda(),
        "bias": x.bias.float().cuda(),
        "lse": forward.lse.float().cuda(),
        "dlse": x.dlse.float().cuda(),
    }

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="cuda")

    results = {name: empty(*tensors[name[1:]].shape) for name in NAMES[:5]}
    results["delta"] = empty(case.batch, case.heads, case.rows, dtype=torch.float32)
    if case.bias:
        results["dref_bias"] = empty(count, dtype=torch.float32)
    struct = Backward(
        of=Attention(
            dtype=CODES[dtype],
            batch=case.batch,
            heads=case.heads,
            head_dim=case.head_dim,
            rows=case.rows,
            keys=case.keys,
            ref_tokens=sum(case.references),
            references=count,
            scale=scale_of(case),
            **{n: tokens_of(tensors[n]) for n in ("q", "k", "v")},
            **{n: tokens_of(tensors[n], case.batch) for n in ("k_ref", "v_ref")},
            segments=pointer(tensors["segments"]),
            ref_bias=pointer(tensors["bias"] if case.bias else None),
            bits=pointer(tensors["bits"] if masked else None),
            bits_batch=case.rows,
            tile_bits=pointer(tensors["tile_bits"] if masked else None),
            tile_bits_batch=tiles,
        ),
        out=tokens_of(tensors["out"]),
        dout=tokens_of(tensors["dout"]),
        lse=pointer(tensors["lse"]),
        dlse=pointer(tensors["dlse"] if case.dlse else None),
        delta=pointer(results["delta"]),
        ref_batch=case.ref_batch,
        **{name: pointer(results.get(name)) for name in NAMES},
    )
    return Call(case, tensors, results, struct)


# -------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: str(dtype)[6:])
class TestOnGpu:
    """Launches."""

    pytestmark = on_gpu

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_gradients(self, library: ctypes.CDLL, case: Case, dtype: torch.dtype) -> None:
        x = draw(case, dtype)
        forward = attend(case, x)
        got = prepare(case, x, forward, dtype).run(library)
        true, eager = by_formula(case, x, forward), by_formula(case, x, forward, dtype)
        left: dict[str, float] = {}
        if case.keys == 1 and not case.references:
            left = left_of_a_single_key(x.q, x.k, x.v, x.dout, scale=scale_of(case), dtype=dtype)
        for name, value in got.items():
            if value.numel():
                assert_within_budget(
                    value.double(),
                    eager[name],
                    true[name],
                    dtype,
                    name=name,
                    left_of_zero=left.get(name, 0.0),
                )

    def test_any_order_of_warps(
        self, library: ctypes.CDLL, dtype: torch.dtype, warp_schedule: str
    ) -> None:
        case = CASES[2]
        x = draw(case, dtype)
        forward = attend(case, x)
        got = prepare(case, x, forward, dtype).run(library)
        again = prepare(case, x, forward, dtype).run(library)
        true, eager = by_formula(case, x, forward), by_formula(case, x, forward, dtype)
        for name, value in got.items():
            assert_within_budget(value.double(), eager[name], true[name], dtype, name=name)
            assert torch.equal(value, again[name]), name

    @pytest.mark.parametrize("head_dim", [64, 96, 128])
    @pytest.mark.parametrize("segment", [0, 1, 2])
    def test_unseen_reference_does_not_reach_rows(
        self, library: ctypes.CDLL, dtype: torch.dtype, head_dim: int, segment: int
    ) -> None:
        case = Case(131, 35, head_dim=head_dim, references=(40, 130, 9), bits="random", bias=True)
        x = draw(case, dtype)
        forward = attend(case, x)
        clean = prepare(case, x, forward, dtype).run(library)
        its = segments_of(case) == segment
        x.k_ref[:, its], x.v_ref[:, its.cumsum(0) * its > 3] = math.nan, math.inf
        poisoned = prepare(case, x, forward, dtype).run(library)
        blind = (x.bits >> segment & 1) == 0
        assert torch.equal(poisoned["dq"][blind], clean["dq"][blind])
        assert poisoned["dq"][~blind].isnan().any(-1).all()
        for name in ("dk", "dv"):
            assert torch.equal(poisoned[name], clean[name])
        for name in ("dk_ref", "dv_ref"):
            assert torch.equal(poisoned[name][:, ~its], clean[name][:, ~its])
        others = torch.arange(3) != segment
        assert torch.equal(poisoned["dref_bias"][others], clean["dref_bias"][others])

    @pytest.mark.parametrize("head_dim", [64, 96, 128])
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_rows_that_see_nothing_do_not_reach_references(
        self, library: ctypes.CDLL, dtype: torch.dtype, head_dim: int, bad: float
    ) -> None:
        case = Case(131, 0, head_dim=head_dim, references=(40, 9), bits="random", bias=True)
        x = draw(case, dtype)
        x.bits[:, ::3] = 0
        forward = attend(case, x)
        clean = prepare(case, x, forward, dtype).run(library)
        assert not clean["dq"][:, ::3].any()
        x.q[:, ::3], x.dout[:, ::3], forward.lse[..., ::3] = bad, -bad, bad
        poisoned = prepare(case, x, forward, dtype).run(library)
        for name in ("dk_ref", "dv_ref", "dref_bias"):
            assert torch.equal(poisoned[name], clean[name]), name

    def test_bias_of_minus_infinity(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        case = Case(65, 17, references=(33, 20), bits="random", bias=True)
        x = draw(case, dtype)
        x.bias[0] = -math.inf
        forward = attend(case, x)
        x.k_ref[:, :33] = math.nan
        got = prepare(case, x, forward, dtype).run(library)
        assert not got["dk_ref"][:, :33].any() and not got["dv_ref"][:, :33].any()
        assert got["dref_bias"][0] == 0
        assert got["dq"].isfinite().all() and got["dref_bias"].isfinite().all()

    def test_without_keys_there_is_no_gradient(
        self, library: ctypes.CDLL, dtype: torch.dtype
    ) -> None:
        case = Case(67, 0, head_dim=128)
        x = draw(case, dtype)
        assert not prepare(case, x, attend(case, x), dtype).run(library)["dq"].any()

    def test_kernels_of_the_gpu(
        self, library: ctypes.CDLL, dtype: torch.dtype, launches: Any
    ) -> None:
        case = Case(70, 5, references=(2,), bias=True)
        x = draw(case, dtype)
        call = prepare(case, x, attend(case, x), dtype)
        launches.clear()
        call.run(library)
        own = "sm90" if has_hopper() else "sm80"
        folders = [("sm80", "sm90")["sm90" in launch["kernel"]] for launch in launches]
        assert folders == ["sm80", own, own, own, "sm80"]

    def test_empty_calls(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        case = Case(3, 5, references=(2,))
        x = draw(case, dtype)
        call = prepare(case, x, attend(case, x), dtype)
        call.struct.of.batch = 0
        got = call.run(library)  # the shared references' gradients are sums over no sample
        assert not got["dk_ref"].any() and not got["dv_ref"].any()
        call.struct.ref_batch = 0
        call.run(library)
        plan = Plan()
        for kernel in range(KERNELS):
            status = library.genhoi_attention_backward_plan(byref(call.struct), kernel, byref(plan))
            assert status == 0 and plan.grid[0] == 0

    def test_refused(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        case = Case(3, 5)
        x = draw(case, dtype)
        struct = prepare(case, x, attend(case, x), dtype).struct
        for head_dim in (0, 12, 136):
            struct.of.head_dim = head_dim
            assert library.genhoi_attention_backward_preprocess(byref(struct), None) == 1
            assert library.genhoi_attention_backward(byref(struct), None) == 1


def test_plans_fit_an_sm(library: ctypes.CDLL) -> None:
    struct, plan = Backward(), Plan()
    of = struct.of
    of.batch, of.heads, of.rows, of.keys, of.references = 2, 3, 1000, 1001, 2
    of.ref_tokens, struct.ref_batch, struct.dref_bias = 300, 1, 1
    most, generation = (227, "sm90") if has_hopper() else (163, "sm80")
    limits = native.module.cuda_limits()["kernels"][generation]
    for of.head_dim, dim in ((8, 64), (64, 64), (72, 96), (96, 96), (128, 128)):
        names = "bwd_dq", "bwd_dkdv", "bwd_dkdv, references"
        wanted = [(limits[x][dim]["threads"], limits[x][dim]["shared_bytes"]) for x in names]
        plans = []
        for kernel in range(SWEEP):
            assert library.genhoi_attention_backward_plan(byref(struct), kernel, byref(plan)) == 0
            assert plan.shared <= most * 1024
            plans.append((plan.block, plan.shared))
        assert plans == [(128, 0), *wanted, (128, 0)]
    grids = []
    for kernel in range(SWEEP):
        library.genhoi_attention_backward_plan(byref(struct), kernel, byref(plan))
        grids.append(tuple(plan.grid))
    assert grids == [(32, 3, 2), (8, 3, 2), (8, 3, 2), (4, 3, 1), (2, 1, 1)]


# ------------------------------------------------------------------------------------------- sweep


# (Cases, and a head dim that TMA pads.)
SWEPT = [case for case in CASES if case.head_dim > 96 and case.rows and case.keys]
SWEPT.append(Case(140, 260, head_dim=104, heads=2, batch=2, layout=heads_first))


@pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.skipif(not has_hopper(), reason="no Hopper GPU")
class TestSweep:
    """dQ, dK and dV of the video's keys by one kernel."""

    pytestmark = on_gpu

    def check(self, case: Case, x: Inputs, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        """Within the budget, the same bits twice, and but for dq those of two kernels."""
        forward = attend(case, x)
        call = prepare(case, x, forward, dtype)
        got, again = call.run(library, sweep=True), call.run(library, sweep=True)
        apart = call.run(library)
        true, eager = by_formula(case, x, forward), by_formula(case, x, forward, dtype)
        for name, value in got.items():
            if value.numel():
                assert_within_budget(value.double(), eager[name], true[name], dtype, name=name)
            assert torch.equal(value, again[name]), name
            assert name == "dq" or torch.equal(value, apart[name]), name

    @pytest.mark.emulated(max_lanes=384)  # a block of threads at a time: none waits for another
    @pytest.mark.parametrize("case", SWEPT, ids=lambda case: case.name)
    def test_gradients(self, library: ctypes.CDLL, case: Case, dtype: torch.dtype) -> None:
        self.check(case, draw(case, dtype), library, dtype)

    def test_blocks_wait_for_each_other(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        case = Case(65, 129, head_dim=128)
        self.check(case, draw(case, dtype), library, dtype)

    @pytest.mark.emulated(max_lanes=384)
    def test_any_order_of_warps(
        self, library: ctypes.CDLL, dtype: torch.dtype, warp_schedule: str
    ) -> None:
        case = Case(131, 67, head_dim=128, references=(5,), bits="random", bias=True, dlse=True)
        self.check(case, draw(case, dtype), library, dtype)

    @pytest.mark.emulated(max_lanes=384)
    def test_keys_that_do_not_exist(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        """Their logits of 0 are so far above the others that exp(0 - lse) is inf."""
        case = Case(70, 131, head_dim=128, scale=0.25)
        x = draw(case, dtype)
        x.k, x.q = rounded(x.k / 16 + 2, dtype), rounded(x.q / 16 - 2, dtype)
        assert attend(case, x).lse.max() < -90
        self.check(case, x, library, dtype)

    def test_scratch(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        """None where there is no such kernel, or it is not wanted."""

        def sizes(**changes: int) -> tuple[int, int]:
            case = Case(70, 131, head_dim=128, heads=2)
            x = draw(case, dtype)
            struct = prepare(case, x, attend(case, x), dtype).struct
            for name, value in changes.items():
                setattr(struct if hasattr(struct, name) else struct.of, name, value)
            scratch = Scratch()
            assert library.genhoi_attention_backward_scratch(byref(struct), byref(scratch)) == 0
            return scratch.dq_sums, scratch.dq_counters

        assert sizes() == (2 * 2 * 64 * 128, 1 + 2 * 2 * 2)
        for changes in ({"rows": 0}, {"keys": 0}, {"batch": 0}, {"dq": 0}, {"dk": 0}):
            assert sizes(**changes)[0] == 0
        assert sizes(head_dim=96)[0] == 0


# --------------------------------------------------------------------------------------- flow gate

MODES = {"token": 1, "sum": 2}


@dataclass(frozen=True)
class GateCase:
    """A call of the gate's kernel."""

    rows: int
    head_dim: int
    mode: str = "token"
    heads: int = 1
    batch: int = 1
    dlse: bool = False
    layout: Callable[[Tensor], Tensor] = plain

    @property
    def name(self) -> str:
        """Test id."""
        return f"{self.mode}-D{self.head_dim}-B{self.batch}-H{self.heads}-N{self.rows}"


GATE_CASES = [
    GateCase(1, 8),
    GateCase(131, 64, heads=2, dlse=True, layout=heads_first),
    GateCase(70, 40, mode="sum", batch=2),
    GateCase(257, 96, dlse=True, layout=of_projection),
    GateCase(129, 72, mode="sum", heads=3),
    GateCase(130, 128, batch=2, heads=2),
    GateCase(65, 128, mode="sum", dlse=True),
]
WEIGHTS = ("norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


def draw_gate(case: GateCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """out, dout, dlse, dgate_sum and the gate's weights, that the dtypes can hold."""
    generator = torch.Generator().manual_seed(case.rows)
    D, F = case.head_dim, case.head_dim // 2

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return rounded(x, dtype)

    tokens = (case.batch, case.rows, case.heads, D)
    return {
        "out": normal(*tokens, dtype=dtype),
        "dout": normal(*tokens, dtype=dtype),
        "dlse": normal(case.batch, case.heads, case.rows),
        "dgate_sum": normal(case.batch, case.heads),
        "norm_weight": rounded(1 + 0.3 * normal(D), torch.float32),
        "norm_bias": normal(D),
        "fc1_weight": rounded(normal(F, D) * D**-0.5, dtype),
        "fc1_bias": normal(F),
        "fc2_weight": normal(F),
        "fc2_bias": normal(1),
    }


def tf32(x: Tensor) -> Tensor:
    """Rounded to 10 bits after the binary point, in float64."""
    bits = x.float().view(torch.int32)
    return (bits + 0x1000 & ~0x1FFF).view(torch.float32).double()


def gate_by_formula(
    case: GateCase, x: dict[str, Tensor], of_product: Callable[[Tensor], Tensor] = plain
) -> dict[str, Tensor]:
    """docs/op.md, "Backward", in float64; of_product rounds operands of products."""
    o, w1 = x["out"], x["fc1_weight"]
    std = (o.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    normed = (o - o.mean(-1, keepdim=True)) / std
    n = normed * x["norm_weight"] + x["norm_bias"]
    u = of_product(n) @ w1.T + x["fc1_bias"]
    phi = torch.special.ndtr(u)
    if case.mode == "token":
        g = ((u * phi) @ x["fc2_weight"] + x["fc2_bias"]).sigmoid()
        dlogit = (x["dout"] * o).sum(-1) * g * (1 - g)
    else:
        g = torch.ones_like(o[..., 0])
        dlogit = x["dgate_sum"][:, None, :].expand_as(g)
    density = (-u * u / 2).exp() / math.sqrt(2 * math.pi)
    du = dlogit[..., None] * x["fc2_weight"] * (phi + u * density)
    dn = of_product(du) @ w1
    dx = dn * x["norm_weight"]
    along = (dx * normed).mean(-1, keepdim=True)
    grad = g[..., None] * x["dout"] + (dx - dx.mean(-1, keepdim=True) - normed * along) / std
    outer = torch.einsum("bnhf,bnhd->fd", of_product(du), of_product(normed))
    db1 = du.sum((0, 1, 2))
    delta = (grad * o).sum(-1).transpose(1, 2) - x["dlse"] * case.dlse
    return {
        "grad": grad,
        "delta": delta,
        "norm_weight": (w1 * outer).sum(0),
        "norm_bias": db1 @ w1,
        "fc1_weight": outer * x["norm_weight"] + db1[:, None] * x["norm_bias"],
        "fc1_bias": db1,
        "fc2_weight": (dlogit[..., None] * u * phi).sum((0, 1, 2)),
        "fc2_bias": dlogit.sum()[None],
    }


def assert_gate_within_budget(
    case: GateCase, x: dict[str, Tensor], got: dict[str, Tensor], dtype: torch.dtype
) -> None:
    true, eager = gate_by_formula(case, x), gate_by_formula(case, x, tf32)
    eager["grad"] = rounded(eager["grad"], dtype)
    for name, value in got.items():
        kind = dtype if name == "grad" else torch.float32
        of_sums = 5e-7 * float(true[name].abs().max())  # in float32, which `eager` doesn't take
        assert_within_budget(value, eager[name], true[name], kind, name=name, e_error=of_sums)


def run_gate(
    library: ctypes.CDLL, case: GateCase, x: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """By the kernel; the sums of its parts, and the weights' gradients from them, in float64."""
    of_tokens = ("out", "dout")
    tensors = {name: value.float().cuda() for name, value in x.items()}
    tensors |= {name: case.layout(x[name].to(dtype).cuda()) for name in of_tokens}
    tensors["fc1_weight"] = x["fc1_weight"].to(dtype).cuda()
    D, F = case.head_dim, case.head_dim // 2
    struct = GateBackward(
        of=Attention(
            dtype=CODES[dtype],
            batch=case.batch,
            heads=case.heads,
            head_dim=D,
            rows=case.rows,
            gate_mode=MODES[case.mode],
            gate=Gate(**{name: tensors[name].data_ptr() for name in WEIGHTS}),
        ),
        **{name: tokens_of(tensors[name]) for name in of_tokens},
        dlse=pointer(tensors["dlse"] if case.dlse else None),
        dgate_sum=pointer(tensors["dgate_sum"] if case.mode == "sum" else None),
    )
    plan = Plan()
    assert library.genhoi_flow_gate_backward_plan(byref(struct), byref(plan)) == 0
    parts = plan.grid[0]
    tiles = -(-case.rows // 128) * case.batch * case.heads
    assert parts == min(256, tiles) and plan.shared <= 163 * 1024
    shapes = {"du_x": (F, D), "dfc1_bias": (F,), "dfc2_weight": (F,), "dfc2_bias": ()}
    results = {name: torch.empty(parts, *shape, device="cuda") for name, shape in shapes.items()}
    results["delta"] = torch.empty(case.batch, case.heads, case.rows, device="cuda")
    results["grad"] = torch.empty(x["out"].shape, dtype=dtype, device="cuda")
    for name, result in results.items():
        setattr(struct, name, result.data_ptr())
    stream = torch.cuda.current_stream().cuda_stream
    assert library.genhoi_flow_gate_backward(byref(struct), stream) == 0
    torch.cuda.synchronize()
    gradients = {name: result.cpu().double() for name, result in results.items()}
    outer, db1 = gradients["du_x"].sum(0), gradients["dfc1_bias"].sum(0)
    return {
        "grad": gradients["grad"],
        "delta": gradients["delta"],
        "norm_weight": (x["fc1_weight"] * outer).sum(0),
        "norm_bias": db1 @ x["fc1_weight"],
        "fc1_weight": outer * x["norm_weight"] + db1[:, None] * x["norm_bias"],
        "fc1_bias": db1,
        "fc2_weight": gradients["dfc2_weight"].sum(0),
        "fc2_bias": gradients["dfc2_bias"].sum()[None],
    }


@pytest.mark.parametrize("dtype", CODES, ids=lambda dtype: str(dtype)[6:])
class TestGateOnGpu:
    """Launches of the gate's kernel."""

    pytestmark = on_gpu

    @pytest.mark.parametrize("case", GATE_CASES, ids=lambda case: case.name)
    def test_gradients(self, library: ctypes.CDLL, case: GateCase, dtype: torch.dtype) -> None:
        x = draw_gate(case, dtype)
        got = run_gate(library, case, x, dtype)
        assert_gate_within_budget(case, x, got, dtype)

    def test_any_order_of_warps(
        self, library: ctypes.CDLL, dtype: torch.dtype, warp_schedule: str
    ) -> None:
        case = GATE_CASES[5]
        x = draw_gate(case, dtype)
        got, again = run_gate(library, case, x, dtype), run_gate(library, case, x, dtype)
        assert_gate_within_budget(case, x, got, dtype)
        for name, value in got.items():
            assert torch.equal(value, again[name]), name

    def test_nothing_to_do(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        of = Attention(dtype=CODES[dtype], batch=2, heads=0, head_dim=64, rows=3, gate_mode=1)
        struct, plan = GateBackward(of=of), Plan()
        assert library.genhoi_flow_gate_backward(byref(struct), None) == 0
        assert library.genhoi_flow_gate_backward_plan(byref(struct), byref(plan)) == 0
        assert plan.grid[0] == 0

    def test_refused(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        struct = GateBackward()
        struct.of.dtype, struct.of.gate_mode = CODES[dtype], 1
        for struct.of.head_dim in (0, 12, 136):
            assert library.genhoi_flow_gate_backward(byref(struct), None) == 1
        struct.of.head_dim, struct.of.gate_mode = 64, 0
        assert library.genhoi_flow_gate_backward(byref(struct), None) == 1
