"""Inputs of the op, runs of it, and the error budget (CONTRIBUTING.md)."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import genhoi_kernels
from genhoi_kernels import (
    GateWeights,
    HeadSlidingRope,
    MaskGate,
    ReferenceFramesRope,
    VideoRope,
    reference_attention,
)
from genhoi_kernels.spec import AttentionCall, RopeCall

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GPU_BACKENDS = ("triton", "cuda", "flash")
Results = dict[str, Tensor]

# Tensors with fewer independent values than this get their eager error from several draws.
FEW = 128
REDRAWS = 16


def backend_params() -> list[Any]:
    """Every backend but the oracle, as pytest parameters; an unusable one skips with its reason."""
    params = []
    for status in genhoi_kernels.backends():
        if status.name == "eager":
            continue
        marks = [pytest.mark.gpu if status.name in GPU_BACKENDS else pytest.mark.native]
        if not status.usable:
            marks.append(pytest.mark.skip(reason=f"{status.name}: {status.reason}"))
        params.append(pytest.param(status.name, marks=marks))
    return params


def device_of(backend: str) -> torch.device:
    """Where a backend's tensors live."""
    on_gpu = backend in GPU_BACKENDS and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


@dataclass(frozen=True)
class Case:
    """One call of ``reference_attention`` and its backward pass, but for the numbers.

    grid: video grid (f, h, w), which turns the rotation on; else ``rows`` queries, rotated already.
    keys: Nk, default as many as queries. refs: (h_r, w_r) of each reference. ref_rope: rotate them.
    lengths: instead of refs, tokens of each reference (rotated already). ref_batch: 1 or batch.
    mask: "none", "all", "nothing", "random" (bool or random bits), "tail" (rows of the second half
    only). mask_batch: 1 or batch. gate: None, "token", "sequence", "sum" (return_gate_sum).
    layout: of q, k, v: "plain", "fused" (chunks of [B, N, 3, H, D]), "heads" ([B, H, N, D]
    transposed), "expanded" (one sample shown B times), "padded" (rows of a wider buffer).
    lse_grad: a gradient comes to lse too.
    """

    dtype: torch.dtype = torch.float32
    batch: int = 1
    grid: tuple[int, int, int] | None = None
    sliding: tuple[int, ...] | None = None
    rows: int = 7
    keys: int | None = None
    heads: int = 2
    dim: int = 16
    refs: tuple[tuple[int, int], ...] = ()
    ref_rope: bool = True
    lengths: tuple[int, ...] | None = None
    ref_batch: int = 1
    mask: str = "none"
    mask_dtype: torch.dtype = torch.bool
    mask_batch: int = 1
    mask_gate: bool = False
    bias: tuple[float, ...] | None = None
    gate: str | None = None
    gate_dtype: torch.dtype | None = None
    schedule: Any = "paper"
    layout: str = "plain"
    scale: float | None = None
    token_offset: int | None = None
    tokens: int | None = None
    first_head: int | None = None
    num_heads: int | None = None
    lse_grad: bool = True
    seed: int = 0

    @property
    def n(self) -> int:
        """N."""
        if self.grid is None:
            return self.rows
        rest = math.prod(self.grid) - (self.token_offset or 0)
        return rest if self.tokens is None else self.tokens

    @property
    def nk(self) -> int:
        """Nk."""
        return self.n if self.keys is None else self.keys

    @property
    def segments(self) -> tuple[int, ...] | None:
        """Tokens of each reference; None: no reference at all."""
        if self.lengths is not None:
            return self.lengths
        return tuple(h * w for h, w in self.refs) or None

    @property
    def rope(self) -> VideoRope | ReferenceFramesRope | None:
        """Rotation of q and k; with ``sliding`` some of the grid's frames turn per head."""
        if self.grid is None:
            return None
        tokens: dict[str, Any] = {"head_dim": self.dim, "token_offset": self.token_offset}
        if self.sliding is None:
            return VideoRope(self.grid, **tokens)
        return ReferenceFramesRope(self.grid, self.sliding, **tokens, **self.head_options)

    @property
    def head_options(self) -> dict[str, Any]:
        """Heads and schedule of what turns per head."""
        return {
            "num_heads": self.num_heads or (self.first_head or 0) + self.heads,
            "schedule": self.schedule,
            "first_head": self.first_head,
        }

    @property
    def reference_rope(self) -> HeadSlidingRope | None:
        """Rotation of k_ref."""
        if not self.refs or self.lengths is not None or not self.ref_rope:
            return None
        return HeadSlidingRope(
            self.grid or (3, 2, 2),
            self.refs,
            head_dim=self.dim,
            **self.head_options,
        )

    def call(self, backend: str) -> AttentionCall:
        """What ``supports`` is asked."""
        mode = {None: "none", "token": "token"}.get(self.gate, "sum")
        scale = self.dim**-0.5 if self.scale is None else self.scale
        return AttentionCall(
            device_of(backend),
            self.dtype,
            self.dim,
            self.segments or (),
            self.rope,
            self.reference_rope,
            mode,
            scale,
            True,
            self.n,
            self.nk,
        )

    def __str__(self) -> str:
        """Only what differs from the defaults; pytest shows it as the test's name."""
        fields = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name != "dtype":
                fields.append(f"{field.name}={value}".replace(" ", "").replace("torch.", ""))
        return ",".join(fields) or "default"


def skip_unless_supported(backend: str, call: AttentionCall | RopeCall) -> None:
    """Skip with the backend's own reason."""
    reason = genhoi_kernels.supports(backend, call)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Values that dtype can hold, in float64: every dtype is then given the same numbers."""
    return x.to(dtype).double()


def make_mask(case: Case) -> Tensor | None:
    """The case's mask, on the CPU; it does not depend on what else the case has."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    shape = (case.mask_batch, case.n)
    if case.mask == "none":
        return None
    everything = torch.full(shape, 255 if case.mask_dtype == torch.uint8 else -1).to(torch.int64)
    if case.mask == "all":
        bits = everything
    elif case.mask == "nothing":
        bits = torch.zeros_like(everything)
    elif case.mask == "tail":
        bits = everything * (torch.arange(case.n) >= case.n // 2)
    else:
        # A third of the rows sees nothing; the rest has random bits, those above R included.
        bits = torch.randint(1, 255, shape, generator=generator)
        bits *= torch.rand(shape, generator=generator) > 1 / 3
    return bits.bool() if case.mask_dtype == torch.bool else bits.to(case.mask_dtype)


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case in float64, every value one that the case's dtype can hold."""

    tensors: dict[str, Tensor]
    mask: Tensor | None
    upstream: dict[str, Tensor]


def make_case(case: Case) -> Inputs:
    """Draw the numbers of a case."""
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int, dtype: torch.dtype = case.dtype) -> Tensor:
        return rounded(torch.randn(*shape, generator=generator, dtype=torch.float64), dtype)

    batch, n, heads, dim = case.batch, case.n, case.heads, case.dim
    shown = 1 if case.layout == "expanded" else batch
    tensors = {
        "q": normal(shown, n, heads, dim),
        "k": normal(shown, case.nk, heads, dim),
        "v": normal(shown, case.nk, heads, dim),
    }
    tensors = {name: x.expand(batch, -1, -1, -1) for name, x in tensors.items()}
    if case.segments is not None:
        for name in ("k_ref", "v_ref"):
            tensors[name] = normal(case.ref_batch, sum(case.segments), heads, dim)
    if case.bias is not None:
        tensors["ref_bias"] = torch.tensor(case.bias, dtype=torch.float32).double()
    if case.gate is not None:
        kept = case.gate_dtype or torch.float32
        half = dim // 2
        gate = {
            "norm_weight": 1 + 0.3 * normal(dim),
            "norm_bias": 0.3 * normal(dim),
            "fc1_weight": normal(half, dim) / dim**0.5,
            "fc1_bias": 0.3 * normal(half),
            "fc2_weight": 2 * normal(1, half) / half**0.5,
            "fc2_bias": 0.3 * normal(1),
        }
        tensors |= {f"gate.{name}": rounded(x, kept) for name, x in gate.items()}
    upstream = {
        "out": normal(batch, n, heads, dim),
        "lse": normal(batch, heads, n, dtype=torch.float32),
        "gate_sum": normal(batch, heads, dtype=torch.float32),
    }
    return Inputs(tensors, make_mask(case), upstream)


def lay_out(q: Tensor, k: Tensor, v: Tensor, layout: str) -> list[Tensor]:
    """The same values with other strides."""
    if layout == "fused":
        return list(torch.stack((q, k, v), dim=2).unbind(2))
    if layout == "heads":
        return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    if layout == "expanded":
        return [x[:1].contiguous().expand_as(x) for x in (q, k, v)]
    if layout == "padded":
        return [torch.cat((x, x.flip(-1)), -1)[..., : x.shape[-1]] for x in (q, k, v)]
    return [x.contiguous() for x in (q, k, v)]


def arguments(
    case: Case, inputs: Inputs, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Keyword arguments of ``reference_attention``, tensors as leaves that want a gradient.

    float64 widens everything; another dtype keeps the dtypes that the contract gives.
    """
    wide = dtype == torch.float64

    def leaf(x: Tensor, kept: torch.dtype) -> Tensor:
        return x.to(device, torch.float64 if wide else kept, copy=True).detach().requires_grad_()

    given = inputs.tensors
    laid_out = lay_out(*(given[n].to(device, dtype, copy=True) for n in "qkv"), case.layout)
    args: dict[str, Any] = {
        name: x.detach().requires_grad_() for name, x in zip("qkv", laid_out, strict=True)
    }
    for name in ("k_ref", "v_ref"):
        args[name] = leaf(given[name], dtype) if name in given else None
    if "ref_bias" in given:
        args["ref_bias"] = leaf(given["ref_bias"], torch.float32)
    if case.gate is not None:
        kept = case.gate_dtype or torch.float32
        args["gate"] = GateWeights(
            *(leaf(given[f"gate.{name}"], kept) for name in GateWeights._fields)
        )
        args["gate_reduction"] = "token" if case.gate == "token" else "sequence"
        args["return_gate_sum"] = case.gate == "sum"
    if inputs.mask is not None:
        mask = inputs.mask.to(device)
        args["mask"] = MaskGate.build(mask) if case.mask_gate else mask
    if case.lengths is not None or (case.refs and not case.ref_rope):
        args["ref_lengths"] = case.segments
    return args | {
        "rope": case.rope,
        "ref_rope": case.reference_rope,
        "scale": case.scale,
        "return_lse": True,
    }


def leaves(args: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that want a gradient, by name."""
    tensors = {name: args.get(name) for name in ("q", "k", "v", "k_ref", "v_ref", "ref_bias")}
    if args.get("gate") is not None:
        tensors |= {f"gate.{name}": x for name, x in args["gate"]._asdict().items()}
    return {name: x for name, x in tensors.items() if x is not None}


def run_with(
    args: dict[str, Any], upstream: dict[str, Tensor], backend: str | None, grads: bool = True
) -> Results:
    """Outputs of one call, and gradients through those that upstream names, as they come."""
    outputs = reference_attention(**args, backend=backend)
    assert isinstance(outputs, tuple)
    results = dict(zip(("out", "lse", "gate_sum"), outputs, strict=False))
    if grads:
        wanted = leaves(args)
        through = {name: x for name, x in results.items() if name in upstream}
        toward = [upstream[name].to(x.device, x.dtype) for name, x in through.items()]
        got = torch.autograd.grad(list(through.values()), list(wanted.values()), toward)
        results |= {f"d{name}": x for name, x in zip(wanted, got, strict=True)}
    return {name: x.detach() for name, x in results.items()}


def run(case: Case, backend: str, dtype: torch.dtype, inputs: Inputs | None = None) -> Results:
    """out, lse, gate_sum (with gate="sum") and the gradient of every tensor, in float64."""
    inputs = inputs or make_case(case)
    args = arguments(case, inputs, dtype, device_of(backend))
    upstream = {n: x for n, x in inputs.upstream.items() if case.lse_grad or n != "lse"}
    results = run_with(args, upstream, backend)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert results["out"].dtype == dtype and results["lse"].dtype == wide
    for name, x in leaves(args).items():
        assert results[f"d{name}"].dtype == x.dtype and results[f"d{name}"].shape == x.shape, name
    return {name: x.cpu().double() for name, x in results.items()}


def largest(x: Tensor) -> float:
    """max |x|, 0 of nothing."""
    return float(x.abs().max()) if x.numel() else 0.0


def error(x: Tensor, t: Tensor) -> float:
    """max |x - t| where t is finite; infinite if x is not what t is elsewhere."""
    finite = t.isfinite()
    if not torch.equal(x[~finite], t[~finite]):
        return math.inf
    difference = (x - t)[finite]
    return math.inf if difference.isnan().any() else largest(difference)


def left_of_a_single_key(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, *, scale: float, dtype: torch.dtype
) -> dict[str, float]:
    """What rounding may leave of dq and dk, by name, where the rows see one key and dL is zero.

    Then P = 1 and O = V, so dP and delta are the same sum of D products, dO . V, and dq and dk are
    zero. In float32 every term of either sum is rounded at most D times, in whatever order it is
    added: each sum is within gamma_D sum|dO V| of the truth, with gamma_D = D u / (1 - D u) and
    u = 2^-24 (Higham, Accuracy and Stability, 3.1), and dS = P (dP - delta) within twice that.
    Times scale and K, or Q; 4 eps are for the roundings of P, of dS and of the result.

    q, dout: [B, N, H, D]; k, v: [B, 1, H, D]; all in float64. dtype: of the results.
    """
    terms = q.shape[-1] * 2.0**-24
    ds = 2 * terms / (1 - terms) * (dout * v).abs().sum(-1, keepdim=True)
    rounding = 1 + 4 * torch.finfo(dtype).eps
    gradients = {"dq": ds * k.abs(), "dk": (ds * q.abs()).sum(1)}
    return {name: abs(scale) * rounding * largest(x) for name, x in gradients.items()}


def assert_within_budget(
    x: Tensor,
    e: Tensor,
    t: Tensor,
    dtype: torch.dtype,
    *,
    name: str = "x",
    e_error: float = 0.0,
    left_of_zero: float = 0.0,
) -> None:
    """max|x - t| <= 2 max|e - t| + 2 eps(dtype) max|t|.

    e_error: eager's error on other draws of the same case, for tensors too small for one draw.
    left_of_zero: float32's rounding of a truth of zero (``left_of_a_single_key``), the bound at
    least where t is zero, or what float64's rounding leaves of it.
    """
    assert x.shape == t.shape, f"{name}: shape {tuple(x.shape)}, wanted {tuple(t.shape)}"
    came, eager = error(x, t), max(error(e, t), e_error)
    size = largest(t[t.isfinite()])
    budget = 2 * eager + 2 * torch.finfo(dtype).eps * size
    if size <= left_of_zero * 2.0**-29:  # u of float64 / u of float32
        budget = max(budget, left_of_zero)
    assert came <= budget, (
        f"{name}: max|x-t| = {came:.3g} exceeds {budget:.3g}; max|e-t| = {eager:.3g}, "
        f"max|t| = {size:.3g}, eps = {torch.finfo(dtype).eps:.3g}"
    )


def independent_values(case: Case, name: str, x: Tensor) -> int:
    """How many independent rounding errors a tensor shows.

    All that comes of a query row shares the error of its LSE. A sequence gate's weights are all
    reached through one number per sample and head, a sum over the sequence that cancels.
    """
    through_one = case.gate == "sequence" and name.startswith("dgate.")
    sources = case.batch * case.heads * (1 if through_one else case.n)
    return min(x.numel(), sources)


@functools.lru_cache(maxsize=1)
def redrawn_errors(case: Case) -> dict[str, float]:
    """Eager's largest error in each result over a few draws of the same case.

    The budget compares two maxima. Over thousands of values the maximum of eager's error is a
    stable measure of what the dtype can do; over a handful (a bias's gradient, one row whose
    gradient cancels to zero) eager is now and then right by luck, and twice its error is nothing.
    """
    worst: dict[str, float] = {}
    for draw in range(1, REDRAWS + 1):
        other = dataclasses.replace(case, seed=case.seed + 7919 * draw)
        inputs = make_case(other)
        e, t = (run(other, "eager", dtype, inputs) for dtype in (case.dtype, torch.float64))
        for name in t:
            worst[name] = max(worst.get(name, 0.0), error(e[name], t[name]))
    return worst


def check_budget(case: Case, backend: str, inputs: Inputs | None = None) -> Results:
    """Run a case on a backend; every output and gradient keeps the budget. Returns them."""
    skip_unless_supported(backend, case.call(backend))
    inputs = inputs or make_case(case)
    x = run(case, backend, case.dtype, inputs)
    e = run(case, "eager", case.dtype, inputs)
    t = run(case, "eager", torch.float64, inputs)
    assert x.keys() == t.keys()
    for name in t:
        try:
            assert_within_budget(x[name], e[name], t[name], case.dtype, name=name)
        except AssertionError:
            if independent_values(case, name, t[name]) >= FEW:
                raise
            assert_within_budget(
                x[name],
                e[name],
                t[name],
                case.dtype,
                name=name,
                e_error=redrawn_errors(case)[name],
            )
    return x
