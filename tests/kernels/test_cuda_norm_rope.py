"""The CUDA prologue kernels by their launchers: against float64, on a GPU or an emulated one.

`EMULATED_GPU=80 PYTHONPATH=tools/emugpu .venv-cuda/bin/python -m pytest -p emugpu.pytest_plugin`
runs this file with checks for races, for memory that nobody wrote and for what is out of bounds.
"""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.cases import assert_within_budget, rounded
from torch import Tensor

from genhoi_kernels import (
    HeadSlidingRope,
    ReferenceFramesRope,
    VideoRope,
    apply_rope,
    qk_norm_rope,
)
from genhoi_kernels.rope import token_places

Rope = VideoRope | HeadSlidingRope | ReferenceFramesRope

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "norm_rope.cu"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
CODES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
EPS = 1e-6

pytestmark = [
    pytest.mark.nvcc,
    pytest.mark.skipif(not SOURCE.is_file(), reason="not run from the package's source tree"),
    pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH or in /usr/local/cuda"),
]
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, hardware or emulated"),
    pytest.mark.emulated(racecheck="raise", initcheck="raise"),
]


# ------------------------------------------------------------------------------- csrc/cuda/launch.h


class Tokens(Structure):
    """GenhoiTokens."""

    _fields_ = [("data", c_void_p), ("batch", c_int64), ("token", c_int64), ("head", c_int64)]


class Angles(Structure):
    """GenhoiAngles."""

    _fields_ = [
        *[(name, c_void_p) for name in ("cosines", "sines", "places")],
        *[(name, c_int32) for name in ("row_table", "col_table")],
    ]


class NormRope(Structure):
    """GenhoiNormRope."""

    _fields_ = [
        *[(name, c_int32) for name in ("dtype", "batch", "tokens", "heads", "head_dim")],
        ("eps", c_float),
        ("x", Tokens),
        ("weight", c_void_p),
        ("angles", Angles),
        ("inverse", c_int32),
        ("y", c_void_p),
    ]


class NormRopeBackward(Structure):
    """GenhoiNormRopeBackward."""

    _fields_ = [
        ("of", NormRope),
        ("grad", Tokens),
        *[(name, c_void_p) for name in ("grad_x", "grad_weight", "partials")],
    ]


class Plan(Structure):
    """GenhoiPlan."""

    _fields_ = [("grid", c_uint32 * 3), ("block", c_uint32), ("shared", c_uint32)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The launchers, with PTX that any GPU from sm_80 on can run."""
    path = tmp_path_factory.mktemp("cuda") / "norm_rope.so"
    options = ["-shared", "-cudart", "shared", "-std=c++17", "-Xcompiler", "-fPIC"]
    target = ["-gencode", "arch=compute_80,code=compute_80"]
    subprocess.run([str(NVCC), *options, *target, "-o", str(path), str(SOURCE)], check=True)
    loaded = ctypes.CDLL(str(path))
    for name, call in (("forward", NormRope), ("backward", NormRopeBackward)):
        getattr(loaded, f"genhoi_norm_rope_{name}").argtypes = [POINTER(call), c_void_p]
        getattr(loaded, f"genhoi_norm_rope_{name}_plan").argtypes = [POINTER(call), POINTER(Plan)]
    return loaded


@dataclass
class Prologue:
    """The launchers for tensors [batch, tokens, heads, head_dim] on the GPU."""

    library: ctypes.CDLL
    rope: Rope

    def call(self, x: Tensor, weight: Tensor | None, y: Tensor | None, inverse: bool) -> NormRope:
        """A call, whose tables live as long as this object."""
        tables = self.rope.tables(device=x.device, dtype=torch.float32)
        flat = [table.reshape(-1, 2) for table in tables]
        both = torch.cat(flat)
        self.cosines, self.sines = both[:, 0].contiguous(), both[:, 1].contiguous()
        self.places = token_places(self.rope, x.shape[1], x.device)
        angles = Angles(
            *(table.data_ptr() for table in (self.cosines, self.sines, self.places)),
            len(flat[0]),
            len(flat[0]) + len(flat[1]),
        )
        return NormRope(
            CODES[x.dtype],
            *x.shape,
            EPS,
            tokens_of(x),
            None if weight is None else weight.data_ptr(),
            angles,
            inverse,
            None if y is None else y.data_ptr(),
        )

    def forward(self, x: Tensor, weight: Tensor | None, inverse: bool = False) -> Tensor:
        """Norm, with a weight, and rotation."""
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        call = self.call(x, weight, y, inverse)
        assert self.library.genhoi_norm_rope_forward(byref(call), stream()) == 0
        torch.cuda.synchronize()
        return y

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and the weight."""
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dweight = torch.empty_like(weight)
        call, plan = NormRopeBackward(self.call(x, weight, None, False), tokens_of(grad)), Plan()
        call.grad_x, call.grad_weight = dx.data_ptr(), dweight.data_ptr()
        assert self.library.genhoi_norm_rope_backward_plan(byref(call), byref(plan)) == 0
        parts = torch.empty(plan.grid[0], weight.numel(), device=x.device)
        call.partials = parts.data_ptr()
        assert self.library.genhoi_norm_rope_backward(byref(call), stream()) == 0
        torch.cuda.synchronize()
        return dx, dweight


def tokens_of(x: Tensor) -> Tokens:
    assert x.stride(3) == 1
    return Tokens(x.data_ptr(), *x.stride()[:3])


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


# -------------------------------------------------------------------------------------------- cases

SOME_HEADS = HeadSlidingRope(
    (4, 2, 2),
    ((2, 3), (1, 1), (4, 2)),
    head_dim=24,
    num_heads=7,
    first_head=3,
    schedule="release",
)

# Of its tokens from the fourth on, five turn per head.
SOME_FRAMES = ReferenceFramesRope(
    (4, 1, 5), (1,), head_dim=128, num_heads=13, first_head=1, token_offset=2
)

# (rotation, batch, tokens, heads)
CASES: list[tuple[Rope, int, int, int]] = [
    (VideoRope((1, 1, 1), head_dim=8), 1, 1, 1),
    (VideoRope((3, 2, 5), head_dim=24, token_offset=7), 2, 23, 3),
    (VideoRope((2, 3, 7), head_dim=128, token_offset=0), 1, 41, 5),
    (VideoRope((2, 2, 2), head_dim=128, token_offset=0), 2, 7, 12),
    (VideoRope((1, 1, 3), head_dim=128), 1, 3, 40),
    (VideoRope((2, 2, 2), head_dim=96, token_offset=0), 1, 5, 16),
    (VideoRope((2, 2, 2), head_dim=12, token_offset=0), 3, 7, 2),
    (VideoRope((2, 2, 2), head_dim=2, token_offset=0), 1, 5, 20),
    (SOME_HEADS, 2, 15, 4),
    (HeadSlidingRope((4, 2, 2), ((1, 3),), head_dim=128, num_heads=9), 1, 3, 9),
    (HeadSlidingRope((4, 2, 2), ((2, 1),), head_dim=20, num_heads=6), 1, 2, 6),
    (SOME_FRAMES, 2, 11, 12),
    (
        ReferenceFramesRope((2, 1, 3), (0,), head_dim=128, num_heads=40, schedule="release"),
        1,
        6,
        40,
    ),
    (ReferenceFramesRope((3, 2, 1), (0, 1), head_dim=20, num_heads=6), 1, 6, 6),
]


def name_of(value: object) -> str:
    """Test ids."""
    if isinstance(value, torch.dtype):
        return str(value)[6:]
    rope, batch, tokens, heads = value  # type: ignore[misc]
    return f"{type(rope).__name__}-D{rope.head_dim}-B{batch}-N{tokens}-H{heads}"


def plain(x: Tensor) -> Tensor:
    return x


def of_projection(x: Tensor) -> Tensor:
    """A chunk of a fused projection: 16-byte accesses still."""
    return torch.cat((x.flip(1), x), 2)[:, :, x.shape[2] :]


def heads_first(x: Tensor) -> Tensor:
    """A view of [batch, heads, tokens, head_dim]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def odd(x: Tensor) -> Tensor:
    """Strides and addresses with which values can only be read one by one."""
    wider = torch.full((*x.shape[:2], x.shape[2] + 1, x.shape[3] + 3), torch.nan).to(x)
    view = wider[:, :, 1:, 1 : 1 + x.shape[3]]
    view.copy_(x)
    return view


LAYOUTS: list[Callable[[Tensor], Tensor]] = [plain, of_projection, heads_first, odd]


def draw(case: tuple[Rope, int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and an upstream gradient in float64, rounded to what the kernels get."""
    rope, batch, tokens, heads = case
    generator = torch.Generator().manual_seed(tokens + 100 * heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, grad = (normal(batch, tokens, heads, rope.head_dim) for _ in range(2))
    weight = rounded(1 + 0.3 * normal(heads * rope.head_dim), torch.float32)
    return rounded(3 * x, dtype), weight, rounded(grad, dtype)


def by_eager(
    rope: Rope, x: Tensor, weight: Tensor, grad: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The formulas in plain PyTorch, in a dtype; the weight in float32 at least."""
    x = x.flatten(2).to(dtype, copy=True).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = weight.to(wide, copy=True).requires_grad_()
    y, _ = qk_norm_rope(x, x, weight, weight, rope, eps=EPS, backend="eager")
    dx, dweight = torch.autograd.grad(y, (x, weight), grad.to(dtype))
    results = {"y": y.detach(), "dx": dx.view_as(grad), "dweight": dweight}
    return {name: value.double() for name, value in results.items()}


# -------------------------------------------------------------------------------------------- tests


class TestOnGpu:
    """Launches."""

    pytestmark = on_gpu

    @pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
    @pytest.mark.parametrize("dtype", CODES, ids=name_of)
    @pytest.mark.parametrize("case", CASES, ids=name_of)
    def test_norm_and_rotation(
        self,
        library: ctypes.CDLL,
        case: tuple[Rope, int, int, int],
        dtype: torch.dtype,
        layout: Callable[[Tensor], Tensor],
    ) -> None:
        """Forward and every gradient within the error budget, whatever the strides."""
        rope = case[0]
        x, weight, grad = draw(case, dtype)
        t = by_eager(rope, x, weight, grad, torch.float64)
        e = by_eager(rope, x, weight, grad, dtype)
        x, grad = (layout(tensor.to("cuda", dtype)) for tensor in (x, grad))
        weight = weight.to("cuda", torch.float32)
        prologue = Prologue(library, rope)
        y = prologue.forward(x, weight)
        dx, dweight = prologue.backward(grad, x, weight)
        for name, result in {"y": y, "dx": dx, "dweight": dweight}.items():
            assert_within_budget(result.cpu().double(), e[name], t[name], dtype, name=name)

    @pytest.mark.parametrize("layout", [plain, odd], ids=lambda layout: layout.__name__)
    @pytest.mark.parametrize("dtype", CODES, ids=name_of)
    @pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[6], CASES[8]], ids=name_of)
    def test_rotation_alone(
        self,
        library: ctypes.CDLL,
        case: tuple[Rope, int, int, int],
        dtype: torch.dtype,
        layout: Callable[[Tensor], Tensor],
    ) -> None:
        """And its inverse, which is its gradient."""
        rope = case[0]
        x, _, grad = draw(case, dtype)
        prologue = Prologue(library, rope)
        y = prologue.forward(layout(x.to("cuda", dtype)), None)
        dx = prologue.forward(layout(grad.to("cuda", dtype)), None, inverse=True)

        def turn(kept: torch.dtype) -> list[Tensor]:
            leaf = x.to(kept, copy=True).requires_grad_()
            turned = apply_rope(leaf, rope, backend="eager")
            (gradient,) = torch.autograd.grad(turned, leaf, grad.to(kept))
            return [turned.detach().double(), gradient.double()]

        for name, result, e, t in zip(
            ("y", "dx"), (y, dx), turn(dtype), turn(torch.float64), strict=True
        ):
            assert_within_budget(result.cpu().double(), e, t, dtype, name=name)

    def test_in_place(self, library: ctypes.CDLL) -> None:
        """y may be x."""
        case = CASES[2]
        x, weight, _ = (tensor.float().cuda() for tensor in draw(case, torch.float32))
        prologue = Prologue(library, case[0])
        wanted = prologue.forward(x, weight)
        call = prologue.call(x, weight, x, False)
        assert library.genhoi_norm_rope_forward(byref(call), stream()) == 0
        torch.cuda.synchronize()
        assert torch.equal(x, wanted)

    @pytest.mark.parametrize(
        "case",
        [
            (VideoRope((7, 11, 9), head_dim=16, token_offset=0), 2, 691, 2),
            (VideoRope((7, 11, 9), head_dim=128, token_offset=0), 1, 523, 9),  # two warps
        ],
        ids=name_of,
    )
    def test_more_tokens_than_parts(
        self, library: ctypes.CDLL, case: tuple[Rope, int, int, int]
    ) -> None:
        """Blocks of the gradient that take several tokens, not all as many; twice the same bits."""
        rope = case[0]
        x, weight, grad = draw(case, torch.float32)
        t = by_eager(rope, x, weight, grad, torch.float64)
        e = by_eager(rope, x, weight, grad, torch.float32)
        on_gpu = [tensor.to("cuda", torch.float32) for tensor in (grad, x, weight)]
        dx, dweight = Prologue(library, rope).backward(*on_gpu)
        assert_within_budget(dx.cpu().double(), e["dx"], t["dx"], torch.float32)
        assert_within_budget(dweight.cpu().double(), e["dweight"], t["dweight"], torch.float32)
        again = Prologue(library, rope).backward(*on_gpu)
        assert torch.equal(again[0], dx) and torch.equal(again[1], dweight)

    @pytest.mark.parametrize(("tokens", "heads"), [(0, 3), (5, 0)], ids=["no token", "no head"])
    def test_nothing_to_do(self, library: ctypes.CDLL, tokens: int, heads: int) -> None:
        """The weight's gradient is zero."""
        rope = VideoRope((2, 2, 2), head_dim=16)
        x = torch.empty(2, tokens, heads, 16, device="cuda")
        weight = torch.ones(16 * heads, device="cuda")
        prologue = Prologue(library, rope)
        assert prologue.forward(x, weight).shape == x.shape
        assert prologue.backward(x, x, weight)[1].eq(0).all()

    def test_nan_stays_in_its_row(self, library: ctypes.CDLL) -> None:
        case = CASES[3]
        x, weight, _ = (tensor.float().cuda() for tensor in draw(case, torch.float32))
        clean = Prologue(library, case[0]).forward(x, weight)
        x[1, 3, 2, 7] = torch.nan
        rotated = Prologue(library, case[0]).forward(x, weight)
        assert rotated[1, 3].isnan().all()
        rotated[1, 3] = clean[1, 3]
        assert torch.equal(rotated, clean)

    def test_plans_are_the_launches(self, library: ctypes.CDLL, launches: list) -> None:
        x, weight, grad = (tensor.float().cuda() for tensor in draw(CASES[2], torch.float32))
        prologue, plan = Prologue(library, CASES[2][0]), Plan()
        prologue.forward(x, weight)
        prologue.backward(grad, x, weight)
        shapes = [(launch["grid"], launch["block"][0], launch["smem"]) for launch in launches]
        call = prologue.call(x, weight, x, False)
        assert library.genhoi_norm_rope_forward_plan(byref(call), byref(plan)) == 0
        assert (tuple(plan.grid), plan.block, plan.shared) == shapes[0]
        backward = NormRopeBackward(call, tokens_of(grad), x.data_ptr(), None, x.data_ptr())
        assert library.genhoi_norm_rope_backward_plan(byref(backward), byref(plan)) == 0
        assert (tuple(plan.grid), plan.block, plan.shared) == shapes[1]
        assert len(shapes) == 3

    def test_refuses_what_it_cannot_do(self, library: ctypes.CDLL) -> None:
        """Error 1, cudaErrorInvalidValue, and no launch."""
        rope = VideoRope((2, 2, 2), head_dim=12)
        prologue = Prologue(library, rope)
        for heads in (1, 1536):  # 12 values, and too many
            x = torch.zeros(1, 2, heads, 12)
            call = prologue.call(x.cuda(), None, x.cuda(), False)
            assert library.genhoi_norm_rope_forward(byref(call), stream()) == 1
        x = torch.zeros(1, 2, 2, 12, device="cuda")
        call = prologue.call(x, None, x[..., 1:], False)
        assert library.genhoi_norm_rope_forward(byref(call), stream()) == 1
        call = prologue.call(x, None, x, False)
        backward = NormRopeBackward(call, tokens_of(x), x.data_ptr(), x.data_ptr(), x.data_ptr())
        assert library.genhoi_norm_rope_backward(byref(backward), stream()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_nothing_spills(arch: str, tmp_path: Path) -> None:
    """All is held in registers."""
    command = [str(NVCC), "-cubin", "-std=c++17", f"-arch={arch}", "-Xptxas", "-v"]
    process = subprocess.run(
        [*command, "-o", str(tmp_path / "norm_rope.cubin"), str(SOURCE)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", process.stderr)
    assert len(spills) == 13
    assert set(spills) == {("0", "0")}
