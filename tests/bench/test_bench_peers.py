"""The peers compute what they should, and are named after what they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bench_cases import CPU, CUDA, case_of

from benchmarks import checks, gathered, peers, runner
from benchmarks.bare_attention import build_attention
from benchmarks.case import Case, Contender, Workload
from benchmarks.context import Context
from benchmarks.fused import build_fused
from benchmarks.machine import describe_machine
from benchmarks.peers import GATHERED, GATHERED_CUDNN, PEERS, block_mask, strongest
from genhoi_kernels.tune.accuracy import Truth
from genhoi_kernels.tune.problem import Direction
from genhoi_kernels.tune.shapes import SHAPES, Shape

pytest_plugins = ["support.bench_cases"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_peers_agree_with_the_oracle(dtype: torch.dtype, direction: Direction) -> None:
    able = ("sdpa", "sdpa-additive", "sdpa-bool", GATHERED, "eager")
    work = build_attention(case_of(SHAPES["tiny"], dtype, direction, able))
    assert len([c for c in work.contenders if c.run]) >= 1 + len(able)
    for contender in work.contenders:
        accuracy = checks.compare(contender)
        assert accuracy.good, (contender.name, accuracy)


@pytest.mark.slow
def test_flex_attention_agrees_with_the_oracle() -> None:
    work = build_attention(case_of(SHAPES["tiny"], torch.float32, "forward", ("flex",)))
    accuracy = checks.compare(work.contenders[-1])
    assert accuracy.good, accuracy


def test_the_strongest_peer_without_a_reference() -> None:
    for shape in (Shape("none", (2, 4, 4), (0, 0), 1, 32), Shape("blind", (2, 4, 4), density=0.0)):
        for direction in ("forward", "backward"):
            work = build_attention(case_of(shape, torch.float32, direction, (GATHERED,)))
            assert all(checks.compare(contender).good for contender in work.contenders)


def test_what_is_wrong_is_not_timed() -> None:
    right, ran = torch.ones(3), []
    truth = Truth({"out": right.double()}, {"out": right}, "all")
    work = Workload("op", "peer", 1.0, 1.0)
    for name, output in (("op", right), ("peer", right + 1), ("nan", right * torch.nan)):
        work.contenders.append(
            Contender(
                name, lambda name=name: ran.append(name), lambda x=output: {"out": x}, lambda: truth
            )
        )
    case = Case("attention", SHAPES["tiny"], torch.float32, "forward", CPU, 1, None, lambda _: work)
    (finished,) = runner.run_cases(
        [case], describe_machine(CPU), runner.Budget(rounds=2, seconds=1), lambda _: None
    )
    op, *wrong = finished.rows
    assert not op["reason"].startswith("not timed")
    for row in wrong:
        assert row["reason"].startswith("not timed: its error of") and row["ms"] == ""
    assert ran.count("op") > 2 and ran.count("peer") <= 1


@pytest.mark.parametrize(
    "shape",
    [
        Shape("whole tiles", (2, 8, 16), (16, 16), density=0.4),
        Shape("odd", (1, 13, 29), (7, 11), density=0.3),
        Shape("one tile", (1, 3, 5), (1, 1), density=0.5),
        Shape("all see", (3, 8, 16), (16, 17), density=1.0),
        Shape("none sees", (3, 8, 15), (8, 16), density=0.0),
        Shape("no reference", (1, 13, 29), (0, 0)),
    ],
    ids=lambda shape: shape.name,
)
def test_the_block_mask_is_the_dense_one(shape: Shape) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    n, m, mask = shape.n, shape.m, shape.mask()[0]
    made = block_mask(mask, m)
    dense = create_block_mask(
        lambda b, h, query, key: (key < n) | mask[query], None, None, n, n + m, device="cpu"
    )
    assert made.seq_lengths == dense.seq_lengths == (n, n + m)
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, indices = (getattr(made, f"{kind}_{name}") for name in ("num_blocks", "indices"))
        assert torch.equal(counts, getattr(dense, f"{kind}_num_blocks")), kind
        wanted = getattr(dense, f"{kind}_indices")
        for row in range(counts.shape[-1]):  # what stands behind the counted ones is not used
            count = int(counts[0, 0, row])
            assert torch.equal(indices[0, 0, row, :count], wanted[0, 0, row, :count]), kind
    rows, keys = torch.arange(-(-n // 128) * 128), torch.arange(n + m)
    none = torch.zeros((), dtype=torch.int64)
    sees = made.mask_mod(none, none, rows[:, None], keys)  # rows beyond N may be asked for
    assert torch.equal(sees[:n], (keys < n) | mask[:, None]) and not sees[n:, n:].any()


def test_flex_attention_is_compiled_for_every_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting earlier shapes keeps it from torch.compile's limit of eight."""
    forgotten: list[bool] = []
    monkeypatch.setattr("torch._dynamo.reset", lambda: forgotten.append(True))
    ctx = Context(case_of(SHAPES["tiny"], torch.float32, "forward"))
    assert peers.setup_flex(ctx) is not None and forgotten == [True]


def test_the_kernel_is_named(tmp_path: Path, quick: None) -> None:
    names = ("sdpa", "sdpa-additive", GATHERED)
    cases = [case_of(SHAPES["tiny"], torch.float32, "forward", names)]
    (finished,) = runner.run_cases(
        cases, describe_machine(CPU), runner.Budget(1, 0.1), lambda line: None
    )
    kernels = {row["contender"]: row["kernel"] for row in finished.rows}
    assert kernels.pop(PEERS[GATHERED].label) == "flash"
    assert kernels.pop(PEERS["sdpa"].label) in ("flash", "math")
    assert kernels.pop(PEERS["sdpa-additive"].label) in ("flash", "math")
    assert set(kernels.values()) == {""}, "the op's backends have their names"


class StandIns:
    """PyTorch's fused attentions: by matrix products, held to the operators' own schemas.

    As the real cuDNN does, the backward pass takes only what lies in one layout.
    """

    def __getattr__(self, name: str) -> Any:
        schema = getattr(torch.ops.aten, name)

        def call(*args: Any) -> Any:
            on_meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in args]
            like = schema(*on_meta)
            if not name.endswith("_backward"):
                out, lse = self._attend(*args[:3])
                state = torch.zeros(2, dtype=torch.uint64)
                return out, lse.reshape(like[1].shape), None, None, *like[4:6], state, state, None
            dout, Q, K, V, out, lse = args[:6]
            if "cudnn" in name:
                assert out.is_contiguous() and lse.is_contiguous() and dout.is_contiguous()
            return self._gradients(dout, Q, K, V, out, lse.reshape(Q.shape[:3]))

        return call

    @staticmethod
    def _attend(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        Q, K, V = (x.double() for x in inputs)
        S = Q @ K.mT * Q.shape[-1] ** -0.5
        lse = S.logsumexp(-1)
        out = torch.exp(S - lse[..., None]) @ V
        return out.to(inputs[0].dtype), lse.float()

    @staticmethod
    def _gradients(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        dout, Q, K, V, out, lse = (x.double() for x in inputs)
        scale = Q.shape[-1] ** -0.5
        P = torch.exp(Q @ K.mT * scale - lse[..., None])
        dS = P * (dout @ V.mT - (dout * out).sum(-1, keepdim=True)) * scale
        return tuple(x.to(inputs[0].dtype) for x in (dS @ K, dS.mT @ Q, P.mT @ dout))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("attention", [gathered.CUDNN, gathered.FLASH], ids=lambda x: x.kernel)
def test_the_two_passes_on_a_gpu_s_kernels(
    attention: gathered.Attention, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered, "aten", StandIns())
    monkeypatch.setattr(peers, "default_attention", lambda device, dtype: attention)
    shape = Shape("odd", (3, 5, 7), (3, 5), heads=2, head_dim=32, density=0.3)
    work = build_attention(case_of(shape, torch.bfloat16, direction, (GATHERED,)))
    contender = work.contenders[-1]
    accuracy = checks.compare(contender)
    assert accuracy.good and contender.kernel == attention.kernel, accuracy


@pytest.mark.parametrize(
    ("capability", "hip", "cudnn", "wanted"),
    [
        ((8, 0), None, True, GATHERED),
        ((9, 0), None, True, GATHERED_CUDNN),
        ((10, 0), None, True, GATHERED_CUDNN),
        ((9, 0), None, False, GATHERED),
        ((9, 4), "7.0", True, GATHERED),
    ],
)
def test_the_strongest_peer(
    capability: tuple[int, int],
    hip: str | None,
    cudnn: bool,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: cudnn)
    assert strongest(CUDA) == wanted and strongest(CPU) == GATHERED


def test_another_peer_stands_for_the_strongest(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here cuDNN's can't run."""
    monkeypatch.setattr("benchmarks.bare_attention.strongest", lambda device: GATHERED_CUDNN)
    case = case_of(SHAPES["tiny"], torch.float32, "forward", (GATHERED, GATHERED_CUDNN))
    (finished,) = runner.run_cases(
        [case], describe_machine(CPU), runner.Budget(1, 0.1), lambda line: None
    )
    op, usual, cudnn = finished.rows
    assert cudnn["contender"] == PEERS[GATHERED_CUDNN].label and cudnn["reason"]
    assert usual["ratio_to_strongest"] == 1.0 and op["ratio_to_strongest"] > 0


@pytest.mark.parametrize("build", [build_attention, build_fused])
def test_named_backends(build: Callable[[Case], Workload]) -> None:
    case = case_of(SHAPES["tiny"], torch.float32, "forward", ())
    work = build(replace(case, backends=("eager",), build=build))
    ours = [c.name for c in work.contenders if c.name.startswith("this op")]
    assert ours == ["this op (eager)"] and work.op == ours[0]
