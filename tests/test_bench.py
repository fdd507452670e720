"""The suite's command end to end on tiny shapes, what it refuses, and its arithmetic.

Nothing here needs the model layer, except where a test says so: the suite runs without it.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import genhoi_kernels as gk
from benchmarks import (
    checks,
    cli,
    context,
    gathered,
    limits,
    machine,
    memory,
    peers,
    report,
    runner,
    test_cases,
    timing,
    tune,
)
from benchmarks.bare_attention import build_attention
from benchmarks.case import Case, Contender, Direction, Truth, Workload
from benchmarks.context import Context
from benchmarks.fused import build_fused
from benchmarks.machine import describe_machine
from benchmarks.peers import GATHERED, GATHERED_CUDNN, PEERS, block_mask, strongest
from benchmarks.shapes import SHAPES, Shape, merge_equal, reduce_shape, sweep_shapes
from benchmarks.suites import Selection, select
from benchmarks.timing import Sample, Timings, interleave, is_contended, ratio
from genhoi_kernels import choices, registry
from genhoi_kernels._files import whole_file

HAS_MODEL_LAYER = all(importlib.util.find_spec(name) for name in ("diffusers", "av"))
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FEW_PEERS = ("--peers", "sdpa", "--peers", GATHERED, "--peers", "sage")
SHORT = ("--rounds", "1", "--seconds", "0.1", "--threads", "1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures no limit for long, and counts every sample: other programs may be busy."""
    monkeypatch.setattr(limits, "_SECONDS", 0.0)
    monkeypatch.setattr(limits, "_COPY_BYTES", {"cpu": 1 << 20, "cuda": 1 << 20})
    monkeypatch.setattr(limits, "_MATMUL", {"cpu": (128,), "cuda": (128,)})
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)


def bench(out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.bench, ["--device", "cpu", "--out", str(out), *SHORT, *words])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def case_of(
    shape: Shape, dtype: torch.dtype, direction: Direction, peers: tuple[str, ...] | None = None
) -> Case:
    threads = torch.get_num_threads()
    return Case("attention", shape, dtype, direction, CPU, threads, peers, build_attention)


# ------------------------------------------------------------------------------------- the whole


def test_a_suite_end_to_end(tmp_path: Path, quick: None) -> None:
    result = bench(tmp_path, "--suite", "quick", *FEW_PEERS)
    assert result.exit_code == 0, result.output
    for words in (
        "this op",
        "SDPA, no mask",
        "1 thread",
        "- SageAttention, no mask: needs a CUDA",
    ):
        assert words in result.output
    rows = rows_of(tmp_path)
    suites = {row["suite"].removeprefix("quick ") for row in rows}
    assert suites == {"attention", "fused", "norm_rope", "block", "sweeps"}
    for row in rows:
        if row["contender"].startswith("SageAttention"):
            assert row["ms"] == "" and row["reason"] == "needs a CUDA GPU"
            continue
        if row["suite"].endswith("block") and not HAS_MODEL_LAYER:
            assert "No module named" in row["reason"]
            continue
        assert not row["reason"], row
        assert float(row["ms"]) > 0 and row["samples"] == "1" and float(row["limit_share"]) > 0
        assert float(row["error"]) <= float(row["error_allowed"])
        if row["contender"].startswith(("this op", "genhoi.")):
            assert float(row["ratio_to_op"]) == 1
        if row["contender"] == PEERS[GATHERED].label:
            assert float(row["ratio_to_strongest"]) == 1
    for name in ("ratios", "roofline", "sweeps"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".png", ".png", ".png"]


def test_later_rows_come_behind_earlier_ones(tmp_path: Path, quick: None) -> None:
    words = ("--suite", "attention", "--shapes", "tiny", "--dtype", "float32", "--peers", "sdpa")
    assert bench(tmp_path, *words).exit_code == 0
    first = rows_of(tmp_path)
    assert [row["direction"] for row in first] == ["forward"] * 2 + ["backward"] * 2
    assert bench(tmp_path, *words).exit_code == 0
    both = rows_of(tmp_path)
    assert both[: len(first)] == first and len(both) == 2 * len(first)
    assert (tmp_path / "results.csv").read_text().count("ratio_to_op") == 1


def test_columns_of_another_version_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text("date,gone\n2020,7\n")
    report.append_rows(file, [{"date": "2021", "new": 0.25}])
    assert rows_of(tmp_path) == [
        {"date": "2020", "gone": "7", "new": ""},
        {"date": "2021", "gone": "", "new": "0.25"},
    ]


def test_versions_are_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = machine.describe_machine(CPU)
    assert on_cpu.triton.count(".") >= 1 and on_cpu.cuda == on_cpu.cudnn == on_cpu.driver == ""

    def smi(command: Sequence[str], **options: Any) -> Any:
        assert command[0] == "nvidia-smi"
        return SimpleNamespace(stdout="580.159.04\n580.159.04\n")

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(subprocess, "run", smi)
    on_gpu = machine.describe_machine(CUDA)
    assert (on_gpu.cuda, on_gpu.cudnn, on_gpu.driver) == ("13.0", "91900", "580.159.04")

    def nobody(*args: Any, **options: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", nobody)
    assert machine.describe_machine(CUDA).driver == ""
    case = case_of(SHAPES["tiny"], torch.float32, "forward")
    row = runner._row(case, on_gpu, "op", "")
    assert (row["driver"], row["triton"]) == ("580.159.04", on_cpu.triton)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.csv"
    with whole_file(file) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(file) as temporary:
        temporary.write_text("ha")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]


def test_an_interrupted_run_keeps_its_rows(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runner.run_cases

    def interrupted(*args: Any, **options: Any) -> Iterator[runner.Finished]:
        yield next(whole(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_cases", interrupted)
    result = bench(tmp_path, "--suite", "attention", "--shapes", "tiny", "--peers", "sdpa")
    assert result.exit_code == 130 and "Interrupted after 1 of 2 cases" in result.output
    assert len(rows_of(tmp_path)) == 2 and (tmp_path / "ratios.png").exists()


def test_no_case_begins_after_the_last_minute(tmp_path: Path, quick: None) -> None:
    result = bench(tmp_path, "--suite", "attention", "--shapes", "tiny", "--minutes", "0")
    assert result.exit_code == 0, result.output
    assert {row["reason"] for row in rows_of(tmp_path)} == {"left out: no time"}


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--suite", "slow"), "--suite: got 'slow', wanted one of attention, fused"),
        (("--shapes", "wan"), "--shapes: got 'wan', wanted one of tiny, headline-8192"),
        (("--peers", "fast"), "--peers: got 'fast', wanted one of sdpa, sdpa-additive"),
        (("--backends", "gpu"), "--backends: got 'gpu', wanted one of cpu, triton"),
        (("--dtype", "int8"), "--dtype: got 'int8', wanted one of float32, bfloat16"),
        (("--device", "abacus"), "--device: got 'abacus', wanted cpu or cuda"),
    ],
)
def test_unknown_names(tmp_path: Path, words: tuple[str, ...], answer: str) -> None:
    result = bench(tmp_path / "out", *words)
    assert result.exit_code == 1 and f"Error: {answer}" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    result = bench(tmp_path, "--device", "cuda")
    assert result.exit_code == 1 and "torch finds no CUDA device" in result.output


@pytest.fixture
def genhoi_bench() -> Callable[..., Result]:
    """`genhoi bench` with more words; it needs the model layer's packages."""
    pytest.importorskip("av", reason="needs av, as the package genhoi does")
    from genhoi.cli import main

    return lambda *words: CliRunner().invoke(main, ["bench", *words], prog_name="genhoi")


def test_the_command_of_the_package_is_the_suite_s(genhoi_bench: Callable[..., Result]) -> None:
    helped = genhoi_bench("--help")
    assert helped.exit_code == 0 and "Usage: genhoi bench [OPTIONS]" in helped.output
    for option in cli.bench.params:
        assert option.opts[0] in helped.output
    refused = genhoi_bench("--suite", "slow")
    assert refused.exit_code == 1 and "--suite: got 'slow'" in refused.output
    assert genhoi_bench("--slow").exit_code == 2


def test_without_the_repository(
    genhoi_bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="benchmarks")

    monkeypatch.setattr(importlib, "import_module", missing)
    result = genhoi_bench()
    assert result.exit_code == 1 and "checkout of the repository" in result.output


def test_without_the_model_layer() -> None:
    """The suite, its command and the GPU tests, where diffusers and others are missing."""
    tests = Path(__file__).resolve().parent
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("diffusers", "av", "expecttest", "transformers", "peft")))
sys.path[:0] = [{str(tests.parent)!r}, {str(tests)!r}]
import benchmarks.cli, benchmarks.conftest, benchmarks.plots, benchmarks.report, benchmarks.tune
import benchmarks.test_cases, conftest, test_bench, test_gpu
assert "genhoi" not in sys.modules
sys.argv = ["benchmarks", "--help"]
import runpy
runpy.run_module("benchmarks", run_name="__main__")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "Usage: python -m benchmarks" in found.stdout


# ---------------------------------------------------------------------------------------- tuning


def found(name: str, training: bool, **seconds: float) -> tune.Found:
    question = tune.Question(SHAPES[name], torch.bfloat16, training, torch.device("cuda"))
    return tune.Found(question, seconds, {})


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A GPU with flash-attn 3, as far as choices are concerned; where the user's table will be."""

    def question(call: Any) -> choices.Question:
        dtype = str(call.dtype).removeprefix("torch.")
        return choices.Question(
            "sm_90", "H100", dtype, call.head_dim, call.rows, call.needs_grad, 3
        )

    monkeypatch.setattr(registry, "question", question)
    monkeypatch.setenv("GENHOI_CACHE", str(tmp_path / "cache"))
    choices.user_table.cache_clear()
    yield choices.table_path()
    choices.user_table.cache_clear()


def test_tuning_writes_what_was_measured(a_gpu: Path) -> None:
    answers = {
        ("headline-4096", False): {"triton": 1.0, "flash": 2.0},
        ("wan1.3b-480p", False): {"triton": 3.0, "flash": 2.0},
        ("wan14b-480p", False): {"triton": 1.0, "flash": 2.0},
        ("wan14b-480p", True): {"flash": 2.0},
    }

    def measure(question: tune.Question, names: Sequence[str]) -> tune.Found:
        assert list(names) == ["triton", "flash"]
        return found(question.shape.name, question.training, **answers[
            question.shape.name, question.training
        ])  # fmt: skip

    questions = [
        tune.Question(SHAPES[name], torch.bfloat16, training, torch.device("cuda"))
        for name, training in answers
    ]
    said: list[str] = []
    new = tune.tune(questions, ["triton", "flash"], measure=measure, say=said.append)
    assert said[1] == "wan1.3b-480p, bfloat16, inference: flash 2e+03 ms, triton 3e+03 ms"
    assert choices.read_table(a_gpu.read_text()) == tuple(new) == choices.user_table()

    # Shapes of one length count alike: 1 x 3 < 2 x 2. Between two lengths: the geometric mean.
    short, long, trained = new
    middle = math.isqrt(4096 * 32760)
    assert (short.rows, short.order) == ((0, middle), ("triton", "flash"))
    assert (long.rows, long.order) == ((middle + 1, None), ("triton", "flash"))
    assert (trained.rows, trained.order, trained.training) == ((0, None), ("flash",), True)
    assert {x.basis for x in new} == {"measured"} and {x.device for x in new} == {"H100"}
    assert "torch" in long.how and "wan1.3b-480p: flash 2e+03 ms" in long.how

    # Measured again: replaced where it is about the same, kept where not.
    answers["wan14b-480p", True] = {"triton": 1.0, "flash": 2.0}
    again = tune.tune(questions[3:], ["triton", "flash"], measure=measure)
    assert choices.user_table() == (*again, short, long) and again[0].order[0] == "triton"


def test_nothing_measured_is_nothing_written_about(a_gpu: Path) -> None:
    assert tune.choose([found("tiny", False)]) == []


def test_what_is_wrong_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real measurement, on the CPU: one backend refuses, one is wrong."""
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    monkeypatch.setattr(tune, "SECONDS", 0.1)
    monkeypatch.setattr(gk, "supports", lambda name, call: "no" if name == "flash" else None)
    names = [b.name for b in gk.backends() if b.usable and b.name in ("cpu", "eager")]
    question = tune.Question(SHAPES["tiny"], torch.float32, True, CPU)
    for good in (True, False):
        monkeypatch.setattr(checks, "compare", lambda c, good=good: SimpleNamespace(good=good))
        answer = tune.measure(question, [*names[:1], "flash"])
        assert answer.refusals.pop("flash") == "no"
        assert (len(answer.seconds), len(answer.refusals)) == ((1, 0) if good else (0, 1))


def tiny_question(*, training: bool) -> tune.Question:
    return tune.Question(SHAPES["tiny"], torch.float32, training, CPU)


def test_a_backend_that_raises_is_not_chosen(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gk, "supports", lambda name, call: None)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    answer = tune.measure(tiny_question(training=True), ["eager", "triton-of-another-world"])
    assert answer.seconds["eager"] > 0 and len(answer.seconds) == 1
    assert "triton-of-another-world" in answer.refusals["triton-of-another-world"]


def test_a_question_has_a_time_limit(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gk, "supports", lambda name, call: None)
    answer = tune.measure(tiny_question(training=False), ["eager"], seconds=-1.0)
    assert answer.seconds == {} and answer.refusals == {"eager": "there was no time"}


def test_a_question_in_a_process_of_its_own() -> None:
    answer = tune.measure_apart(tiny_question(training=False), ["eager"], seconds=0.01)
    assert answer.seconds == {} and "DiedError: ended after 0.02 s" in answer.refusals["eager"]


def test_tuning_keeps_what_it_has(a_gpu: Path) -> None:
    def measure(question: tune.Question, names: Sequence[str]) -> tune.Found:
        if question.training:
            raise KeyboardInterrupt
        return found(question.shape.name, False, triton=1.0)

    questions = [
        tune.Question(SHAPES["tiny"], torch.bfloat16, training, CUDA) for training in (False, True)
    ]
    with pytest.raises(KeyboardInterrupt):
        tune.tune(questions, ["triton"], measure=measure)
    (kept,) = choices.read_table(a_gpu.read_text())
    assert kept.order == ("triton",) and not kept.training


def test_the_longest_shape_is_tuned_for_only_if_named() -> None:
    assert set(SHAPES) - set(tune.DEFAULT_SHAPES) == {"wan14b-480p-401f"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_tuning_needs_a_gpu(tmp_path: Path, a_gpu: Path) -> None:
    result = bench(tmp_path, "--tune")
    assert result.exit_code == 1 and "--tune: on a CPU there is nothing to choose" in result.output
    assert not a_gpu.exists()


def test_the_tuning_command(tmp_path: Path, a_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_device", lambda name, option: torch.device("cuda"))
    monkeypatch.setattr(timing, "is_hardware", lambda device: True)
    monkeypatch.setattr(tune, "gpu_backends", lambda: ["triton"])
    result = bench(tmp_path, "--tune")
    assert result.exit_code == 0 and "backends triton is usable" in result.output
    assert not a_gpu.exists()

    monkeypatch.setattr(tune, "gpu_backends", lambda: ["triton", "flash"])
    asked: list[tune.Question] = []

    def stand_in(
        questions: Sequence[tune.Question], names: Any, *, measure: Any, say: Any
    ) -> list[Any]:
        asked.extend(questions)
        assert measure.func is tune.measure_apart and measure.keywords == {"seconds": 600.0}
        say("measured")
        return []

    monkeypatch.setattr(tune, "tune", stand_in)
    result = bench(tmp_path, "--tune", "--shapes", "tiny", "--dtype", "float16")
    assert result.exit_code == 0 and f"Choices: {a_gpu} (0 measured)" in result.output
    assert [(q.shape.name, q.dtype, q.training) for q in asked] == [
        ("tiny", torch.float16, False), ("tiny", torch.float16, True)
    ]  # fmt: skip
    result = bench(tmp_path, "--tune", "--dtype", "int8")
    assert result.exit_code == 1 and "--dtype: got 'int8'" in result.output


# --------------------------------------------------------------------------------------- numbers


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
    for name, found in (("op", right), ("peer", right + 1), ("nan", right * torch.nan)):
        work.contenders.append(
            Contender(name, lambda name=name: ran.append(name), lambda x=found: {"out": x},
                      lambda: truth)
        )  # fmt: skip
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
        cases, describe_machine(CPU), runner.Budget(1, 0.1), lambda words: None
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
        [case], describe_machine(CPU), runner.Budget(1, 0.1), lambda words: None
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


# ------------------------------------------------------------------------- processes, and memory


def build_that_dies(case: Case) -> Workload:
    """As a GPU's driver may end a process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def build_that_hangs(case: Case) -> Workload:
    """As a kernel that waits for itself does."""
    time.sleep(600)
    raise AssertionError


def build_that_refuses(case: Case) -> Workload:
    """As a suite does whose packages are missing."""
    raise ImportError("no such package")


def test_a_case_that_kills_its_process(quick: None) -> None:
    case = case_of(SHAPES["tiny"], torch.float32, "forward", ("sdpa",))
    known = {(case.dtype, case.threads): limits.Limits(1e12, "", 1e9)}
    said: list[str] = []
    dead, refused, alive = runner.run_cases(
        [replace(case, build=build_that_dies), replace(case, build=build_that_refuses), case],
        describe_machine(CPU),
        runner.Budget(1, 0.1, case_seconds=200),
        said.append,
        apart=True,
        known=known,
    )
    (row,) = dead.rows
    assert row["reason"] == "its process died of SIGKILL, while starting" and row["ms"] == ""
    assert row["shape"] == "tiny" and row["contender"] == "the suite"
    assert [row["reason"] for row in refused.rows] == ["ImportError: no such package"]
    assert [row["peak_tflops"] for row in alive.rows] == [1.0, 1.0]
    assert any("checking SDPA, no mask" in words for words in said)


def test_a_device_that_no_longer_answers(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each contender has its row still."""

    def gone(device: torch.device) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(timing, "stopwatch", gone)
    case = case_of(SHAPES["tiny"], torch.float32, "forward", ("sdpa", "sage"))
    (finished,) = runner.run_cases(
        [case],
        describe_machine(CPU),
        runner.Budget(1, 0.1),
        lambda words: None,
        known={(case.dtype, case.threads): limits.Limits(1e12, "", 1e9)},
    )
    lost = "not timed: RuntimeError: an illegal memory access was encountered"
    assert [row["reason"] for row in finished.rows] == [lost, lost, "needs a CUDA GPU"]


def test_memory_that_torch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 50)
    assert memory.available_bytes(CUDA) == 120


def test_a_case_over_its_time(quick: None) -> None:
    case = replace(case_of(SHAPES["tiny"], torch.float32, "forward"), build=build_that_hangs)
    begin = time.monotonic()
    (finished,) = runner.run_cases(
        [case],
        describe_machine(CPU),
        runner.Budget(case_seconds=1.5),
        lambda words: None,
        apart=True,
        known={(case.dtype, case.threads): limits.Limits(1e12, "", 1e9)},
    )
    assert [row["reason"] for row in finished.rows] == ["ended after 1.5 s, while starting"]
    assert time.monotonic() - begin < 60


def test_one_graph_at_a_time(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass's forward pass is let go of when another contender's turn comes."""
    alive: list[weakref.ref[torch.Tensor]] = []
    made: list[int] = []
    init = context.HeldForward.__init__

    def watched(self: Any, call: Callable[[], torch.Tensor]) -> None:
        def watched_call() -> torch.Tensor:
            assert not any(ref() is not None for ref in alive), "another's is still there"
            out = call()
            alive.append(weakref.ref(out))
            made.append(id(self))
            return out

        init(self, watched_call)

    monkeypatch.setattr(context.HeldForward, "__init__", watched)
    case = case_of(SHAPES["tiny"], torch.float32, "backward", ("sdpa", GATHERED, "eager"))
    (finished,) = runner.run_cases(
        [case], describe_machine(CPU), runner.Budget(2, 10.0), lambda words: None
    )
    assert not any(row["reason"] for row in finished.rows)
    assert all(ref() is None for ref in alive)
    who = list(dict.fromkeys(made))
    assert len(who) == 4 and made[:8] == [*who, *who], "checked, then in turn"


def test_the_forward_pass_is_not_timed() -> None:
    clock: list[str] = []
    q = torch.ones(3, requires_grad=True)

    def forward() -> torch.Tensor:
        clock.append("forward")
        return 2 * q

    pair = context.autograd_pair(forward, [q])
    assert pair.backward is not None
    backward = functools.partial(pair.backward, torch.ones(3))

    def watch(call: Callable[[], Any], repeats: int) -> Sample:
        clock.append("start")
        for _ in range(repeats):
            call()
        clock.append("stop")
        return Sample(1.0, False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "stopwatch", lambda device: watch)
        interleave([backward], device=CPU, rounds=2, seconds=9, turns=[pair.turn])
    assert clock == ["forward", "start", "stop"] * 2
    (found,) = backward()
    assert torch.equal(found, torch.full((3,), 2.0)) and clock[6:] == ["forward"]


# ---------------------------------------------------------------------------------------- timing


def timings(*seconds: float, contended: tuple[int, ...] = ()) -> Timings:
    return Timings([Sample(s, i in contended) for i, s in enumerate(seconds)])


def test_contention() -> None:
    assert not is_contended(queued=0.0, wall=1.0, threads=1)
    assert not is_contended(queued=0.029, wall=1.0, threads=1)
    assert is_contended(queued=0.031, wall=1.0, threads=1)
    assert not is_contended(queued=0.031, wall=1.0, threads=2)


def test_contended_samples_do_not_count() -> None:
    found = timings(1.0, 100.0, 2.0, 3.0, contended=(1,))
    assert found.clean == [1.0, 2.0, 3.0] and found.dropped == 1
    assert found.median() == 2.0 and found.spread() == (1.5, 2.5)


def test_ratios_are_of_rounds() -> None:
    # A machine that is ten times slower in the second round changes no ratio.
    assert ratio(timings(2.0, 20.0, 2.0), timings(1.0, 10.0, 1.0)) == 2.0
    assert ratio(timings(2.0, 9.0, contended=(1,)), timings(1.0, 1.0)) == 2.0
    assert ratio(timings(2.0, 9.0, contended=(1,)), timings(1.0, 1.0, contended=(0,))) is None


def test_contended_rounds_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    answers = iter([False, False, True, False, False, False])
    monkeypatch.setattr(timing, "is_contended", lambda *_: next(answers))
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)
    monkeypatch.setattr(timing, "WARM_BELOW", 0.0)
    calls = [lambda: turns.append("a"), lambda: turns.append("b")]
    found = interleave(calls, device=CPU, rounds=2, seconds=60)
    assert turns == ["a", "b"] * 3, "all take turns within a round"
    assert [len(t.clean) for t in found] == [2, 3]


def test_beside_a_short_call_everyone_is_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)
    calls = [lambda: turns.append("a"), lambda: turns.append("b")]
    found = interleave(calls, device=CPU, rounds=2, seconds=60)
    assert turns == ["a", "b"] + ["a", "a", "b", "b"] * 2
    assert [len(t.samples) for t in found] == [2, 2], "the warm-up is no sample"


def test_who_raises_is_out(quick: None) -> None:
    answers = iter([None, None, "fell over"])

    def sometimes() -> None:
        if (words := next(answers)) is not None:
            raise RuntimeError(words)

    good, bad = interleave(
        [lambda: None, sometimes], device=CPU, rounds=3, seconds=60, keep_going=True
    )
    assert len(good.samples) == 3 and not good.error
    assert bad.error == "RuntimeError: fell over"
    with pytest.raises(ZeroDivisionError):
        interleave([lambda: 1 / 0], device=CPU, rounds=1, seconds=1)


def test_the_host_gets_a_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush, sleep, then the clock: on the timed device, whichever is the current one."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: Any) -> float:
            return 5.0

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        done.append(str(device))
        yield
        done.append("left")

    class Flush:
        def zero_(self) -> None:
            done.append("flush")

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Event", Event)
    monkeypatch.setattr(cuda, "device", on)
    monkeypatch.setattr(cuda, "_sleep", lambda cycles: done.append("sleep"))
    monkeypatch.setattr(
        cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=7)
    )
    monkeypatch.setattr(torch, "empty", lambda *size, **options: Flush())
    for name, slept in (("NVIDIA H100", ["sleep"]), ("H100 [emulated GPU]", [])):
        done.clear()
        monkeypatch.setattr(cuda, "get_device_name", lambda device, name=name: name)
        watch = timing.stopwatch(torch.device("cuda:1"))
        assert watch(lambda: done.append("call"), 1) == Sample(5e-3, False)
        assert done == ["cuda:1", "flush", *slept, "event", "call", "event", "wait", "left"]


def test_pytest_benchmark_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    assert test_cases.waiting(lambda: 7, CUDA)() == 7 and waited == [CUDA]
    assert test_cases.waiting(lambda: 7, CPU)() == 7 and len(waited) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, hardware or emulated")
def test_a_case_on_a_gpu(quick: None) -> None:
    """All that is timed on one, forward and backward."""
    shape = Shape("short", (1, 6, 7), (3, 3), heads=1, head_dim=32, density=0.3)
    base = case_of(shape, torch.float16, "forward", ("sdpa", "eager"))
    cases = [
        replace(base, direction=direction, device=CUDA, backends=("triton",))
        for direction in ("forward", "backward")
    ]
    for finished in runner.run_cases(
        cases, describe_machine(CUDA), runner.Budget(1, 0.1), lambda words: None
    ):
        assert not any(row["reason"] for row in finished.rows), finished.rows
        op, sdpa, eager = finished.rows
        assert sdpa["kernel"] in ("flash", "cuDNN", "efficient", "math") and not op["kernel"]
        assert all(row["ms"] > 0 and row["cuda"] for row in (op, sdpa, eager))


def test_the_limit_is_the_roofline() -> None:
    limit = limits.Limits(flops=100.0, flops_source="", bandwidth=10.0)
    assert limit.seconds(200.0, 10.0) == 2.0 and limit.binding(200.0, 10.0) == "arithmetic"
    assert limit.seconds(200.0, 30.0) == 3.0 and limit.binding(200.0, 30.0) == "memory"


# ---------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_mask_is_a_box_in_every_frame(name: str) -> None:
    shape = SHAPES[name]
    mask = shape.mask().view(shape.grid)
    assert abs(mask.float().mean() - shape.density) < 0.05
    boxes = set()
    for frame in mask:
        rows, cols = frame.any(1).nonzero()[:, 0], frame.any(0).nonzero()[:, 0]
        assert frame.sum() == len(rows) * len(cols)
        assert frame[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].all()
        boxes.add((int(rows[0]), int(cols[0])))
    assert len(boxes) > 1, "it moves"


def test_large_shapes_are_reduced_and_say_so() -> None:
    shape = SHAPES["wan14b-480p-401f"]
    found = reduce_shape(shape, 0.3e12)
    assert found.heads == 1 and found.grid[0] < 101 and found.grid[1:] == shape.grid[1:]
    assert found.reduced.startswith("reduced to 1 of 40 heads, reduced to ")
    assert reduce_shape(SHAPES["tiny"], 0.3e12) == SHAPES["tiny"]


def test_shapes_that_became_equal_are_measured_once() -> None:
    long, short = SHAPES["wan14b-480p-401f"], SHAPES["wan14b-480p"]
    reduced = [reduce_shape(x, 0.15e12, most_frames=0.6e12) for x in (short, long, SHAPES["tiny"])]
    first, last = merge_equal(reduced)
    assert first.name == "wan14b-480p" and first.n == short.n and first.heads == 1
    assert "stands for wan14b-480p-401f too" in first.reduced and last == SHAPES["tiny"]


def test_sweeps_vary_what_they_say() -> None:
    sweeps = sweep_shapes()
    assert {shape.m for shape in sweeps["M"]} >= {0, 32768}
    assert len({shape.n for shape in sweeps["N"]}) == len(sweeps["N"])
    assert {shape.density for shape in sweeps["density"]} >= {0.0, 1.0}


@pytest.mark.parametrize(
    ("suite", "more"),
    [
        ("attention", ["wan1.3b-480p", "wan14b-720p"]),
        ("fused", ["wan1.3b-480p"]),
        ("norm_rope", ["wan1.3b-480p"]),
        ("block", []),
    ],
)
def test_a_gpu_has_time_for_larger_shapes(suite: str, more: list[str]) -> None:
    def shapes(device: torch.device, **options: Any) -> set[tuple[str, str]]:
        cases = select((suite,), Selection(device, 1, **options))
        return {(case.direction, case.shape.name) for case in cases}

    added = shapes(CUDA) - shapes(CPU)
    assert {name for _, name in added} == set(more)
    directions = {direction for direction, _ in shapes(CPU)}
    assert len(added) == len(more) * len(directions)
    assert shapes(CUDA, shapes=("tiny",)) == {(direction, "tiny") for direction in directions}
