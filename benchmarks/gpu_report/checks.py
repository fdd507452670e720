"""Stage: one backend against float64, forward and backward, and the same bits run after run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import genhoi_kernels as gk
from benchmarks.gpu_report.folder import CHECKS, add_rows
from benchmarks.gpu_report.stage import DEVICE, say, stage_options
from genhoi_kernels.flow_gate import gate_shapes
from genhoi_kernels.tune.accuracy import error_budget
from genhoi_kernels.tune.timing import first_line

_REPEATS = 6
"""No kernel has atomics: what moves from run to run is a race."""
_FEW = 200
"""Values of a gradient below which eager's own error is small by luck."""

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """A call: dtype and head dim; references with a mask, or also bias and token gate ("all")."""

    dtype: torch.dtype
    head_dim: int
    what: str
    rows: int
    heads: int

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Verdict:
    """How a form ended: "right", "wrong", "moves" or "refused", and what there is to say of it.

    share: the largest error over what the budget allows; where: of which result.
    """

    outcome: str
    share: float
    where: str
    words: str = ""


@click.command()
@stage_options
@click.option("--backend", required=True)
@click.option("--name", help="In the table.  [default: the backend's]")
@click.option("--allow-moves", is_flag=True, help="It is known to differ from run to run.")
@click.option("--float32", is_flag=True, help="Only in float32, which Triton compiles for long.")
def main(
    out: Path,
    work: Path,
    tiny: bool,
    backend: str,
    name: str | None,
    allow_moves: bool,
    float32: bool,
) -> None:
    """Check every form; an error in one does not end the others."""
    status = next(b for b in gk.backends() if b.name == backend)
    if not status.usable:
        add_rows(
            out / CHECKS, [_row(name or backend, None, Verdict("refused", 0, "", status.reason))]
        )
        say(status.reason)
        return
    bad = 0
    for form in forms(backend, tiny=tiny, float32=float32):
        began = time.monotonic()
        try:
            verdict = check(backend, form, repeats=1 if tiny else _REPEATS)
            if verdict.outcome == "moves" and verdict.share <= 1 and allow_moves:
                verdict = replace(verdict, outcome="right", words=f"moves: {verdict.words}")
        except Exception as error:
            traceback.print_exc()
            verdict = Verdict("fault", float("nan"), "", first_line(error))
        bad += verdict.outcome not in ("right", "refused")
        row = _row(name or backend, form, verdict)
        add_rows(out / CHECKS, [row])
        say(
            *(f"{key}={value}" for key, value in row.items() if value != ""),
            f"({time.monotonic() - began:.1f} s)",
        )
        if verdict.outcome == "fault" and not _alive():
            say("the GPU takes no more calls from this process: the other forms are left out")
            break
    raise SystemExit(bad > 0)


def _alive() -> bool:
    """Say whether no kernel of this process has faulted: after one, every call fails."""
    try:
        torch.cuda.synchronize(DEVICE)
    except RuntimeError:
        return False
    return True


def forms(backend: str, *, tiny: bool, float32: bool = False) -> Iterator[Form]:
    """Yield the forms, the most wanted first. Triton compiles each for seconds, so it has fewer."""
    rows, heads = (200, 1) if tiny else (4000, 4)
    halves = (torch.bfloat16, torch.float16)
    if float32:
        whole = [(torch.float32, 64 if tiny else 128, "all")]
    elif backend == "cuda":
        dims = (128,) if tiny else (128, 64, 96)
        whole = [(t, d, w) for t in halves for d in dims for w in ("mask", "bare", "all")]
    else:
        whole = [(torch.bfloat16, 128, w) for w in ("mask", "bare", "all")]
        if not tiny:
            whole += [(torch.bfloat16, 64, "mask"), (torch.float16, 128, "all")]
    for dtype, head_dim, what in whole:
        yield Form(dtype, head_dim, what, rows, heads)


def check(backend: str, form: Form, *, repeats: int) -> Verdict:
    """Check that results keep the error budget (CONTRIBUTING.md) and are the same every time."""
    given = _Given(form)
    grad = gk.supports(backend, given.call(needs_grad=True)) is None
    refusal = gk.supports(backend, given.call(needs_grad=False))
    if refusal is not None:
        return Verdict("refused", 0.0, "", refusal)
    x = given.run(backend, form.dtype, grad=grad)
    e, t = (given.run("eager", dtype, grad=grad) for dtype in (form.dtype, torch.float64))
    moved = set()
    for _ in range(repeats):
        again = given.run(backend, form.dtype, grad=grad)
        moved |= {name for name in x if not torch.equal(x[name], again[name])}
    share, where = max((_share(x[n], e[n], t[n], form.dtype), n) for n in t)
    remark = (
        "" if grad else "forward only: " + str(gk.supports(backend, given.call(needs_grad=True)))
    )
    if moved:
        named = "; ".join(filter(None, (", ".join(sorted(moved)), remark)))
        return Verdict("moves", share, where, named)
    return Verdict("right" if share <= 1 else "wrong", share, where, remark)


def _share(x: Tensor, e: Tensor, t: Tensor, dtype: torch.dtype) -> float:
    """Return the error over what is allowed; infinite for NaN."""
    size = float(t.abs().max()) or 1.0
    allowed = error_budget(float((e - t).abs().max()) / size, dtype)
    if t.numel() < _FEW:  # the tests draw again; here it is lenient
        allowed = 4 * allowed + 32 * torch.finfo(dtype).eps
    share = float((x - t).abs().max()) / size / allowed
    return share if share == share else float("inf")


class _Given:
    """Numbers of a form, in float64 on the CPU."""

    def __init__(self, form: Form) -> None:
        self.form = form
        draw = torch.Generator().manual_seed(form.head_dim)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=draw)

        n, h, d = form.rows, form.heads, form.head_dim
        self.leaves: Results = {name: normal(1, n, h, d) for name in "qkv"}
        self.plain: dict[str, Any] = {}
        if form.what != "bare":
            self.leaves |= {name: normal(1, 300, h, d) for name in ("k_ref", "v_ref")}
            seen = torch.zeros(1, n, dtype=torch.int32)
            seen[:, n // 3 : n // 2] = 3
            seen[:, n // 2 : n // 2 + 70] = 1
            self.plain = {"mask": seen.to(DEVICE), "ref_lengths": (200, 100)}
        if form.what == "all":
            self.leaves["ref_bias"] = torch.tensor([0.5, -1.0])
            for name, shape in gate_shapes(d).items():
                x = normal(*shape) / max(shape[-1], 1) ** 0.5
                self.leaves[f"gate.{name}"] = 1 + 0.3 * x if name == "norm_weight" else x
        self.upstream = normal(1, n, h, d)

    def call(self, *, needs_grad: bool) -> gk.AttentionCall:
        """Describe the call, as a backend is asked whether it supports it."""
        gated = self.form.what == "all"
        return gk.AttentionCall(
            device=DEVICE,
            dtype=self.form.dtype,
            head_dim=self.form.head_dim,
            ref_lengths=self.plain.get("ref_lengths", ()),
            rope=None,
            ref_rope=None,
            gate_mode="token" if gated else "none",
            scale=self.form.head_dim**-0.5,
            needs_grad=needs_grad,
            rows=self.form.rows,
            keys=self.form.rows,
        )

    def run(self, backend: str, dtype: torch.dtype, *, grad: bool) -> Results:
        """Return out, lse and, with `grad`, every gradient in float64, for rounded inputs."""
        wide = {torch.float64: torch.float64}.get(dtype, torch.float32)
        leaves = {}
        for name, x in self.leaves.items():
            weight = name.startswith(("gate.", "ref_bias"))
            x = x.to(DEVICE) if weight else x.to(DEVICE, self.form.dtype)
            leaves[name] = x.to(wide if weight else dtype).requires_grad_(grad)
        call: dict[str, Any] = {n: x for n, x in leaves.items() if not n.startswith("gate.")}
        gate = [x for name, x in leaves.items() if name.startswith("gate.")]
        if gate:
            call |= {"gate": gk.GateWeights(*gate), "gate_reduction": "token"}
        out, lse = gk.reference_attention(**call, **self.plain, return_lse=True, backend=backend)
        results = {"out": out, "lse": lse}
        if grad:
            toward = self.upstream.to(DEVICE, self.form.dtype).to(out.dtype)
            grads = torch.autograd.grad(out, list(leaves.values()), toward)
            results |= {f"d{name}": g for name, g in zip(leaves, grads, strict=True)}
        return {name: x.detach().double() for name, x in results.items()}


def _row(backend: str, form: Form | None, verdict: Verdict) -> dict[str, Any]:
    return {
        "what": "check",
        "backend": backend,
        "dtype": form.dtype_name if form else "",
        "head_dim": form.head_dim if form else "",
        "form": form.what if form else "",
        "outcome": verdict.outcome,
        "share_of_budget": verdict.share,
        "worst": verdict.where,
        "words": verdict.words,
    }


if __name__ == "__main__":
    main()
