"""`genhoi bench --tune`: which backend to try first, by times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.bench_cases import CPU, CUDA, bench

import genhoi_kernels as gk
from benchmarks import checks, machine, timing, tune
from benchmarks.shapes import SHAPES
from genhoi_kernels.backends import preferences as choices
from genhoi_kernels.backends import registry

pytest_plugins = ["support.bench_cases"]


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
