"""`genhoi bench` end to end on tiny shapes, what it refuses, and its arithmetic."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import genhoi_kernels as gk
from benchmarks import checks, limits, machine, report, runner, timing, tune
from benchmarks.bare_attention import build_attention
from benchmarks.case import Case, Contender, Direction, Truth, Workload
from benchmarks.machine import describe_machine
from benchmarks.peers import GATHERED, PEERS
from benchmarks.shapes import SHAPES, Shape, merge_equal, reduce_shape, sweep_shapes
from benchmarks.timing import Sample, Timings, interleave, is_contended, ratio
from genhoi import cli
from genhoi_kernels import choices, registry

CPU = torch.device("cpu")
FEW_PEERS = ("--peers", "sdpa", "--peers", GATHERED, "--peers", "sage")
SHORT = ("--rounds", "1", "--seconds", "0.1", "--threads", "1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures no limit for long, and counts every sample: other programs may be busy."""
    monkeypatch.setattr(limits, "_SECONDS", 0.0)
    monkeypatch.setattr(limits, "_COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(limits, "_MATMUL", {"cpu": (128,)})
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)


def bench(out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.main, ["bench", "--out", str(out), *SHORT, *words])


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


def test_without_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="benchmarks")

    monkeypatch.setattr(importlib, "import_module", missing)
    result = bench(tmp_path)
    assert result.exit_code == 1 and "checkout of the repository" in result.output


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
