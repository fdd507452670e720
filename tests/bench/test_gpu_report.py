"""The report of a GPU: its runner on stages of a test's own, and a dry run on the emulated GPU."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import faulted_gpu

from benchmarks import results
from benchmarks.gpu_report import runner
from benchmarks.gpu_report.folder import (
    CHECKS,
    FILES,
    LOG,
    REPORT,
    RESULTS,
    add_rows,
    read_json,
    read_rows,
)
from benchmarks.gpu_report.graphs import describe_call
from benchmarks.gpu_report.plan import Group, Stage, plan
from benchmarks.gpu_report.table import summary, times
from genhoi_kernels.tune.shapes import find_shape

ROOT = Path(__file__).resolve().parents[2]

SCRIPTS = {
    "good": "print('all is well')",
    "bad": "raise SystemExit('it is broken')",
    "slow": "import time\ntry: time.sleep(60)\nfinally: print('asked to end', flush=True)",
    "deaf": "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "print('here', flush=True)\ntime.sleep(60)",
    "site": "import carried; print(carried.WORDS)",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs groups of the scripts above; gives the folder."""
    package = tmp_path / "stages_of_a_test"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, script in SCRIPTS.items():
        (package / f"{name}.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "__package__", package.name)
    monkeypatch.setattr(runner, "_GRACE", 0.5)
    monkeypatch.setattr(runner, "_RESERVE", 0.0)
    monkeypatch.setattr(runner, "_LEAST", 0.5)

    def start(groups: Sequence[Group], *, seconds: float = 60, wheels: Path | None = None) -> Path:
        runner.Run(tmp_path / "out", seconds=seconds, wheels=wheels, tiny=True).all(groups)
        return tmp_path / "out"

    return start


def outcomes(out: Path) -> dict[str, str]:
    return {stage["name"]: stage["outcome"] for stage in read_json(out / REPORT)["stages"]}


def test_a_stages_fault_is_its_own(run) -> None:
    out = run([(Stage("one", "bad", 30),), (Stage("two", "good", 30),)])
    assert outcomes(out) == {"one": "failed", "two": "right"}
    log = (out / LOG).read_text()
    assert log.index("it is broken") < log.index("=== two") < log.index("all is well")


@pytest.mark.parametrize("script", ["slow", "deaf"])
def test_a_stage_is_stopped_at_its_limit(run, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Time enough for it to start, and to end, where other tests keep the cores busy.
    if script == "slow":
        monkeypatch.setattr(runner, "_GRACE", 20.0)
    out = run([(Stage("one", script, 6),), (Stage("two", "good", 30),)])
    assert outcomes(out) == {"one": "stopped", "two": "right"}
    assert ("asked to end" if script == "slow" else "here") in (out / LOG).read_text()


def test_a_group_runs_side_by_side_and_the_total_ends_all(run) -> None:
    """Two that would take a minute each, and one for which no time is left."""
    slow = Stage("one", "slow", 60), Stage("two", "slow", 60)
    out = run([slow, (Stage("three", "good", 30),)], seconds=2)
    assert outcomes(out) == {"one": "stopped", "two": "stopped", "three": "left out"}
    assert all(stage["seconds"] < 5 for stage in read_json(out / REPORT)["stages"])


def test_wheels_are_unpacked_for_the_stages(run, tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "WORDS = 'from afar'")
    out = run([(Stage("one", "site", 30),)], wheels=tmp_path / "wheels")
    assert "from afar" in (out / LOG).read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no wheel"):
        run([], wheels=tmp_path / "empty")


def test_an_earlier_report_is_removed_and_nothing_else(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RESULTS).write_text("old")
    (out / "mine.txt").write_text("kept")
    run([])
    assert not (out / RESULTS).exists() and (out / "mine.txt").read_text() == "kept"


def test_every_stage_has_a_module_and_a_name_of_its_own() -> None:
    stages = [stage for group in plan(ptxas="/some/ptxas") for stage in group]
    assert len({stage.name for stage in stages}) == len(stages)
    for stage in stages:
        assert (ROOT / "benchmarks" / "gpu_report" / f"{stage.module}.py").exists()
    without = [stage.name for group in plan() for stage in group]
    assert not any("ptxas" in name for name in without)


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_whose_gpu_has_faulted_ends(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, answers: bool
) -> None:
    """After a test, so that pytest-xdist starts another; one whose GPU answers goes on."""
    hooks = [hook.function for hook in pytestconfig.hook.pytest_runtest_logfinish.get_hookimpls()]
    assert faulted_gpu.pytest_runtest_logfinish in hooks
    ended = []

    def synchronize() -> None:
        if not answers:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", synchronize)
    monkeypatch.setattr("os._exit", ended.append)
    faulted_gpu.pytest_runtest_logfinish()
    monkeypatch.undo()
    assert ended == ([] if answers else [1])


ROW = {
    "suite": "attention",
    "shape": "wan1.3b-480p",
    "direction": "forward",
    "reason": "",
    "date": "2026-01-02T03:04:05Z",
    "device": "NVIDIA Some GPU",
    "n": 32760,
    "m": 1024,
    "heads": 12,
    "peak_tflops": 750.0,
}


def report(folder: Path) -> Path:
    """A report as a GPU would leave it."""
    folder.mkdir()
    timed = [
        ROW | {"contender": "this op (cuda)", "ms": 10.0, "tflops": 600.0, "limit_share": 0.8},
        ROW | {"contender": "gathered two-pass, cuDNN", "ms": 12.5, "tflops": 480.0},
        ROW | {"contender": "cuDNN, no mask", "ms": 5.0, "tflops": 990.0},
        ROW | {"contender": "this op (flash)", "ms": "", "reason": "no FlashAttention"},
        ROW
        | {"contender": "this op (triton)", "ms": 11.0, "tflops": 550.0, "setting": "tuned blocks"},
    ]
    add_rows(folder / RESULTS, timed)
    checks = [
        {
            "what": "check",
            "backend": "cuda",
            "dtype": "bfloat16",
            "head_dim": 64,
            "form": "all",
            "outcome": outcome,
            "worst": "dq",
            "words": "",
        }
        for outcome in ("right", "moves")
    ]
    add_rows(folder / CHECKS, checks)
    environment = {
        "gpu": "NVIDIA Some GPU",
        "cudnn": 1,
        "packages": {"torch": "2.10", "triton": "3.6"},
        "nvidia_smi": {"driver_version": "1"},
        "limits": {"flops": 7.5e14, "bandwidth": 3e12},
    }
    stages = [{"name": "bench", "outcome": "right", "seconds": 12.0}]
    text = json.dumps({"environment": environment, "stages": stages, "tiny": False})
    (folder / REPORT).write_text(text)
    return folder


def test_the_table_says_what_is_wrong_and_compares_with_the_best_peer(tmp_path: Path) -> None:
    text = "\n".join(summary(report(tmp_path / "report")))
    assert "check cuda: 1 right, 1 moves" in text and "moves: bfloat16 64 all dq" in text
    # Not with what computes another function.
    assert "0.80 of gathered two-pass, cuDNN" in text
    assert "no FlashAttention" in text


def test_a_call_that_is_timed_alone_has_a_line(tmp_path: Path) -> None:
    """As where only one stage runs."""
    row = describe_call("launches", find_shape("tiny"), "cuda")
    add_rows(tmp_path / RESULTS, [row | {"ms": 0.05, "setting": "host time"}])
    title, line = times(read_rows(tmp_path / RESULTS))
    assert title == "launches, tiny, forward:"
    assert "this op (cuda), host time" in line and "0.050 ms" in line


def test_a_report_goes_into_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = "<!-- gpu-times -->\nold\n<!-- end of gpu-times -->"
    Path("README.md").write_text(f"before\n{old}\nafter\n")
    results.add.main([str(report(tmp_path / "report"))], standalone_mode=False)
    folder = Path("docs/results/some-gpu-2026-01-02")
    assert {path.name for path in folder.iterdir()} == {REPORT, CHECKS, RESULTS, "speeds.png"}
    readme = Path("README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    assert "| this op (cuda) | 10 (600) |  |  |  |" in readme
    assert "| this op (triton), tuned blocks | 11 (550)* |  |  |  |" in readme
    assert "this op (flash)" not in readme


def test_readme_has_the_table_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = results.README.read_text(encoding="utf-8")
    made = results.gpu_table(results.newest())
    assert results.replaced(text, results.README_TABLE, made) == text


# One of those that differ in size, in Triton's assembler or in the FlashAttention that is taken.
ONE_OF_EACH = (
    "environment",
    "build",
    "check-cuda",
    "check-triton",
    "check-flash",
    "precompile",
    "bench-wan1.3b-480p",
    "tuning",
    "counters",
    "tests",
    "bench-wan1.3b-480p-tuned",
    "choices",
    "bench-norm_rope",
    "bench-block",
    "bench-fused",
    "graphs",
    "launches",
    "bench-flex",
    "more-tests",
)


@pytest.mark.gpu
@pytest.mark.emulated
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not os.environ.get("EMULATED_GPU"), reason="a dry run on the emulated GPU")
@pytest.mark.parametrize("stages", [ONE_OF_EACH, ()], ids=["one_of_each", "all_stages"])
def test_dry_run(tmp_path: Path, stages: Sequence[str]) -> None:
    """Stages at tiny sizes: none fails, and each leaves its files."""
    # Before torch is imported, in every Python that is started: as the emulated GPU wants it.
    (tmp_path / "sitecustomize.py").write_text("import emugpu\nemugpu.install()\n")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tools" / "emugpu")))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "benchmarks.gpu_report", "--tiny", "--minutes", "12"]
    command += [word for stage in stages for word in ("--stages", stage)]
    out = tmp_path / "out"
    # Of an earlier dry run: what was measured is not measured again.
    shutil.rmtree(ROOT / "build" / "gpu-report" / "cache" / "genhoi", ignore_errors=True)
    done = subprocess.run(
        [*command, "--out", str(out)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    log = (out / LOG).read_text() if (out / LOG).exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log[-5000:]
    stages = read_json(out / REPORT)["stages"]
    assert {stage["outcome"] for stage in stages} == {"right"}, stages
    assert {path.name for path in out.iterdir()} <= set(FILES)
    rows = read_rows(out / RESULTS)
    for suite in ("attention", "norm_rope", "fused"):
        assert any(row["suite"] == suite and row["ms"] for row in rows), suite
    launched = [row["contender"] for row in rows if row["suite"] == "launches" and row["ms"]]
    assert sorted(launched) == ["this op (cuda)"] * 2 + ["this op (triton)"] * 2
    checked = [row for row in read_rows(out / CHECKS) if row["what"] == "check"]
    assert {row["backend"] for row in checked if row["outcome"] == "right"} >= {"cuda", "triton"}
    with (out / "tuning.csv").open() as file:
        assert len(list(csv.DictReader(file))) > 3
