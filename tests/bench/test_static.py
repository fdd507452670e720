"""Kernels compiled ahead of time: what is counted in them, and what is wrong with them."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.cli import bench
from benchmarks.static import build, peers, performance, pool, report
from benchmarks.static.architectures import ARCHITECTURES
from benchmarks.static.compile import Compiled, is_pipelined
from benchmarks.static.sass import classify, read_functions, tensor_loops, usual_body
from benchmarks.static.sass_model import Kernel, choose_loop, model_sass
from benchmarks.static.table import compiled_row, print_compiled, write_rows
from benchmarks.static.tools import Usage
from benchmarks.static.variant import Variant
from benchmarks.static.violations import violations

ROOT = Path(__file__).resolve().parents[2]
TILE = (64, 32, 64)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def sass(arch: str) -> str:
    return (ROOT / "tests" / "bench" / "sass" / f"forward_{arch}.sass").read_text(encoding="utf-8")


def compiled(arch: str = "sm_80", **changed: Any) -> Compiled:
    """A forward kernel that is well."""
    well = Compiled(
        variant="forward",
        arch=arch,
        dtype="bf16",
        head_dim=64,
        tile=TILE,
        num_warps=4,
        num_stages=2,
        main_loop=True,
        how="",
        constants={"D": "64", "GATE": "none"},
        registers=138,
        shared=16384,
        tensor=ARCHITECTURES[arch].tensor[0],
        pipelined=True if arch.startswith("sm_") else None,
        listing=sass(arch) if arch in ("sm_80", "sm_90") else "",
    )
    return replace(well, **changed)


def words(**changed: Any) -> str:
    return "; ".join(violations(compiled(**changed)))


# ------------------------------------------------------------------------------------------- SASS


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HMMA.16816.F32.BF16", "HMMA"),
        ("HGMMA.64x64x16.F32.BF16", "HGMMA"),
        ("UTCHMMA", "UTCMMA"),
        ("LDGSTS.E.BYPASS.128", "LDGSTS"),
        ("UTMALDG.4D", "UTMALDG"),
        ("FFMA.FTZ", "FP32"),
        ("HFMA2.MMA", "FP32"),
        ("FMNMX3", "FMNMX"),
        ("VIMNMX3", "IALU"),
        ("F2FP.BF16.F32.PACK_AB", "CVT"),
        ("UIADD3", "UNIF"),
        ("R2UR", "UNIF"),
        ("STL.64", "SPILL"),
        ("WARPSYNC", "BAR"),
        ("QSPC.E.S", "OTHER"),
    ],
)
def test_classes_of_instructions(opcode: str, kind: str) -> None:
    assert classify(opcode) == kind


def test_loops_by_label_and_by_address() -> None:
    inner = ["HMMA.16816.F32 R0, R0, R2, R0", "@P0 BRA `(.L_x_1)"]
    lines = ["MOV R1, R2", *inner, "@!P1 BRA `(.L_x_0)", "EXIT"]
    body = "".join(f" /*{16 * i:04x}*/ {line} ;\n" for i, line in enumerate(lines))
    labelled = ".L_x_0:\n" + body.replace(" /*0010*/", ".L_x_1:\n /*0010*/")
    by_address = body.replace("`(.L_x_1)", "0x10").replace("`(.L_x_0)", "0x0")
    for text in (labelled, by_address):
        (function,) = read_functions(text)
        assert [(loop.first, loop.last) for loop in tensor_loops(function)] == [(1, 2)]


@pytest.mark.parametrize(
    ("skipped", "counted"),
    [
        (["FADD R1, R1, R2", "SHFL.BFLY PT, R1, R1, 0x1, 0x1f", "MUFU.EX2 R1, R1"], 0),
        (["FADD R1, R1, R2", "LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64]"], 2),
        (["HMMA.16816.F32 R0, R0, R2, R0"], 1),
    ],
)
@pytest.mark.parametrize("branch", ["@!P1 BRA `(.L_x_1)", "BRA `(.L_x_1)", "@P1 BRA `(.L_x_2)"])
def test_work_for_rare_values_is_left_out(skipped: list[str], counted: int, branch: str) -> None:
    """Where a branch may skip it inside the loop, and it is arithmetic alone."""
    lines = ["HMMA.16816.F32 R0, R0, R2, R0", branch, *skipped]
    text = "\n".join(
        [
            ".L_x_0:",
            *(f" /*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)),
            ".L_x_1:",
            " /*0100*/ FMUL R1, R1, R2 ;",
            " /*0110*/ @P0 BRA `(.L_x_0) ;",
            ".L_x_2:",
            " /*0120*/ EXIT ;",
        ]
    )
    (function,) = read_functions(text)
    (loop,) = tensor_loops(function)
    kept = counted if branch == "@!P1 BRA `(.L_x_1)" else len(skipped)
    assert len(usual_body(function, loop)) == 4 + kept


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_copies_ahead_make_a_pipeline(arch: str) -> None:
    (function,) = read_functions(sass(arch))
    (loop,) = tensor_loops(function)
    assert is_pipelined(function)
    only_inside = "\n".join(
        line
        for i, line in enumerate(sass(arch).splitlines())
        if "LDGSTS" not in line or i > loop.first
    )
    assert not is_pipelined(read_functions(only_inside)[0])
    without = "\n".join(line for line in sass(arch).splitlines() if "LDGSTS" not in line)
    assert not is_pipelined(read_functions(without)[0])


# ------------------------------------------------------------------------------------------ model


@pytest.mark.parametrize(
    ("arch", "wanted"),
    [
        (
            "sm_80",
            {
                "loop_ins": 212,
                "HMMA": 32,
                "LDSM": 20,
                "LDGSTS": 4,
                "FP32": 72,
                "MUFU": 18,
                "cyc_tensor": 256.0,
                "cyc_fma": 148.0,
                "cyc_alu": 76.0,
                "cyc_mufu": 144.0,
                "cyc_lsu": 424.0,
                "cyc_issue": 212.0,
                "bound": "lsu",
                "cyc_phase": 584.0,
                "eff_max": 0.604,
                "eff_phase": 0.438,
                "eff_sum": 0.244,
                "ctas_per_sm": 3,
                "softmax_ins_per_elem": 10.0,
                "loop": "0/1@73",
            },
        ),
        (
            "sm_90",
            {
                "loop_ins": 208,
                "HGMMA": 6,
                "LDSM": 4,
                "LDGSTS": 4,
                "FP32": 72,
                "UNIF": 35,
                "cyc_tensor": 128.0,
                "cyc_fma": 76.0,
                "cyc_alu": 78.0,
                "cyc_mufu": 144.0,
                "cyc_lsu": 252.0,
                "cyc_issue": 208.0,
                "bound": "lsu",
                "cyc_phase": 450.0,
                "eff_max": 0.508,
                "eff_phase": 0.284,
                "eff_sum": 0.189,
                "ctas_per_sm": 4,
                "softmax_ins_per_elem": 12.38,
                "loop": "0/1@76",
            },
        ),
    ],
)
def test_figures_of_a_stored_loop(arch: str, wanted: dict[str, Any]) -> None:
    (row,) = model_sass(sass(arch), Kernel(arch, TILE, products=2, warps=4, shared=16384), {})
    assert {name: row[name] for name in wanted} == wanted
    assert row["tiles_per_pass"] == 1.0


def test_warps_are_told_by_the_products() -> None:
    (row,) = model_sass(sass("sm_80"), Kernel("sm_80", TILE), {})
    assert row["warps"] == 4
    (row,) = model_sass(sass("sm_80"), Kernel("sm_80", TILE, warps=8), {})
    assert row["tiles_per_pass"] == 2.0


def test_usage_beats_what_the_instructions_name() -> None:
    usages = {"attention_forward": Usage(200, 16)}
    (row,) = model_sass(sass("sm_80"), Kernel("sm_80", TILE), usages)
    assert (row["regs"], row["stack"], row["ctas_per_sm"]) == (200, 16, 2)


def test_the_main_loop_is_the_one_of_a_tile() -> None:
    tail = {"tiles_per_pass": 0.5, "loop_ins": 90}
    lean, masked = (
        {"tiles_per_pass": 1.0, "loop_ins": 200},
        {"tiles_per_pass": 1.0, "loop_ins": 250},
    )
    assert choose_loop([tail, masked, lean]) is lean


def test_peers_are_stored_whole() -> None:
    rows = {row["kernel"]: performance.peer_row(row) for row in peers.read_peers()}
    fast = rows["FA2 fwd dew-flash-attn (fast-math) 128x64"]
    assert (fast["arch"], fast["loop_ins"], fast["issued"], fast["to_fa2"]) == (
        "sm_80",
        881,
        3524,
        1.0,
    )
    back = rows["FA2 bwd dew-flash-attn (fast-math) 64x128"]
    assert (back["direction"], back["products"], back["to_fa2"]) == ("backward", 5, 1.0)
    assert rows["FA3 fwd fa3-fwd-0.0.3 128x176"]["eff_phase"] == 0.662


# ------------------------------------------------------------------------------------ violations


def test_nothing_wrong() -> None:
    for arch in ARCHITECTURES:
        assert violations(compiled(arch)) == []


def test_what_is_wrong_is_said() -> None:
    assert words(failure="CompilationError at 1:2: no") == (
        "does not compile: CompilationError at 1:2: no"
    )
    assert words(spilled=8) == "spills 8 bytes, wanted none"
    assert words(arch="gfx942", spilled=2) == "spills 2 registers, wanted none"
    assert "has no tensor-core instructions, wanted HGMMA" in words(arch="sm_90", tensor="")
    assert words(pipelined=False) == "has no pipelined loop, wanted 2 stages"
    assert words(spilled=8, pipelined=False).count("; ") == 1


@pytest.mark.parametrize(
    ("arch", "most"),
    [
        ("sm_80", 166912),
        ("sm_86", 101376),
        ("sm_89", 101376),
        ("sm_90", 232448),
        ("sm_100", 232448),
        ("sm_120", 101376),
        ("gfx942", 65536),
    ],
)
def test_shared_memory_has_a_limit(arch: str, most: int) -> None:
    assert words(arch=arch, shared=most) == ""
    assert f"a CTA has at most {most}" in words(arch=arch, shared=most + 1)


def test_what_is_not_asked_for_is_not_missed() -> None:
    assert words(main_loop=False, tensor="", pipelined=False) == ""
    assert words(num_stages=1, pipelined=False) == ""
    assert words(arch="gfx942", pipelined=None) == ""


def test_the_table_lists_violations(tmp_path: Path) -> None:
    each = [compiled(), compiled(spilled=8), compiled("sm_90", failure="ValueError  no")]
    console = Console(width=170, record=True, file=io.StringIO())
    print_compiled(console, each)
    text = console.export_text()
    assert "[D=64, GATE=none] spills 8 bytes, wanted none" in text
    assert "3 variants, 2 with violations" in text
    file = tmp_path / "compiled.csv"
    file.write_text("old")
    write_rows(file, [compiled_row(one) for one in each])
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["spilled"] for row in rows] == ["0", "8", ""]
    assert rows[0]["ctas_per_sm"] == "3" and rows[0]["violations"] == ""
    assert rows[2]["violations"] == "does not compile: ValueError  no"
    assert [path.name for path in tmp_path.iterdir()] == ["compiled.csv"]


# ---------------------------------------------------------------------------------------- report


def test_a_row_has_what_was_counted() -> None:
    row = performance.our_row(compiled())
    assert (row["products"], row["direction"], row["loop_ins"]) == (2, "forward", 212)
    assert row["issued"] == 212 * 4 * 4 and "to_fa2" not in row  # head dim 64
    assert row["eff_phase"] == 0.438
    like = performance.our_row(compiled("sm_86", listing=sass("sm_80")))
    assert like["loop_ins"] == 212 and "eff_phase" not in like
    assert "loop_ins" not in performance.our_row(compiled("gfx942"))


def test_aims_are_held_against_the_worst() -> None:
    common = {"ours": True, "dtype": "bf16", "head_dim": 128, "direction": "forward"}
    rows = [
        {"arch": "sm_80", "to_fa2": 1.2, **common},
        {"arch": "sm_80", "to_fa2": 1.5, **common},
        {"arch": "sm_90", "eff_phase": 0.55, **common},
        {"arch": "sm_90", "eff_phase": 0.1, **common, "direction": "backward"},
    ]
    first, second = performance.aims_met(rows)
    assert "1.50 .. 1.20, wanted at most 1.40: MISSED" in first
    assert "0.55, wanted at least 0.50: met" in second
    assert "no kernel" in performance.aims_met([])[0]


def test_what_gate_and_reference_cost_the_loop() -> None:
    plain = compiled()
    full = compiled(constants={"D": "64", "GATE": "token", "MASK": "True"})
    other = compiled(constants={"D": "64", "GATE": "token"}, num_warps=8)
    each = [full, plain, other]
    rows: list[dict[str, Any]] = [{"loop_ins": 200}, {"loop_ins": 200}, {"loop_ins": 300}]
    (extra,) = performance.compare_extras(each, rows)
    assert extra.words.endswith("200 plain, with GATE=token, MASK=True: no instruction more")
    rows[0]["loop_ins"] = 210
    (extra,) = performance.compare_extras(each, rows)
    assert extra.words.endswith("+10 instructions (+5.0%)")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`genhoi bench --static` on kernels that were compiled before."""
    done = [compiled(arch, head_dim=128, tile=(64, 32, 128)) for arch in ("sm_80", "sm_90")]
    listed = [Variant("forward", one.arch, None, {}, {}) for one in done]
    monkeypatch.setattr(build, "list_variants", lambda source: listed)
    monkeypatch.setattr(build, "compile_all", lambda source, places: enumerate(done))
    monkeypatch.setattr(report, "find_cuda_torch", lambda: None)
    result = CliRunner().invoke(bench, ["--static", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "not a measurement" in result.output and "no CUDA torch is installed" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["static.csv", "static.png"]
    with (tmp_path / "static.csv").open(newline="") as file:
        assert sum(row["ours"] == "True" for row in csv.DictReader(file)) == 2


def test_an_interrupted_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: str, places: list[int]) -> Any:
        yield 0, compiled()
        raise KeyboardInterrupt

    listed = [Variant("forward", "sm_80", None, {}, {})] * 2
    monkeypatch.setattr(build, "list_variants", lambda source: listed)
    monkeypatch.setattr(build, "compile_all", interrupted)
    result = build.build("any", (), "all", Console(quiet=True))
    assert not result.is_complete and len(result.done) == 1 and result.wanted == 2


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="got 'sm_1', wanted one of sm_80"):
        build.build("any", ("sm_1",), "all", Console(quiet=True))
    monkeypatch.setattr(build, "list_variants", lambda source: [])
    with pytest.raises(ValueError, match="nothing to compile"):
        build.build("any", (), "all", Console(quiet=True))


def test_triton_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(pool.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'genhoi-kernels\[triton\]'"):
        pool.list_variants("any:variants")


# ------------------------------------------------------------------------------------- compiling


@pytest.mark.slow
@needs_triton
def test_real_kernels_are_compiled_and_judged(tmp_path: Path) -> None:
    """By the command, though its process is told to interpret kernels."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.static.compile_table",
            "--variants",
            "support.static_kernels:variants",
            "--out",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=250,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    with (tmp_path / "compiled.csv").open(newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    wrong = {name: row["violations"] for name, row in rows.items()}
    assert [wrong.pop(name) for name in ("well", "well on Hopper", "well on AMD")] == [""] * 3
    assert wrong.pop("crashes") == "does not compile: the compiler crashed"
    assert "wanted none" in wrong.pop("spills")
    assert "a CTA has at most 101376" in wrong.pop("too large")
    assert "has no tensor-core instructions" in wrong.pop("scalar")
    assert wrong.pop("in step") == "has no pipelined loop, wanted 3 stages"
    assert "does not compile" in wrong.pop("wrong")
    assert not wrong
    assert [rows[name]["tensor"] for name in ("well", "well on Hopper", "well on AMD")] == [
        "HMMA",
        "HGMMA",
        "MFMA",
    ]
