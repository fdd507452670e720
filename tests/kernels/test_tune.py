"""`genhoi tune`: which backend to try first, by times."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.bench_cases import bench

import genhoi_kernels as gk
from genhoi.cli.tune import tune as genhoi_tune
from genhoi_kernels.backends import preferences, registry
from genhoi_kernels.tune import __main__ as module_command
from genhoi_kernels.tune import accuracy, command, measure, table, timing
from genhoi_kernels.tune.measure import Answer, Question
from genhoi_kernels.tune.shapes import SHAPES, find_shape

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def question(name: str, training: bool) -> Question:
    """A question about a GPU."""
    return Question(SHAPES[name], torch.bfloat16, training, CUDA)


def answer(name: str, training: bool, **seconds: float) -> Answer:
    """What was measured of it."""
    return Answer(question(name, training), seconds, {})


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A GPU with flash-attn 3, as far as choices are concerned; where the user's table will be."""

    def about(call: Any) -> preferences.Question:
        dtype = str(call.dtype).removeprefix("torch.")
        return preferences.Question(
            "sm_90", "H100", dtype, call.head_dim, call.rows, call.needs_grad, 3
        )

    monkeypatch.setattr(registry, "question", about)
    monkeypatch.setenv("GENHOI_CACHE", str(tmp_path / "cache"))
    preferences.user_table.cache_clear()
    yield preferences.table_path()
    preferences.user_table.cache_clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short sample of each, on a CPU that others use too."""
    monkeypatch.setattr(timing, "is_contended", lambda *_: False)
    monkeypatch.setattr(timing, "MIN_SAMPLE", 0.0)
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr(measure, "SECONDS", 0.1)


def test_tuning_writes_what_was_measured(a_gpu: Path) -> None:
    answers = {
        ("headline-4096", False): {"triton": 1.0, "flash": 2.0},
        ("wan1.3b-480p", False): {"triton": 3.0, "flash": 2.0},
        ("wan14b-480p", False): {"triton": 1.0, "flash": 2.0},
        ("wan14b-480p", True): {"flash": 2.0},
    }

    def measured(asked: Question, names: Sequence[str]) -> Answer:
        assert list(names) == ["triton", "flash"]
        about = asked.shape.name, asked.training
        return answer(*about, **answers[about])

    questions = [question(*about) for about in answers]
    said: list[str] = []
    new = table.tune(questions, ["triton", "flash"], measure=measured, say=said.append)
    assert said[1] == "wan1.3b-480p, bfloat16, inference: flash 2e+03 ms, triton 3e+03 ms"
    assert preferences.read_table(a_gpu.read_text()) == tuple(new) == preferences.user_table()

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
    again = table.tune(questions[3:], ["triton", "flash"], measure=measured)
    assert preferences.user_table() == (*again, short, long) and again[0].order[0] == "triton"


def test_nothing_measured_is_nothing_written_about(a_gpu: Path) -> None:
    assert table.choose([answer("tiny", False)]) == []


def test_what_is_wrong_is_not_chosen(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real measurement, on the CPU: one backend refuses, one is wrong."""
    monkeypatch.setattr(registry, "supports", lambda name, call: "no" if name == "flash" else None)
    names = [b.name for b in gk.backends() if b.usable and b.name in ("cpu", "eager")]
    for good in (True, False):
        monkeypatch.setattr(accuracy, "compare", lambda *_, good=good: SimpleNamespace(good=good))
        given = measure.measure(tiny_question(training=True), [*names[:1], "flash"])
        assert given.refusals.pop("flash") == "no"
        assert (len(given.seconds), len(given.refusals)) == ((1, 0) if good else (0, 1))


def tiny_question(*, training: bool) -> Question:
    return Question(SHAPES["tiny"], torch.float32, training, CPU)


def test_results_are_held_to_the_budget(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is right is timed; made a little wrong, it is not."""
    names = [b.name for b in gk.backends() if b.usable and b.name in ("cpu", "eager")]
    right = measure.measure(tiny_question(training=True), names)
    assert set(right.seconds) == set(names) and not right.refusals
    results = measure._results
    monkeypatch.setattr(
        measure,
        "_results",
        lambda *given: {name: 1.001 * x for name, x in results(*given).items()},
    )
    wrong = measure.measure(tiny_question(training=True), names)
    assert wrong.seconds == {}
    assert set(wrong.refusals.values()) == {"its forward pass keeps no error budget"}


def test_a_backend_that_raises_is_not_chosen(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "supports", lambda name, call: None)
    given = measure.measure(tiny_question(training=True), ["eager", "triton-of-another-world"])
    assert given.seconds["eager"] > 0 and len(given.seconds) == 1
    assert "triton-of-another-world" in given.refusals["triton-of-another-world"]


def test_a_question_has_a_time_limit(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "supports", lambda name, call: None)
    given = measure.measure(tiny_question(training=False), ["eager"], seconds=-1.0)
    assert given.seconds == {} and given.refusals == {"eager": "there was no time"}


def test_a_question_in_a_process_of_its_own() -> None:
    given = measure.measure_apart(tiny_question(training=False), ["eager"], seconds=0.01)
    assert given.seconds == {} and "DiedError: ended after 0.02 s" in given.refusals["eager"]


def test_tuning_keeps_what_it_has(a_gpu: Path) -> None:
    def measured(asked: Question, names: Sequence[str]) -> Answer:
        if asked.training:
            raise KeyboardInterrupt
        return answer(asked.shape.name, False, triton=1.0)

    questions = [question("tiny", training) for training in (False, True)]
    with pytest.raises(KeyboardInterrupt):
        table.tune(questions, ["triton"], measure=measured)
    (kept,) = preferences.read_table(a_gpu.read_text())
    assert kept.order == ("triton",) and not kept.training


def test_the_longest_shape_is_tuned_for_only_if_named() -> None:
    assert set(SHAPES) - set(command.DEFAULT_SHAPES) == {"wan14b-480p-401f"}


def test_shapes_are_named_or_grids() -> None:
    assert find_shape("tiny") is SHAPES["tiny"]
    shape = find_shape("2x30x52")
    assert (shape.name, shape.n, shape.m, shape.head_dim) == ("2x30x52", 3120, 1024, 128)
    for name in ("2x30", "0x3x3", "wan"):
        with pytest.raises(
            ValueError, match=rf"--shapes: got '{name}', wanted one of tiny, .*FxHxW"
        ):
            find_shape(name)


# ----------------------------------------------------------------------------------- the commands


def run_genhoi_tune(options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    result = CliRunner().invoke(genhoi_tune, options)
    return result.exit_code, result.output


def run_module(options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    monkeypatch.setattr(sys, "argv", ["tune", *options])
    code = module_command.main()
    return code, "".join(capsys.readouterr())


RUNS = pytest.mark.parametrize("run", [run_genhoi_tune, run_module])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
@RUNS
def test_tuning_needs_a_gpu(
    run: Any, a_gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for options, device in (([], "cuda"), (["--device", "cpu"], "cpu")):
        code, output = run(options, monkeypatch, capsys)
        assert code == 1 and f"--device: got '{device}', wanted a GPU" in output
    assert not a_gpu.exists()


@RUNS
def test_the_tuning_command(
    run: Any, a_gpu: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "is_hardware", lambda device: True)
    monkeypatch.setattr(command, "gpu_backends", lambda: ["triton"])
    code, output = run([], monkeypatch, capsys)
    assert code == 0 and "backends triton is usable" in output
    assert not a_gpu.exists()

    monkeypatch.setattr(command, "gpu_backends", lambda: ["triton", "flash"])
    asked: list[Question] = []
    limits: list[dict[str, float]] = []

    def stand_in(questions: Sequence[Question], names: Any, *, measure: Any, say: Any) -> list[Any]:
        asked.extend(questions)
        limits.append(measure.keywords)
        assert measure.func is command.measure_apart
        say("measured")
        return []

    monkeypatch.setattr(table, "tune", stand_in)
    options = ["--shapes", "tiny", "--shapes", "2x8x8", "--dtype", "float16", "--device", "cuda:1"]
    code, output = run(options, monkeypatch, capsys)
    assert code == 0 and f"Choices: {a_gpu} (0 measured)" in output
    assert [(q.shape.name, q.dtype, q.training, str(q.device)) for q in asked] == [
        (name, torch.float16, training, "cuda:1")
        for name in ("tiny", "2x8x8")
        for training in (False, True)
    ]
    run(["--case-seconds", "7"], monkeypatch, capsys)
    assert limits == [{"seconds": 600.0}, {"seconds": 7.0}]
    for options, sentence in (
        (["--dtype", "int8"], "--dtype: got 'int8', wanted one of bfloat16, float16, float32"),
        (["--shapes", "huge"], "--shapes: got 'huge', wanted one of tiny"),
        (["--device", "gpu"], "--device: got 'gpu', wanted a GPU"),
    ):
        code, output = run(options, monkeypatch, capsys)
        assert code == 1 and sentence in output


def test_the_benchmarks_option_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`genhoi bench --tune`, which a checkout has."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(command, "tune", given.update)
    result = bench(tmp_path, "--tune", "--shapes", "tiny", "--dtype", "float16")
    assert result.exit_code == 0, result.output
    assert given.pop("say") is not None
    assert given == {
        "shapes": ("tiny",),
        "dtypes": ("float16",),
        "device": "cpu",
        "case_seconds": 600.0,
    }


def test_tuning_needs_torch_alone(tmp_path: Path) -> None:
    """An installation of the op alone has no click, rich or model layer, and no benchmarks."""
    code = """
import sys
for name in ("click", "rich", "genhoi", "benchmarks", "diffusers"):
    sys.modules[name] = None
import genhoi_kernels.tune.__main__
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
