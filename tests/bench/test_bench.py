"""The suite's command end to end on tiny shapes, and what it refuses.

Nothing here needs the model layer, except where a test says so: the suite runs without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.bench_cases import CPU, CUDA, FEW_PEERS, HAS_MODEL_LAYER, bench, case_of, rows_of

from benchmarks import cli, machine, report, runner
from benchmarks.norm_rope import TWO_PASSES
from benchmarks.peers import GATHERED, PEERS
from genhoi_kernels.files import whole_file
from genhoi_kernels.tune.shapes import SHAPES

ROOT = Path(__file__).resolve().parents[2]

pytest_plugins = ["support.bench_cases"]


# ------------------------------------------------------------------------------------- the whole


def test_reference_frames_in_one_pass_and_in_two(tmp_path: Path, quick: None) -> None:
    result = bench(tmp_path, "--suite", "reference_frames", "--shapes", "tiny")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path)
    for direction in ("forward", "backward"):
        names = [row["contender"] for row in rows if row["direction"] == direction]
        assert names[0].startswith("this op (") and names[-1] == TWO_PASSES
    for row in rows:
        assert not row["reason"] and float(row["error"]) <= float(row["error_allowed"]), row


def test_a_suite_end_to_end(tmp_path: Path, quick: None) -> None:
    result = bench(tmp_path, "--suite", "quick", *FEW_PEERS)
    assert result.exit_code == 0, result.output
    for phrase in (
        "this op",
        "SDPA, no mask",
        "1 thread",
        "- SageAttention, no mask: needs a CUDA",
    ):
        assert phrase in result.output
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
    options = ("--suite", "attention", "--shapes", "tiny", "--dtype", "float32", "--peers", "sdpa")
    assert bench(tmp_path, *options).exit_code == 0
    first = rows_of(tmp_path)
    assert [row["direction"] for row in first] == ["forward"] * 2 + ["backward"] * 2
    assert bench(tmp_path, *options).exit_code == 0
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


def genhoi_bench(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `genhoi bench` in a folder; it needs the model layer's packages."""
    pytest.importorskip("av", reason="needs av, as the package genhoi does")
    code = "from genhoi.cli import main; main(prog_name='genhoi')"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, "bench", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_the_command_of_the_package_is_the_suite_s(tmp_path: Path) -> None:
    helped = genhoi_bench(tmp_path, "--help")
    assert helped.returncode == 0 and "Usage: genhoi bench [OPTIONS]" in helped.stdout
    for option in cli.bench.params:
        assert option.opts[0] in helped.stdout
    refused = genhoi_bench(tmp_path, "--suite", "slow")
    assert refused.returncode == 1 and "--suite: got 'slow'" in refused.stderr
    assert genhoi_bench(tmp_path, "--slow").returncode == 2
    assert not list(tmp_path.iterdir())


def test_without_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="needs av, as the package genhoi does")
    from genhoi.cli import bench as command
    from genhoi.cli import main

    monkeypatch.setattr(command, "_checkout", lambda: None)
    result = CliRunner().invoke(main, ["bench"])
    assert result.exit_code == 1 and "checkout of the repository" in result.output


def test_the_suite_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package is installed, the checkout in which one stands has the suite."""
    pytest.importorskip("av", reason="needs av, as the package genhoi does")
    from genhoi.cli import bench as command

    monkeypatch.setattr(command, "__file__", str(tmp_path / "site" / "genhoi" / "cli" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    assert command._checkout() is None
    monkeypatch.chdir(ROOT)
    assert command._checkout() == ROOT


def test_without_the_model_layer() -> None:
    """The suite, its command and the GPU tests, where diffusers and others are missing."""
    tests = [str(ROOT), *(str(ROOT / "tests" / name) for name in (".", "kernels", "bench"))]
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("diffusers", "av", "expecttest", "transformers", "peft")))
sys.path[:0] = {tests!r}
import benchmarks.cli, benchmarks.conftest, benchmarks.plots, benchmarks.report
import benchmarks.test_cases, conftest, test_bench, test_gpu
assert "genhoi" not in sys.modules
sys.argv = ["benchmarks", "--help"]
import runpy
runpy.run_module("benchmarks", run_name="__main__")
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "Usage: python -m benchmarks" in finished.stdout
